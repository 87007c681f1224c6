// Shared by all SDKs: the only tool, and the end of a stream that the call closes.

export const PARAMETERS = {
  type: 'object',
  properties: { place: { type: 'string' } },
  required: ['place'],
  additionalProperties: false,
}

export const WEATHER = { name: 'weather', description: 'The weather of a place.' }

/** Report the first text of a stream; return whether the caller must close the stream then. */
export function began(call, outcome, begin) {
  if (!outcome.begun && outcome.text) {
    outcome.begun = true
    begin()
    return call.disconnect
  }
  return false
}
