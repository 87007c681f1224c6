// The files of the open chat: upload with progress, processing, removal. A file that fails does not stop the others.
import { json, upload } from "./api.js";
import { announce, by, make, warn } from "./dom.js";
import { text } from "./texts.js";

const MEGABYTE = 2 ** 20;
const most = Number(document.body.dataset.mostBytes);
const list = by("files");
const REASONS = { unsupported_file: "file_unsupported", invalid_file: "file_invalid" };
let entries = [];
let ensureStore; // Returns the id of the store of the open chat, made when it is first needed.
let closing = new AbortController();

export function setUpFiles(ensure) {
  ensureStore = ensure;
}

export const hasFiles = () => entries.some((one) => one.attached && one.state !== "failed");

export async function openFiles(store) {
  closing.abort();
  closing = new AbortController();
  entries = [];
  draw();
  if (!store) return;
  const { signal } = closing;
  try {
    const page = await json(`/v1/vector_stores/${store}/files?limit=100&order=asc`, { signal });
    for (const file of page.data) {
      const entry = { id: file.id, store, name: file.attributes?.filename ?? file.id, attached: true };
      settle(entry, file);
      entries.push(entry);
      if (entry.state === "reading") watch(entry, signal);
    }
    draw();
  } catch (error) {
    if (error.name !== "AbortError") warn(error.message);
  }
}

export function addFiles(files) {
  const { signal } = closing;
  const added = [...files].map((file) => ({ file, name: file.name, state: "waiting", progress: 0 }));
  entries.push(...added);
  draw();
  // One after another: the edge limits the uploads of an address.
  return added.reduce((before, entry) => before.then(() => add(entry, signal)), Promise.resolve());
}

async function add(entry, signal) {
  if (!entries.includes(entry)) return;
  const { file } = entry;
  if (file.size === 0) return fail(entry, text("file_empty"));
  if (file.size > most) return fail(entry, `${text("file_too_large")} ${Math.floor(most / MEGABYTE)} ${text("megabytes")}`);
  entry.state = "uploading";
  draw();
  try {
    const store = await ensureStore(entry.name);
    const stored = await upload(file, (progress) => update(entry, progress), signal);
    entry.id = stored.id;
    entry.store = store;
    entry.state = "reading";
    draw();
    const body = { file_id: stored.id, attributes: { filename: entry.name.slice(0, 512) } };
    settle(entry, await json(`/v1/vector_stores/${store}/files`, { method: "POST", body, signal }));
    entry.attached = true;
    draw();
    if (entry.state === "reading") watch(entry, signal);
  } catch (error) {
    if (error.name !== "AbortError") fail(entry, error.message || text("file_error"));
  }
}

async function watch(entry, signal) {
  let wait = 300;
  try {
    while (entry.state === "reading" && entries.includes(entry)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (signal.aborted) return;
      wait = Math.min(1.5 * wait, 5000);
      settle(entry, await json(`/v1/vector_stores/${entry.store}/files/${entry.id}`, { signal }));
    }
    draw();
    if (entry.state === "ready") announce(`${entry.name}: ${text("file_ready")}`);
  } catch (error) {
    if (error.name !== "AbortError") fail(entry, error.message);
  }
}

function settle(entry, file) {
  if (file.status === "completed") entry.state = "ready";
  else if (file.status === "in_progress") entry.state = "reading";
  else fail(entry, text(REASONS[file.last_error?.code] ?? "file_error"));
}

function fail(entry, reason) {
  entry.state = "failed";
  entry.reason = reason;
  draw();
  warn(`${entry.name}: ${reason}`);
}

function update(entry, progress) {
  entry.progress = progress;
  if (entry.bar) entry.bar.value = progress;
}

async function remove(entry) {
  entries = entries.filter((one) => one !== entry);
  draw();
  if (!entry.id) return;
  try {
    await json(`/v1/files/${entry.id}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) warn(error.message);
  }
}

function draw() {
  list.hidden = entries.length === 0;
  list.replaceChildren(
    ...entries.map((entry) => {
      entry.bar = entry.state === "uploading" ? make("progress", { max: 1, value: entry.progress, "aria-label": entry.name }) : null;
      const close = make("button", { type: "button", class: "icon small", "aria-label": `${text("file_remove")}: ${entry.name}`, onclick: () => remove(entry) }, "×");
      return make(
        "li",
        { class: `file ${entry.state}`, title: entry.reason ?? entry.name },
        make("span", { class: "file-name" }, entry.name),
        make("span", { class: "file-state" }, entry.reason ?? text(`file_${entry.state}`)),
        entry.bar,
        close,
      );
    }),
  );
}

// Removes a store with its files, after its chat was deleted.
export async function deleteStore(store) {
  const ids = [];
  for (let page, after = ""; page?.has_more !== false; after = `&after=${page.last_id}`) {
    page = await json(`/v1/vector_stores/${store}/files?limit=100${after}`);
    ids.push(...page.data.map((file) => file.id));
  }
  for (const id of ids) await erase(`/v1/files/${id}`);
  await erase(`/v1/vector_stores/${store}`);
}

async function erase(path) {
  try {
    await json(path, { method: "DELETE" });
  } catch (error) {
    // Another tab, or an earlier attempt that was cut, has deleted it.
    if (error.status !== 404) throw error;
  }
}
