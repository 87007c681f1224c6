// The list of chats: pages of it, the search, and the keys that move in it.
import { json } from "./api.js";
import { by, make, warn } from "./dom.js";
import { text } from "./texts.js";

const PAGE = 40;
const list = by("chats");
const field = by("search");
let last = null;
let query = "";
let number = 0; // Of the latest request: an older one that arrives later is dropped.
let current = null;

export const titleOf = (chat) => chat.metadata?.title || text("untitled");

function period(seconds) {
  const day = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((day(new Date()) - day(new Date(1000 * seconds))) / 86_400_000);
  return days <= 0 ? "today" : days === 1 ? "yesterday" : "earlier";
}

function add(chat) {
  const group = period(chat.updated_at);
  let section = list.querySelector(`section[data-group=${group}]:last-of-type`);
  if (!section) {
    section = make("section", { "data-group": group }, make("h2", {}, text(group)), make("ul"));
    list.append(section);
  }
  const link = make("a", { href: `#${chat.id}`, "data-chat": chat.id }, titleOf(chat));
  if (chat.id === current) link.setAttribute("aria-current", "page");
  section.querySelector("ul").append(make("li", {}, link));
}

async function load(after) {
  const mine = (number += 1);
  const parameters = new URLSearchParams({ limit: PAGE, ...(query && { query }), ...(after && { after }) });
  let page;
  try {
    page = await json(`/v1/conversations?${parameters}`);
  } catch (error) {
    warn(error.message);
    return;
  }
  if (mine !== number) return;
  if (!after) list.replaceChildren();
  list.querySelector(".more-chats")?.remove();
  page.data.forEach(add);
  last = page.last_id;
  if (!list.querySelector("a")) list.replaceChildren(make("p", { class: "empty" }, text(query ? "nothing_found" : "no_chats")));
  if (page.has_more) {
    const more = make("button", { type: "button", class: "quiet more-chats", onclick: () => load(last) }, text("more_chats"));
    list.append(more);
    watcher.disconnect();
    watcher.observe(more);
  }
}

const watcher = new IntersectionObserver((entries) => {
  if (entries.some((one) => one.isIntersecting)) {
    watcher.disconnect();
    load(last);
  }
}, { root: list });

export function refreshChats() {
  return load(null);
}

export function markChat(id) {
  current = id;
  for (const link of list.querySelectorAll("a")) {
    if (link.dataset.chat === id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

let timer;
field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => {
    query = field.value.trim();
    load(null);
  }, 150);
});

// Arrow keys move between the search and the chats.
by("sidebar").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const stops = [field, ...list.querySelectorAll("a")];
  const at = stops.indexOf(document.activeElement);
  if (at < 0) return;
  const next = stops[at + (event.key === "ArrowDown" ? 1 : -1)];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});
