// openai (Node): /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings and /v1/models.
import OpenAI from 'openai'
import { PARAMETERS, WEATHER, began } from './tools.mjs'

const count = (usage) =>
  usage && [usage.prompt_tokens ?? usage.input_tokens, usage.completion_tokens ?? usage.output_tokens]

async function chat(client, call, outcome, begin) {
  const { data, request_id } = await client.chat.completions
    .create({
      model: call.model,
      messages: [{ role: 'user', content: call.text }],
      max_completion_tokens: call.maxTokens,
      ...(call.stream && { stream: true }),
      ...(call.usage && { stream_options: { include_usage: true } }),
      ...(call.tool && { tools: [{ type: 'function', function: { ...WEATHER, parameters: PARAMETERS } }] }),
    })
    .withResponse()
  outcome.requestId = request_id
  if (!call.stream) {
    const { message, finish_reason } = data.choices[0]
    outcome.text = message.content ?? ''
    outcome.calls = (message.tool_calls ?? []).map((one) => [one.function.name, one.function.arguments])
    outcome.finish = finish_reason
    outcome.usage = count(data.usage)
    return
  }
  for await (const chunk of data) {
    outcome.usage = count(chunk.usage) ?? outcome.usage
    const choice = chunk.choices[0]
    if (!choice) continue
    outcome.text += choice.delta.content ?? ''
    outcome.finish = choice.finish_reason ?? outcome.finish
    for (const part of choice.delta.tool_calls ?? []) {
      outcome.calls[part.index] ??= [part.function.name, '']
      outcome.calls[part.index][1] += part.function.arguments ?? ''
    }
    if (began(call, outcome, begin)) return
  }
}

async function completions(client, call, outcome, begin) {
  const { data, request_id } = await client.completions
    .create({
      model: call.model,
      prompt: call.text,
      max_tokens: call.maxTokens,
      ...(call.stream && { stream: true }),
      ...(call.usage && { stream_options: { include_usage: true } }),
    })
    .withResponse()
  outcome.requestId = request_id
  for await (const part of call.stream ? data : [data]) {
    outcome.usage = count(part.usage) ?? outcome.usage
    outcome.text += part.choices[0]?.text ?? ''
    outcome.finish = part.choices[0]?.finish_reason ?? outcome.finish
    if (call.stream && began(call, outcome, begin)) return
  }
}

function finished(response, outcome) {
  outcome.usage = count(response.usage)
  outcome.finish = response.status
  for (const item of response.output) if (item.type === 'function_call') outcome.calls.push([item.name, item.arguments])
}

async function responses(client, call, outcome, begin) {
  const { data, request_id } = await client.responses
    .create({
      model: call.model,
      input: call.text,
      max_output_tokens: call.maxTokens,
      ...(call.stream && { stream: true }),
      ...(call.tool && { tools: [{ type: 'function', ...WEATHER, parameters: PARAMETERS, strict: true }] }),
    })
    .withResponse()
  outcome.requestId = request_id
  if (!call.stream) {
    outcome.text = data.output_text
    finished(data, outcome)
    return
  }
  for await (const event of data) {
    if (event.type === 'response.output_text.delta') outcome.text += event.delta
    if (event.type === 'response.completed') finished(event.response, outcome)
    if (began(call, outcome, begin)) return
  }
}

async function embeddings(client, call, outcome) {
  const { data, request_id } = await client.embeddings
    .create({ model: call.model, input: [call.text], encoding_format: 'float' })
    .withResponse()
  outcome.requestId = request_id
  outcome.text = JSON.stringify(data.data[0].embedding)
}

async function models(client, call, outcome) {
  for await (const card of client.models.list()) outcome.models.push(card.id)
}

async function model(client, call, outcome) {
  const { data, request_id } = await client.models.retrieve(call.model).withResponse()
  outcome.requestId = request_id
  outcome.models.push(data.id)
}

async function files(client, call, outcome) {
  for await (const file of client.files.list()) outcome.models.push(file.id)
}

const apis = { chat, completions, responses, embeddings, models, model, files }

export const run = (call, outcome, begin) =>
  apis[call.api](
    new OpenAI({ baseURL: call.url + '/v1', apiKey: call.key, maxRetries: call.retries }),
    call,
    outcome,
    begin,
  )

export const problem = (error) => ({
  name: error.constructor.name,
  message: error.message,
  status: error.status ?? null,
  type: error.type ?? null,
  code: error.code ?? null,
  requestId: error.requestID ?? null,
  retryAfter: error.headers?.get('retry-after') ?? null,
})
