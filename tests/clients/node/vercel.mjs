// The AI SDK of Vercel with the providers openai (chat and Responses), openai-compatible and anthropic.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embed, generateText, jsonSchema, streamText, tool } from 'ai'
import { PARAMETERS, WEATHER, began } from './tools.mjs'

globalThis.AI_SDK_LOG_WARNINGS = false

const at = (call) => ({ baseURL: call.url + '/v1', apiKey: call.key })

const compatible = (call) =>
  createOpenAICompatible({ name: 'appliance', includeUsage: call.usage, ...at(call) })

const models = {
  compatible: (call) => compatible(call).chatModel(call.model),
  completions: (call) => compatible(call).completionModel(call.model),
  chat: (call) => createOpenAI(at(call)).chat(call.model),
  responses: (call) => createOpenAI(at(call)).responses(call.model),
  messages: (call) => createAnthropic(at(call))(call.model),
}

const count = (usage) =>
  usage?.inputTokens === undefined || usage.inputTokens === null ? null : [usage.inputTokens, usage.outputTokens]

const idOf = (response) => response?.headers?.['x-request-id'] ?? null

const called = (part) => [part.toolName, JSON.stringify(part.input)]

export async function run(call, outcome, begin) {
  if (call.api === 'embeddings') {
    const found = await embed({
      model: compatible(call).embeddingModel(call.model),
      value: call.text,
      maxRetries: call.retries,
    })
    outcome.requestId = idOf(found.response)
    outcome.text = JSON.stringify(found.embedding)
    return
  }
  const abort = new AbortController()
  const request = {
    model: models[call.api](call),
    prompt: call.text,
    maxOutputTokens: call.maxTokens,
    maxRetries: call.retries,
    abortSignal: abort.signal,
    ...(call.tool && {
      tools: { weather: tool({ description: WEATHER.description, inputSchema: jsonSchema(PARAMETERS) }) },
    }),
  }
  if (!call.stream) {
    const result = await generateText(request)
    outcome.text = result.text
    outcome.calls = result.toolCalls.map(called)
    outcome.finish = result.finishReason
    outcome.usage = count(result.usage)
    outcome.requestId = idOf(result.response)
    return
  }
  for await (const part of streamText({ ...request, onError: () => {} }).fullStream) {
    if (part.type === 'error') throw part.error
    if (part.type === 'text-delta') outcome.text += part.text
    if (part.type === 'tool-call') outcome.calls.push(called(part))
    if (part.type === 'finish-step') outcome.requestId = idOf(part.response)
    if (part.type === 'finish') {
      outcome.finish = part.finishReason
      outcome.usage = count(part.totalUsage)
    }
    if (began(call, outcome, begin)) abort.abort()
  }
}

/** Errors of a stream are an Error, a text, or the object that the engine sent. */
export const problem = (error) => ({
  name: error?.constructor?.name ?? typeof error,
  message: typeof error === 'string' ? error : (error?.message ?? JSON.stringify(error)),
  status: error?.statusCode ?? null,
  type: error?.data?.error?.type ?? error?.type ?? null,
  code: error?.data?.error?.code ?? error?.code ?? null,
  requestId: error?.responseHeaders?.['x-request-id'] ?? null,
  retryAfter: error?.responseHeaders?.['retry-after'] ?? null,
})
