// @anthropic-ai/sdk: /v1/messages, plain, streamed and through its stream helper, and /v1/messages/count_tokens.
import Anthropic from '@anthropic-ai/sdk'
import { PARAMETERS, WEATHER, began } from './tools.mjs'

const count = (usage) => usage && [usage.input_tokens, usage.output_tokens]

const body = (call) => ({
  model: call.model,
  max_tokens: call.maxTokens,
  messages: [{ role: 'user', content: call.text }],
  ...(call.tool && { tools: [{ ...WEATHER, input_schema: PARAMETERS }] }),
})

function finished(message, outcome) {
  outcome.usage = count(message.usage)
  outcome.finish = message.stop_reason
  for (const block of message.content) {
    if (block.type === 'tool_use') outcome.calls.push([block.name, JSON.stringify(block.input)])
  }
}

async function messages(client, call, outcome, begin) {
  if (!call.stream) {
    const message = await client.messages.create(body(call))
    outcome.requestId = message._request_id
    outcome.text = message.content.map((block) => block.text ?? '').join('')
    finished(message, outcome)
    return
  }
  const { data, request_id } = await client.messages.create({ ...body(call), stream: true }).withResponse()
  outcome.requestId = request_id
  let input = ''
  for await (const event of data) {
    if (event.type === 'message_start') outcome.usage = count(event.message.usage)
    if (event.type === 'content_block_start' && event.content_block.type === 'tool_use') {
      outcome.calls.push([event.content_block.name, ''])
    }
    if (event.type === 'content_block_delta') {
      outcome.text += event.delta.text ?? ''
      input += event.delta.partial_json ?? ''
    }
    if (event.type === 'message_delta') {
      outcome.finish = event.delta.stop_reason
      outcome.usage = [outcome.usage[0], event.usage.output_tokens]
    }
    if (began(call, outcome, begin)) return
  }
  for (const one of outcome.calls) one[1] = input
}

async function helper(client, call, outcome, begin) {
  const stream = client.messages.stream(body(call))
  for await (const event of stream) {
    if (event.type === 'content_block_delta') outcome.text += event.delta.text ?? ''
    if (began(call, outcome, begin)) return stream.abort()
  }
  outcome.requestId = stream.request_id
  finished(await stream.finalMessage(), outcome)
}

async function count_tokens(client, call, outcome) {
  const counted = await client.messages.countTokens({ model: call.model, messages: body(call).messages })
  outcome.requestId = counted._request_id
  outcome.usage = [counted.input_tokens, 0]
}

async function models(client, call, outcome) {
  for await (const card of client.models.list()) outcome.models.push(card.id)
}

async function model(client, call, outcome) {
  const card = await client.models.retrieve(call.model)
  outcome.requestId = card._request_id
  outcome.models.push(card.id)
}

const apis = { messages, helper, count_tokens, models, model }

export const run = (call, outcome, begin) =>
  apis[call.api](
    new Anthropic({ baseURL: call.url, apiKey: call.key, maxRetries: call.retries }),
    call,
    outcome,
    begin,
  )

export const problem = (error) => ({
  name: error.constructor.name,
  message: error.message,
  status: error.status ?? null,
  type: error.error?.error?.type ?? null,
  code: null,
  requestId: error.requestID ?? null,
  retryAfter: error.headers?.get('retry-after') ?? null,
})
