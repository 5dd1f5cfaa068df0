// npm run check: does llama.cpp compute on our GGUF what the reference computes on our safetensors?
// Compares the logits after every prompt token, and then the greedy tokens.
import { join } from 'node:path'
import { getLlama, LlamaLogLevel } from 'node-llama-cpp'
import { makeModel } from './make-model.mjs'
import { reference } from './reference.mjs'
import { promptTokens, shapes } from './shape.mjs'

const folder = process.argv[2] ?? join(import.meta.dirname, 'models', 'tiny')
const shape = shapes.tiny
const prompt = promptTokens(shape, 48)
const steps = 16
await makeModel('tiny', folder)

const llama = await getLlama({ gpu: false, build: 'never', maxThreads: 1, progressLogs: false, logLevel: LlamaLogLevel.error })
const model = await llama.loadModel({ modelPath: join(folder, 'model.gguf') })
const context = await model.createContext({ contextSize: 512, threads: 1 })
const sequence = context.getSequence()
const theirs = async tokens => {
  const outputs = await sequence.controlledEvaluate(tokens.map(token => [token, { generateNext: { logits: true } }]))
  return outputs.map(({ next }) => Float64Array.from({ length: shape.vocab }, (_, id) => next.logits.get(id)))
}

const ours = await reference(folder, shape)
const norm = x => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0))
const distance = (a, b) => norm(a.map((value, i) => value - b[i])) / norm(b)
const argmax = x => x.indexOf(Math.max(...x))

const expected = prompt.map(ours)
const logits = await theirs(prompt)
let worst = Math.max(...logits.map((row, i) => distance(row, expected[i])))
let agreed = logits.filter((row, i) => argmax(row) === argmax(expected[i])).length
let mine = expected.at(-1)
for (let i = 0; i < steps; i++) {
  const token = argmax(mine)
  mine = ours(token)
  const [row] = await theirs([token])
  worst = Math.max(worst, distance(row, mine))
  agreed += Number(argmax(row) === argmax(mine))
}
await llama.dispose()

const total = prompt.length + steps
// llama.cpp rounds the inputs of each matrix to bf16, which makes 0.4%. Without the row order of q and k it is 5.4%, and with
// another RoPE base 5.0%, although most greedy tokens still agree.
const good = worst < 0.01 && agreed === total
console.log(
  `${good ? 'ok' : 'WRONG'}: worst error of logits ${(100 * worst).toFixed(2)}%, greedy token agrees at ${agreed} of ${total}`,
)
process.exitCode = good ? 0 : 1
