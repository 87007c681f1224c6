// Requests to the API of this host, by the cookie of the session.
import { text } from "./texts.js";

export class ApiError extends Error {
  constructor(status, code, message, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

export function sessionEnded() {
  // The server shows the log-in; the chat in the address and the draft stay.
  location.reload();
  return new Promise(() => {});
}

export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "network", text("error_network"));
  }
  if (response.status === 401) return sessionEnded();
  if (!response.ok) throw await errorOf(response);
  return response;
}

export async function json(path, options) {
  const response = await request(path, options);
  try {
    return response.status === 204 ? null : await response.json();
  } catch {
    throw new ApiError(0, "network", text("error_network"));
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? text("error_unknown");
  return new ApiError(response.status, body?.error?.code ?? "", message, response.headers.get("retry-after"));
}

// Yields the events of a server-sent stream; throws an ApiError if the connection is cut.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      let end;
      while ((end = held.indexOf("\n\n")) >= 0) {
        const frame = held.slice(0, end);
        held = held.slice(end + 2);
        const data = frame.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
        if (data) yield JSON.parse(data);
      }
    }
  } catch (error) {
    throw error instanceof TypeError || error.name === "NetworkError"
      ? new ApiError(0, "network", text("error_network"))
      : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Uploads a file with progress from 0 to 1; fetch reports none.
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("purpose", "assistants");
    form.append("file", file, file.name);
    const call = new XMLHttpRequest();
    call.open("POST", "/v1/files");
    call.responseType = "json";
    call.upload.addEventListener("progress", (event) => event.lengthComputable && onProgress(event.loaded / event.total));
    call.addEventListener("load", () => {
      if (call.status === 401) sessionEnded();
      else if (call.status < 300) resolve(call.response);
      else {
        const error = call.response?.error;
        reject(new ApiError(call.status, error?.code ?? "", error?.message ?? text("error_unknown")));
      }
    });
    call.addEventListener("error", () => reject(new ApiError(0, "network", text("error_network"))));
    call.addEventListener("abort", () => reject(new DOMException("aborted", "AbortError")));
    signal?.addEventListener("abort", () => call.abort());
    call.send(form);
  });
}
