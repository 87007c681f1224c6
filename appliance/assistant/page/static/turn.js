// The events of one turn, over cut connections: each one continues after the last event that arrived.
//
// | state | event | next |
// |---|---|---|
// | requested | the first event | following |
// | requested | the connection fails | requested again, with the same Idempotency-Key |
// | following | the last event | ended |
// | following | the connection fails, or the gateway stops | following again, after the last number |
// | following | the events have expired | the whole response, when it has ended |
import { ApiError, events, json, request } from "./api.js";

const ENDS = new Set(["response.completed", "response.incomplete", "response.failed", "response.cancelled"]);
const RUNNING = new Set(["queued", "in_progress"]);
const RETRIED = new Set([0, 502, 503, 504]);
const LONGEST_PAUSE_MS = 8000;
const MOST_TRIES = 40;

// Waits, or less if the network returns.
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    signal?.addEventListener("abort", () => {
      done();
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

// Yields the events of a new turn (`body`) or of one that runs (`id`). `onCut` is called at every lost connection.
export async function* follow({ body, id = null, signal, onCut }) {
  const key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  let last = -1;
  let wait = 250;
  for (let tries = 0; ; tries += 1) {
    try {
      const response = id === null
        ? await request("/v1/responses", { method: "POST", body, headers: { "Idempotency-Key": key }, signal })
        : await request(`/v1/responses/${id}?stream=true${last < 0 ? "" : `&starting_after=${last}`}`, { signal });
      for await (const event of events(response)) {
        if (event.code === "events_expired") throw new ApiError(400, event.code, event.message);
        // An event of the gateway: the connection behind it is cut, the turn continues.
        if (event.error && event.type === "response.failed") break;
        id = event.response?.id ?? id;
        if (event.sequence_number <= last) continue;
        last = event.sequence_number;
        tries = 0;
        wait = 250;
        yield event;
        if (ENDS.has(event.type)) return;
      }
      throw new ApiError(0, "cut", "");
    } catch (error) {
      if (error.code === "events_expired") {
        yield* ended(id, signal);
        return;
      }
      const again = id === null ? error.status === 0 : RETRIED.has(error.status);
      if (error.name === "AbortError" || !again || tries >= MOST_TRIES) throw error;
      onCut?.();
      await pause(wait, signal);
      wait = Math.min(2 * wait, LONGEST_PAUSE_MS);
    }
  }
}

// Waits for the end of a turn whose events have expired.
async function* ended(id, signal) {
  for (;;) {
    const response = await json(`/v1/responses/${id}`, { signal });
    if (!RUNNING.has(response.status)) {
      yield { type: `response.${response.status}`, response };
      return;
    }
    await pause(1000, signal);
  }
}

// The ids of turns that run, by conversation: a reloaded page and other tabs follow them.
const PREFIX = "turn:";

export const running = {
  get: (conversation) => localStorage.getItem(PREFIX + conversation),
  set: (conversation, id) => localStorage.setItem(PREFIX + conversation, id),
  remove: (conversation) => localStorage.removeItem(PREFIX + conversation),
  conversationOf: (key) => (key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null),
  clear() {
    for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) localStorage.removeItem(key);
  },
};
