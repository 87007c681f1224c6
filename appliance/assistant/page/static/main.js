// The page: what belongs to the frame around chats and messages.
import "./account.js";
import { json } from "./api.js";
import { announce, ask, by, make, warn } from "./dom.js";
import { refreshChats, titleOf } from "./chats.js";
import {
  chatDeleted, ensureStore, lastUserText, open, openChat, openNew, repeatLast, send, setMetadata, setUpConversation, stopTurn,
} from "./conversation.js";
import { addFiles, deleteStore, setUpFiles } from "./files.js";
import { text } from "./texts.js";
import { setUpVoice } from "./voice.js";

const field = by("message");
const picker = by("model");
const roles = new Set();
const fine = matchMedia("(pointer: fine)");
const narrow = matchMedia("(max-width: 820px)");
let style = ""; // Of a chat that does not exist yet.
let editing = false;

// The composer.

const draftKey = () => `draft:${open.id ?? ""}`;

function fit() {
  field.style.setProperty("height", "auto");
  field.style.setProperty("height", `${Math.min(field.scrollHeight, 0.4 * innerHeight)}px`);
  by("send").disabled = !field.value.trim();
}

function compose(content, { restore = false } = {}) {
  field.value = content;
  edit(!restore && content !== "");
  field.focus();
  fit();
}

function edit(on) {
  editing = on;
  by("editing").hidden = !on;
}

function changed() {
  const busy = open.turn !== null;
  by("send").hidden = busy;
  by("stop").hidden = !busy;
  const named = open.metadata.model || open.metadata.role;
  if (open.id && [...picker.options].some((one) => one.value === named)) picker.value = named;
  by("style").textContent = text((open.id ? open.metadata.instructions : style) ? "style_set" : "style");
  fit();
}

async function submit() {
  const content = field.value.trim();
  if (!content || open.turn) return;
  if (!navigator.onLine) {
    warn(text("offline"));
    return;
  }
  if (!picker.value) {
    warn(text("no_models"));
    return;
  }
  const edited = editing;
  sessionStorage.removeItem(draftKey());
  compose("", { restore: true });
  await (edited ? repeatLast(content) : send(content));
  style = "";
}

by("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
field.addEventListener("input", () => {
  fit();
  sessionStorage.setItem(draftKey(), field.value);
});
field.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (fine.matches && !event.shiftKey))) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !field.value && lastUserText() !== null) {
    event.preventDefault();
    compose(lastUserText());
  }
});
by("stop").addEventListener("click", stopTurn);
by("stop-editing").addEventListener("click", () => compose("", { restore: true }));

// Models and roles.

async function loadModels() {
  const page = await json("/v1/models");
  const chat = page.data.filter((card) => (card.task ?? "generate") === "generate");
  for (const card of chat) {
    if (card.root) roles.add(card.id);
    picker.append(make("option", { value: card.id }, card.id));
  }
  const stored = localStorage.getItem("model");
  if (chat.some((card) => card.id === stored)) picker.value = stored;
  const voice = page.data.find((card) => card.task === "transcribe");
  setUpVoice(voice?.id, (words) => compose([field.value, words].filter(Boolean).join(" "), { restore: true }));
  if (!chat.length) warn(text("no_models"));
}

const named = (model) => ({ model, role: roles.has(model) ? model : "" });

picker.addEventListener("change", async () => {
  localStorage.setItem("model", picker.value);
  if (open.id) await setMetadata(named(picker.value)).catch((error) => warn(error.message));
});

async function askText({ heading, lead = "", value, long }) {
  by("text-heading").textContent = heading;
  by("text-lead").textContent = lead;
  const [shown, other] = long ? [by("text-area"), by("text-line")] : [by("text-line"), by("text-area")];
  other.hidden = true;
  shown.hidden = false;
  shown.value = value;
  const answer = ask(by("text-dialog"));
  shown.focus();
  shown.select();
  return (await answer) ? shown.value.trim() : null;
}

async function askStyle() {
  const value = open.id ? (open.metadata.instructions ?? "") : style;
  const given = await askText({ heading: text("style_heading"), lead: text("style_lead"), value, long: true });
  if (given === null) return;
  if (open.id) await setMetadata({ instructions: given }).catch((error) => warn(error.message));
  else style = given;
  changed();
}

by("style").addEventListener("click", askStyle);
by("restyle").addEventListener("click", askStyle);

// The actions of a chat.

const menu = by("chat-menu-list");

function showMenu(on) {
  menu.hidden = !on;
  by("chat-menu").setAttribute("aria-expanded", String(on));
  if (on) menu.querySelector("[role=menuitem]").focus();
}

by("chat-menu").addEventListener("click", () => showMenu(menu.hidden));
menu.addEventListener("click", () => showMenu(false));
menu.addEventListener("keydown", (event) => {
  const stops = [...menu.querySelectorAll("[role=menuitem]")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  stops[(stops.indexOf(document.activeElement) + step + stops.length) % stops.length].focus();
});
document.addEventListener("click", (event) => {
  if (!menu.hidden && !event.target.closest("#chat-actions")) showMenu(false);
});

by("rename").addEventListener("click", async () => {
  const title = await askText({ heading: text("rename_heading"), value: titleOf(open) });
  if (title) await setMetadata({ title }).catch((error) => warn(error.message));
});
by("delete").addEventListener("click", async () => {
  const { id, metadata } = open;
  if (!(await ask(by("delete-dialog")))) return;
  try {
    if (open.turn) await stopTurn();
    await json(`/v1/conversations/${id}`, { method: "DELETE" });
    if (metadata.vector_store) await deleteStore(metadata.vector_store);
  } catch (error) {
    if (error.status !== 404) warn(error.message);
  }
  chatDeleted(id);
  await refreshChats();
  start();
});

// Files.

setUpFiles(ensureStore);
by("attach").addEventListener("click", () => by("file-input").click());
by("file-input").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
let over = 0; // Elements under a file that is dragged; each has an event when it enters and leaves.
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => {
  if (carriesFiles(event)) by("drop").hidden = (over += 1) <= 0;
});
addEventListener("dragleave", (event) => {
  if (carriesFiles(event)) by("drop").hidden = (over -= 1) <= 0;
});
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  over = 0;
  by("drop").hidden = true;
  addFiles(event.dataTransfer.files);
});
field.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    addFiles(event.clipboardData.files);
  }
});

// The list of chats on narrow screens.

function showSidebar(on) {
  document.body.classList.toggle("menu-open", on);
  by("veil").hidden = !on;
  by("open-menu").setAttribute("aria-expanded", String(on));
  by("sidebar").inert = narrow.matches && !on;
  by("main").inert = narrow.matches && on;
  if (on) by("new-chat").focus();
}

by("open-menu").addEventListener("click", () => showSidebar(true));
by("close-menu").addEventListener("click", () => {
  showSidebar(false);
  by("open-menu").focus();
});
by("veil").addEventListener("click", () => showSidebar(false));
narrow.addEventListener("change", () => showSidebar(false));

// Addresses: `#conv_…` is a chat, anything else a new one.

function route() {
  const id = location.hash.slice(1);
  showSidebar(false);
  edit(false);
  if (!/^conv_[0-9a-z]+$/i.test(id)) openNew();
  else if (id !== open.id) openChat(id);
  field.value = sessionStorage.getItem(draftKey()) ?? "";
  fit();
  if (fine.matches) field.focus();
}

function start() {
  history.pushState(null, "", "/");
  route();
}

addEventListener("hashchange", route);
addEventListener("popstate", () => !location.hash && route());
by("new-chat").addEventListener("click", start);

// Keys of the whole page.

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.isComposing) return;
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    if (narrow.matches) showSidebar(true);
    by("search").focus();
  } else if (event.key === "Escape") {
    if (!menu.hidden) {
      showMenu(false);
      by("chat-menu").focus();
    } else if (document.body.classList.contains("menu-open")) {
      showSidebar(false);
      by("open-menu").focus();
    } else if (event.target === by("search")) field.focus();
    else if (open.turn) stopTurn();
    else if (editing) compose("", { restore: true });
  }
});

// The network.

function connection() {
  by("banner").hidden = navigator.onLine;
  by("banner").textContent = navigator.onLine ? "" : text("offline");
}

addEventListener("offline", connection);
addEventListener("online", () => {
  connection();
  announce(text("online"));
  refreshChats();
});

setUpConversation({
  changed,
  composing: compose,
  model: () => picker.value,
  settings: () => {
    const { model, role } = named(picker.value);
    return { model, ...(role && { role }), ...(style && { instructions: style }) };
  },
});
connection();
refreshChats();
await loadModels().catch((error) => warn(error.message));
route();
