// The open chat: its messages, the turn that runs, and changes by other tabs.
import { json } from "./api.js";
import { announce, by, make, warn } from "./dom.js";
import { markChat, refreshChats, titleOf } from "./chats.js";
import { hasFiles, openFiles } from "./files.js";
import { assistantMessage, button, errorMessage, reasoningMessage, toolMessage, userMessage } from "./message.js";
import { text } from "./texts.js";
import { follow, running } from "./turn.js";

const messages = by("messages");
const scroller = by("scroller");
const older = by("older");
const TITLE = 60;

export const open = {
  id: null,
  metadata: {},
  items: [], // As the server sent them, in order.
  first: null, // Id of the oldest item that is loaded, for the page before it.
  turn: null, // {abort, id, conversation, stopped} of the turn that this page follows.
};
let hooks; // {changed(), composing(text), model()} of the main module.
let sources = new Map(); // Passages by the id of their file.
const channel = new BroadcastChannel("chats");

export function setUpConversation(given) {
  hooks = given;
}

// Scrolls to the end if the reader is there already.
const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 120;
const toEnd = () => (scroller.scrollTop = scroller.scrollHeight);

function keepEnd(change) {
  const stay = atEnd();
  change();
  if (stay) toEnd();
}

function lastUserAt() {
  return open.items.findLastIndex((item) => item.type === "message" && item.role === "user");
}

export function lastUserText() {
  return open.turn ? null : (open.items[lastUserAt()]?.text ?? null);
}

function node(item) {
  if (item.type === "message") return item.role === "user" ? userMessage(item) : assistantMessage(item, sources);
  if (item.type === "reasoning") return reasoningMessage(item.text);
  return toolMessage(item);
}

function draw() {
  sources = new Map();
  for (const item of open.items) {
    for (const one of item.passages ?? []) {
      sources.set(one.file_id, [...(sources.get(one.file_id) ?? []), one.text]);
    }
  }
  messages.replaceChildren(...open.items.map(node));
  addLastActions();
  by("welcome").hidden = open.items.length > 0 || open.turn !== null;
}

// The last question can be edited, the last answer repeated.
function addLastActions() {
  const item = open.items[lastUserAt()];
  if (!item || open.turn) return;
  const question = messages.querySelector(`[data-id="${item.id}"] .actions`);
  question?.append(button(text("edit"), () => hooks.composing(item.text)));
  const answers = messages.querySelectorAll("article.assistant .actions");
  const repeat = button(text("retry"), () => repeatLast(item.text));
  const last = messages.lastElementChild;
  if (last?.matches("article.assistant")) answers[answers.length - 1].append(repeat);
  else question?.append(repeat);
}

function title(metadata) {
  const shown = open.id ? titleOf({ metadata }) : "";
  by("chat-title").textContent = shown;
  document.title = shown ? `${shown} · ${text("title")}` : text("title");
  by("chat-actions").hidden = !open.id;
  by("export").href = open.id ? `/v1/conversations/${open.id}/export` : "";
}

function leave() {
  open.turn?.abort.abort();
  Object.assign(open, { id: null, metadata: {}, items: [], first: null, turn: null });
  older.hidden = true;
  messages.replaceChildren();
}

export function openNew() {
  leave();
  draw();
  title({});
  markChat(null);
  openFiles(null);
  hooks.changed();
}

export async function openChat(id) {
  leave();
  open.id = id;
  markChat(id);
  by("welcome").hidden = true;
  messages.setAttribute("aria-busy", "true");
  try {
    await load();
  } catch (error) {
    if (open.id !== id) return;
    if (error.status === 404) {
      openNew();
      history.replaceState(null, "", "/");
    }
    const message = error.status === 404 ? text("chat_missing") : error.message;
    messages.replaceChildren(errorMessage(message, null, error.status === 404 ? null : () => openChat(id)));
    by("welcome").hidden = true;
    warn(message);
    return;
  } finally {
    messages.removeAttribute("aria-busy");
  }
  if (open.id !== id) return;
  openFiles(open.metadata.vector_store);
  hooks.changed();
  toEnd();
  resume();
}

// Reads the newest messages of the open chat again.
async function load() {
  const { id } = open;
  const page = await json(`/v1/page/conversations/${id}?limit=40`);
  if (open.id !== id) return;
  open.metadata = page.conversation.metadata;
  open.items = page.data.reverse();
  open.first = page.last_id;
  older.hidden = !page.has_more;
  title(open.metadata);
  draw();
}

older.addEventListener("click", async () => {
  const { id } = open;
  const height = scroller.scrollHeight;
  try {
    const page = await json(`/v1/page/conversations/${id}?limit=40&after=${open.first}`);
    if (open.id !== id) return;
    open.items = [...page.data.reverse(), ...open.items];
    open.first = page.last_id;
    older.hidden = !page.has_more;
    const live = [...messages.querySelectorAll(".live, .pending")];
    draw();
    messages.append(...live);
    scroller.scrollTop = scroller.scrollHeight - height;
  } catch (error) {
    warn(error.message);
  }
});

// Makes the open chat if it is new, with what the page knows of it.
export async function ensureChat(name) {
  if (open.id) return open.id;
  const line = name.trim().split("\n")[0];
  const letters = Array.from(line);
  const shown = letters.length > TITLE ? `${letters.slice(0, TITLE - 1).join("")}…` : line;
  const metadata = { ...hooks.settings(), title: shown || text("untitled") };
  const chat = await json("/v1/conversations", { method: "POST", body: { metadata } });
  open.id = chat.id;
  open.metadata = chat.metadata;
  history.replaceState(null, "", `#${chat.id}`);
  title(open.metadata);
  markChat(chat.id);
  refreshChats();
  return chat.id;
}

export async function setMetadata(changes) {
  const metadata = { ...open.metadata, ...changes };
  for (const [name, value] of Object.entries(metadata)) if (!value) delete metadata[name];
  const { id } = open;
  const chat = await json(`/v1/conversations/${id}`, { method: "POST", body: { metadata } });
  if (open.id === id) {
    open.metadata = chat.metadata;
    title(open.metadata);
  }
  channel.postMessage(id);
  refreshChats();
}

export async function ensureStore(name) {
  const id = await ensureChat(name);
  if (open.metadata.vector_store) return open.metadata.vector_store;
  const store = await json("/v1/vector_stores", { method: "POST", body: { name: titleOf(open).slice(0, 100) } });
  if (open.id === id) await setMetadata({ vector_store: store.id });
  return store.id;
}

// One turn.

const item = (role, content, status = "completed") => ({
  type: "message",
  role,
  status,
  content: [{ type: role === "user" ? "input_text" : "output_text", text: content }],
});

// `replaced` is the round that was removed for it: it returns if the turn fails before its first text.
export async function send(content, replaced = null) {
  const pending = userMessage({ text: content });
  pending.classList.add("pending");
  const turn = begin();
  by("welcome").hidden = true;
  messages.append(pending);
  toEnd();
  const live = liveMessage();
  let chat;
  try {
    chat = await ensureChat(content);
  } catch (error) {
    finish(turn);
    live.remove();
    pending.remove();
    hooks.composing(content, { restore: true });
    draw();
    messages.append(errorMessage(text("not_sent"), error.message));
    return;
  }
  turn.conversation = chat;
  turn.replaced = replaced;
  const store = open.metadata.vector_store;
  const body = {
    model: hooks.model(),
    conversation: chat,
    input: content,
    stream: true,
    background: true,
    truncation: "auto",
    ...(store && hasFiles() && { tools: [{ type: "file_search", vector_store_ids: [store] }] }),
  };
  await play(turn, live, { body, content });
}

// Follows a turn that an earlier page or another tab began.
async function resume() {
  const id = open.id && running.get(open.id);
  if (!id || open.turn) return;
  const turn = begin();
  turn.conversation = open.id;
  try {
    const input = await json(`/v1/responses/${id}/input_items?order=asc`, { signal: turn.abort.signal });
    const said = input.data.find((one) => one.type === "message" && one.role === "user");
    const content = said?.content.map((part) => part.text ?? "").join("\n") ?? "";
    // A turn that has ended is among the stored messages already.
    const whole = await json(`/v1/responses/${id}`, { signal: turn.abort.signal });
    if (whole.status !== "queued" && whole.status !== "in_progress") {
      running.remove(turn.conversation);
      finish(turn);
      await load();
      return;
    }
    if (content) {
      const pending = userMessage({ text: content });
      pending.classList.add("pending");
      messages.append(pending);
    }
    by("welcome").hidden = true;
    const live = liveMessage();
    toEnd();
    turn.id = id;
    await play(turn, live, { id, content, follows: true });
  } catch (error) {
    if (error.name === "AbortError") return;
    running.remove(turn.conversation);
    finish(turn);
    draw();
  }
}

function begin() {
  const turn = { abort: new AbortController(), id: null, conversation: open.id, stopped: false };
  open.turn = turn;
  hooks.changed();
  return turn;
}

function finish(turn) {
  if (open.turn !== turn) return false;
  open.turn = null;
  hooks.changed();
  return true;
}

// The message that grows while the turn runs.
function liveMessage() {
  const body = make("div", { class: "plain live-text" });
  const state = make("p", { class: "live-state" }, make("span", { class: "dots", "aria-hidden": "true" }), text("waiting"));
  const element = make("article", { class: "assistant live", "aria-label": text("assistant") }, state, body);
  messages.append(element);
  announce(text("writing"));
  let reasoning = null;
  return {
    text: "",
    state(name) {
      state.hidden = !name;
      if (name) state.lastChild.textContent = text(name);
    },
    write(delta) {
      keepEnd(() => {
        this.state(null);
        if (reasoning?.open) reasoning.open = false;
        this.text += delta;
        body.append(delta);
      });
    },
    reason(delta) {
      keepEnd(() => {
        this.state(null);
        if (!reasoning) {
          reasoning = reasoningMessage("", true);
          body.before(reasoning);
        }
        reasoning.lastChild.append(delta);
      });
    },
    note(name) {
      keepEnd(() => body.before(make("p", { class: "tool" }, text(name))));
    },
    clear() {
      this.text = "";
      body.replaceChildren();
      reasoning?.remove();
      reasoning = null;
    },
    remove: () => element.remove(),
  };
}

async function play(turn, live, { body, id, content, follows = false }) {
  const { signal } = turn.abort;
  let ended = null;
  let problem = null;
  try {
    const onCut = () => live.state("reconnecting");
    for await (const event of follow({ body, id, signal, onCut })) {
      if (event.response?.id && turn.id !== event.response.id) {
        turn.id = event.response.id;
        running.set(turn.conversation, turn.id);
        if (turn.stopped) stopTurn();
      }
      if (event.type === "response.output_text.delta") live.write(event.delta);
      else if (event.type === "response.reasoning_text.delta") live.reason(event.delta);
      else if (event.type === "response.file_search_call.in_progress") live.note("searched");
      else if (event.type === "response.created" || event.type === "response.in_progress") live.state("waiting");
      if (event.response && event.response.status !== "in_progress" && event.response.status !== "queued") ended = event.response;
    }
  } catch (error) {
    if (signal.aborted) return;
    problem = error;
  }
  if (running.get(turn.conversation) === turn.id) running.remove(turn.conversation);
  if (signal.aborted) return;
  const failed = ended === null || ended.status === "failed";
  if (!follows && (failed || ended.status === "cancelled")) await keep(turn, ended, live, content, problem);
  if (!finish(turn)) return;
  try {
    await load();
  } catch (error) {
    warn(error.message);
    draw();
  }
  if (open.id !== turn.conversation) return;
  if (failed) showFailure(problem ?? ended?.error, content);
  else announce(text("written"));
  if (ended?.status === "incomplete") warn(text("cut"));
  channel.postMessage(turn.conversation);
  toEnd();
  refreshChats();
}

// A cancelled or failed turn is not in the conversation; the question, and the text so far, are added to it.
async function keep(turn, ended, live, content, problem) {
  if (problem && problem.status === 0) return;
  const { question, answer } = (!live.text.trim() && turn.replaced) || {};
  const items = [item("user", answer ? question : content)];
  if (answer) items.push(item("assistant", answer));
  if (live.text.trim() && ended?.status === "cancelled") items.push(item("assistant", live.text, "incomplete"));
  try {
    await json(`/v1/conversations/${turn.conversation}/items`, { method: "POST", body: { items } });
  } catch (error) {
    warn(error.message);
  }
}

function showFailure(problem, content) {
  const limited = problem?.status === 429 || problem?.code === "rate_limit_exceeded" || problem?.code === "insufficient_quota";
  const stored = lastUserAt() === open.items.length - 1 && open.items[lastUserAt()]?.text === content;
  if (!stored) {
    const lost = userMessage({ text: content });
    messages.append(lost);
  }
  const heading = text(limited ? "limit_reached" : "failed");
  messages.append(errorMessage(heading, problem?.message, () => (stored ? repeatLast(content) : send(content))));
  warn(`${heading}. ${problem?.message ?? ""}`);
}

export async function stopTurn() {
  const { turn } = open;
  if (!turn) return;
  turn.stopped = true;
  if (!turn.id) return;
  try {
    await json(`/v1/responses/${turn.id}/cancel`, { method: "POST" });
  } catch (error) {
    if (error.status !== 404) warn(error.message);
  }
}

// Removes the last question with everything after it, then sends `content` in its place.
export async function repeatLast(content) {
  if (open.turn) return;
  const chat = open.id;
  const at = lastUserAt();
  const answers = open.items.slice(at + 1).filter((one) => one.type === "message" && one.text);
  const replaced = { question: open.items[at]?.text, answer: answers.map((one) => one.text).join("\n\n") };
  const turn = begin();
  try {
    for (const one of open.items.slice(Math.max(at, 0)).reverse()) {
      await json(`/v1/conversations/${chat}/items/${one.id}`, { method: "DELETE" });
      open.items.pop();
    }
  } catch (error) {
    finish(turn);
    hooks.composing(content, { restore: true });
    warn(error.message);
    await load().catch(() => {});
    return;
  }
  if (!finish(turn) || open.id !== chat) return;
  draw();
  await send(content, replaced);
}

// Changes by other tabs, and by other clients of this user.

async function catchUp(id) {
  if (open.id !== id || open.turn) return;
  try {
    await load();
  } catch (error) {
    if (error.status === 404) openChat(id);
    return;
  }
  resume();
}

channel.addEventListener("message", ({ data }) => {
  refreshChats();
  catchUp(data);
});
addEventListener("storage", (event) => {
  if (event.newValue && running.conversationOf(event.key) === open.id) catchUp(open.id);
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && open.id) catchUp(open.id);
});

export function chatDeleted(id) {
  channel.postMessage(id);
}
