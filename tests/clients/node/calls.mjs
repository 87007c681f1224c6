// Runs any method of openai (Node) by its name, one JSON object a line: calls on standard input, results on standard
// output. tests/assistant_clients/sdk_calls.py describes both. Arguments: base URL, key.
import { createInterface } from 'node:readline'
import OpenAI, { APIError, toFile } from 'openai'

const [baseURL, apiKey] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60000 })

const write = (line) => process.stdout.write(JSON.stringify(line) + '\n')

/** Make a file of each {$file: [name, text]} in the arguments. */
async function withFiles(value) {
  if (value === null || typeof value !== 'object') return value
  if (value.$file) return toFile(new TextEncoder().encode(value.$file[1]), value.$file[0])
  if (Array.isArray(value)) return Promise.all(value.map(withFiles))
  return Object.fromEntries(await Promise.all(Object.entries(value).map(async ([k, v]) => [k, await withFiles(v)])))
}

async function readable(value) {
  if (value instanceof Response) return value.text()
  if (value?.[Symbol.asyncIterator]) {
    const all = []
    for await (const one of value) all.push(one)
    return all
  }
  return value ?? null
}

function methods(resource, path) {
  const own = Object.getOwnPropertyNames(Object.getPrototypeOf(resource)).filter((name) => name !== 'constructor')
  const inner = Object.entries(resource).filter(([name, value]) => !name.startsWith('_') && value?._client)
  return [...own.map((name) => `${path}.${name}`), ...inner.flatMap(([name, value]) => methods(value, `${path}.${name}`))]
}

async function run({ method, args, list }) {
  if (list) return list.flatMap((name) => methods(client[name], name))
  const path = method.split('.')
  const name = path.pop()
  const resource = path.reduce((found, part) => found[part], client)
  return readable(await resource[name](...(await withFiles(args))))
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    write({ result: await run(JSON.parse(line)) })
  } catch (error) {
    if (!(error instanceof APIError)) throw error
    const { message, status = null, code = null, param = null } = error
    write({ problem: { message, status, code, param } })
  }
}
