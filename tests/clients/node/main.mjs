// Runs calls of the client SDKs, one JSON object a line: calls on standard input, begins and outcomes on standard
// output. tests/clients/sdk.py describes both. Calls run in parallel, each with its own client.
import { createInterface } from 'node:readline'
import * as anthropic from './anthropic.mjs'
import * as openai from './openai.mjs'
import * as vercel from './vercel.mjs'

const sdks = { anthropic, openai, vercel }

const write = (line) => process.stdout.write(JSON.stringify(line) + '\n')

async function run({ id, sdk, ...call }) {
  const outcome = { text: '', calls: [], usage: null, finish: null, requestId: null, models: [], problem: null }
  try {
    await sdks[sdk].run(call, outcome, () => write({ id, begun: true }))
  } catch (error) {
    outcome.problem = sdks[sdk].problem(error)
  }
  write({ id, outcome })
}

for await (const line of createInterface({ input: process.stdin })) run(JSON.parse(line))
