// Voice notes: the button exists if a model that transcribes is available.
import { by, warn } from "./dom.js";
import { text } from "./texts.js";

const LONGEST_MS = 300_000;
const button = by("record");
let recorder = null;

export function setUpVoice(model, insert) {
  button.hidden = !(model && navigator.mediaDevices && window.MediaRecorder);
  button.onclick = () => (recorder ? recorder.stop() : record(model, insert));
}

async function record(model, insert) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    warn(text("record_failed"));
    return;
  }
  const pieces = [];
  recorder = new MediaRecorder(stream);
  const limit = setTimeout(() => recorder?.stop(), LONGEST_MS);
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  recorder.addEventListener("stop", async () => {
    clearTimeout(limit);
    stream.getTracks().forEach((track) => track.stop());
    const kind = recorder.mimeType;
    recorder = null;
    label(false);
    try {
      insert(await transcribe(model, new Blob(pieces, { type: kind })));
    } catch (error) {
      warn(error.message);
    }
  });
  recorder.start();
  label(true);
}

function label(recording) {
  const name = text(recording ? "record_stop" : "record");
  button.setAttribute("aria-label", name);
  button.title = name;
  button.setAttribute("aria-pressed", String(recording));
}

async function transcribe(model, sound) {
  const form = new FormData();
  form.append("model", model);
  form.append("file", sound, sound.type.includes("ogg") ? "note.ogg" : "note.webm");
  const response = await fetch("/v1/audio/transcriptions", { method: "POST", body: form });
  const body = await response.json().catch(() => null);
  if (!response.ok || typeof body?.text !== "string") throw new Error(body?.error?.message ?? text("record_failed"));
  return body.text;
}
