// TypeScript -> JavaScript for jest, by swc; with CRIA_PLANT a bug is planted first: {"file", "find", "replace"}.
import swc from '@swc/jest'

const plant = process.env.CRIA_PLANT ? JSON.parse(process.env.CRIA_PLANT) : undefined

function planted(source, path) {
  if (!plant || !path.endsWith(`/${plant.file}`)) return source
  if (source.split(plant.find).length !== 2) throw new Error(`${plant.file} has ${JSON.stringify(plant.find)} not once`)
  return source.replace(plant.find, () => plant.replace)
}

export default {
  createTransformer(options) {
    const inner = swc.createTransformer(options)
    const withPlant =
      name =>
      (source, path, ...rest) =>
        inner[name](planted(source, path), path, ...rest)
    return {
      ...inner,
      process: withPlant('process'),
      processAsync: withPlant('processAsync'),
      getCacheKey: withPlant('getCacheKey'),
    }
  },
}
