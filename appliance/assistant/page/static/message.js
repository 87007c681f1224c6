// The elements of messages. Only `html`, which the server has made safe, enters the page as HTML.
import { announce, by, make, warn } from "./dom.js";
import { text } from "./texts.js";

function button(label, run, more = {}) {
  return make("button", { type: "button", class: "link", onclick: run, ...more }, label);
}

async function copy(content) {
  try {
    await navigator.clipboard.writeText(content);
    announce(text("copied"));
    return true;
  } catch {
    warn(text("copy_failed"));
    return false;
  }
}

export function copyButton(content) {
  const element = button(text("copy"), async () => {
    if (await copy(content())) {
      element.textContent = text("copied");
      setTimeout(() => (element.textContent = text("copy")), 1500);
    }
  });
  return element;
}

function decorate(body) {
  for (const block of body.querySelectorAll(".codeblock")) {
    const code = block.querySelector("pre");
    code.tabIndex = 0;
    block.append(copyButton(() => code.textContent));
  }
  for (const table of body.querySelectorAll("table")) {
    const frame = make("div", { class: "table", tabindex: "0", role: "region", "aria-label": "" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const cell of body.querySelectorAll("td.more")) {
    cell.colSpan = 100;
    cell.append(` ${text("table_more")}`);
  }
}

export function userMessage({ id = "", text: content, images = 0 }) {
  const note = images ? make("p", { class: "note" }, text("images")) : null;
  const actions = make("div", { class: "actions" }, copyButton(() => content));
  return make(
    "article",
    { class: "user", "data-id": id, "aria-label": text("you") },
    make("div", { class: "bubble" }, content),
    note,
    actions,
  );
}

export function assistantMessage(item, sources) {
  const body = make("div", { class: "markdown" });
  body.innerHTML = item.html;
  decorate(body);
  const note = item.status === "incomplete" ? make("p", { class: "note" }, text("stopped")) : null;
  return make(
    "article",
    { class: "assistant", "data-id": item.id, "aria-label": text("assistant") },
    body,
    note,
    sourceList(item, sources),
    make("div", { class: "actions" }, copyButton(() => item.text)),
  );
}

export function reasoningMessage(content, open = false) {
  return make(
    "details",
    { class: "reasoning", open },
    make("summary", {}, text("reasoning")),
    make("div", { class: "plain" }, content),
  );
}

export function toolMessage(item) {
  const named = item.type === "file_search_call" ? text("searched") : `${text("tool")}: ${item.name}`;
  const queries = (item.queries ?? []).join(" · ");
  return make("p", { class: "tool", "data-id": item.id }, named, queries ? make("span", {}, queries) : null);
}

export function errorMessage(heading, message, onRetry) {
  return make(
    "div",
    { class: "failure" },
    make("p", {}, make("strong", {}, heading)),
    message ? make("p", {}, message) : null,
    onRetry ? button(text("retry"), onRetry, { class: "plain" }) : null,
  );
}

// The number in the text at which an annotation points; its index counts characters, not UTF-16 units.
function numberAt(characters, index) {
  return /^\[(\d{1,4})/.exec(characters.slice(index, index + 6).join(""))?.[1] ?? null;
}

function sourceList(item, sources) {
  const characters = Array.from(item.text ?? "");
  const seen = new Map();
  for (const one of item.annotations ?? []) {
    const key = one.file_id ?? one.url ?? one.conversation_id;
    if (key && !seen.has(key)) seen.set(key, one);
  }
  if (!seen.size) return null;
  const list = make("ul", { class: "sources", "aria-label": text("sources") });
  for (const one of seen.values()) {
    const number = numberAt(characters, one.index ?? one.start_index ?? 0);
    const label = [number ? make("b", {}, number) : null, one.filename || one.title || one.url || text("source")];
    let chip;
    if (one.type === "url_citation") {
      const safe = /^https?:\/\//i.test(one.url ?? "");
      chip = make("a", { class: "chip", href: safe ? one.url : null, target: "_blank", rel: "noopener noreferrer nofollow" }, ...label);
    } else if (one.type === "conversation_citation") {
      chip = make("a", { class: "chip", href: `#${one.conversation_id}` }, ...label);
    } else {
      chip = make("button", { class: "chip", type: "button", onclick: () => showSource(one, sources) }, ...label);
    }
    list.append(make("li", {}, chip));
  }
  return list;
}

function showSource(citation, sources) {
  by("source-heading").textContent = citation.filename || text("source");
  const passages = sources.get(citation.file_id) ?? [];
  by("source-body").replaceChildren(
    ...(passages.length
      ? passages.map((passage) => make("blockquote", { class: "plain" }, passage))
      : [make("p", {}, text("no_passage"))]),
  );
  by("source-download").href = `/v1/files/${encodeURIComponent(citation.file_id)}/content`;
  by("source-download").setAttribute("download", citation.filename || "");
  by("source-dialog").showModal();
}

export { button };
