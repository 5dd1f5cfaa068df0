/** Bugs around the engine: in programs, results, requests, answers and formats; for plants.test.ts. */

export type Plant = readonly [name: string, file: string, find: string, replace: string, tests: string, only?: string]

const fake = 'test/lib/engine_fake'
const same = 'the same answer'
const answers = 'test/lib/answers'
const generation = 'test/lib/generation'
const leaks = 'test/lib/leaks'

export const answerPlants: readonly Plant[] = [
  // Programs and results
  ['a program with too little room', 'lib/programs.ts', 'Math.ceil(Math.log2(size))', 'Math.floor(Math.log2(size))', fake, same],
  ['the program of fewer rows of logits', 'lib/programs.ts', '{outputs} ', '{0} ', fake, 'few rows of logits'],
  ['the program of fewer edits', 'lib/programs.ts', '{room} ', '{0} ', answers, 'few biases'],
  [
    'log-probabilities of what penalties have left',
    'lib/programs.ts',
    'op.logprobs(raw,',
    'op.logprobs(edits ? op.adjust(raw, edits.edits) : raw,',
    answers,
    'are the raw ones',
  ],
  [
    'the most probable tokens but for the first',
    'lib/results.ts',
    'id: topIds[i]!',
    'id: topIds[i + 1]!',
    answers,
    'of which greedy takes the first',
  ],
  [
    'the most probable tokens of another row',
    'lib/results.ts',
    'row: number): TokenLogprob[] {\n',
    'row: number): TokenLogprob[] {\n  row = Math.max(0, row - 1)\n',
    fake,
    'each gets it',
  ],
  [
    'the prompt is scored only where the most probable tokens are asked for',
    'lib/results.ts',
    '(top || sequence.options.scoresPrompt)',
    'top',
    answers,
    'of the prompt',
  ],
  ['room for the edits of the last row only', 'lib/results.ts', '(size.edits ?? 0) + ', '', answers, 'few biases'],
  // Requests and answers
  [
    'the text of a stop token leaks',
    'lib/answer.ts',
    'const piece = stops ? undefined : this.#text',
    'const piece = this.#text',
    generation,
    'a stop token',
  ],
  [
    'the log-probabilities of the prompt are one token off',
    'lib/answer.ts',
    'this.sequence.tokens[position]!',
    'this.sequence.tokens[position - 1]!',
    answers,
    'of the prompt',
  ],
  [
    'minTokens counts the prompt',
    'lib/answer.ts',
    'this.#logprobs.length >= minTokens',
    'this.sequence.tokens.length >= minTokens',
    answers,
    'minTokens keeps',
  ],
  [
    'a stop string is not seen in the token of minTokens',
    'lib/answer.ts',
    'this.#logprobs.length >= minTokens',
    'this.#logprobs.length > minTokens',
    answers,
    'minTokens keeps',
  ],
  [
    'what is held for a stop string is lost at the end',
    'lib/answer.ts',
    'if (rest) this.#give(rest, [], [], [])',
    '',
    generation,
    'the beginning of a stop string',
  ],
  [
    'leaving for await aborts nothing',
    'lib/generation.ts',
    'finally {\n      this.#abort()',
    'finally {',
    generation,
    'leaving for await',
  ],
  [
    'guesses pass by the rules',
    'lib/request.ts',
    'promptLookup > 0 && plain',
    'promptLookup > 0',
    answers,
    'guesses know nothing',
  ],
  ['minTokens alone is no rule', 'lib/request.ts', '&& minTokens === 0 ', '', answers, 'minTokens keeps'],
  ['a format does not wait for its token', 'lib/request.ts', 'lockstep: true, ', '', answers, 'formats are kept'],
  [
    'a format that is compiled after its request has ended stays',
    'lib/request.ts',
    'if (this.#disposed) matcher.dispose()\n    else this',
    'this',
    leaks,
    'text and formats',
  ],
  [
    'guesses begin with the token that is there',
    'lib/lookup.ts',
    'tokens.slice(at, at + this.#most)',
    'tokens.slice(at - 1, at - 1 + this.#most)',
    answers,
    'what the text repeats',
  ],
  [
    'stop tokens of a request replace those of the model',
    'lib/options.ts',
    'options.ignoreEos ? []',
    'options.ignoreEos || extra.length > 0 ? []',
    'test/lib/options',
  ],
  [
    'maxTokens beyond the context',
    'lib/options.ts',
    'Math.min(options.maxTokens ?? Math.max(fits, 1), room)',
    'options.maxTokens ?? Math.min(fits, room)',
    generation,
    'the end of the context',
  ],
  // Formats
  [
    'a mask is used twice',
    'lib/grammar.ts',
    'this.mask = undefined\n    return',
    'return',
    'test/lib/grammar',
    'before there is its mask',
  ],
  [
    'a listener stays when a format is compiled',
    'lib/grammar.ts',
    "signal?.removeEventListener('abort', abort)",
    '',
    leaks,
    'text and formats',
  ],
  [
    'another thread begins without the tokens that came',
    'lib/grammar.ts',
    'following.tokens.push(token)',
    '',
    'test/lib/grammar',
    'of time',
  ],
]
