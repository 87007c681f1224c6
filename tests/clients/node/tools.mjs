// What all SDKs share: the one tool, and the end of a stream that the call wants to leave.

export const PARAMETERS = {
  type: 'object',
  properties: { place: { type: 'string' } },
  required: ['place'],
  additionalProperties: false,
}

export const WEATHER = { name: 'weather', description: 'The weather of a place.' }

/** Report the first text of a stream; true when the caller then leaves the stream. */
export function began(call, outcome, begin) {
  if (!outcome.begun && outcome.text) {
    outcome.begun = true
    begin()
    return call.leave
  }
  return false
}
