// The account: usage, appearance, language, log-out.
import { json, request, sessionEnded } from "./api.js";
import { by, make, warn } from "./dom.js";
import { text } from "./texts.js";
import { running } from "./turn.js";

const dialog = by("account-dialog");
const page = document.documentElement.lang;
const language = navigator.languages.find((one) => one.split("-")[0] === page) ?? page; // With the region, for dates.
const figures = new Intl.NumberFormat(language);

function moment(value) {
  const date = new Date(typeof value === "number" ? 1000 * value : value);
  return Number.isNaN(date.getTime())
    ? null
    : new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(date);
}

// One period of `GET /v1/usage`: tokens used, their limit (null for none), the rest, the time of the next period.
function meter(label, period) {
  const used = period?.used ?? 0;
  const limit = period?.limit ?? null;
  const amount = limit === null ? `${figures.format(used)} · ${text("unlimited")}` : `${figures.format(used)} ${text("used_of")} ${figures.format(limit)}`;
  const resets = period?.reset_at ? moment(period.reset_at) : null;
  const left = limit === null ? null : `${text("remaining")} ${figures.format(period.remaining ?? Math.max(0, limit - used))}`;
  const note = [left, resets ? `${text("resets")} ${resets}` : null].filter(Boolean).join(" · ");
  return make(
    "div",
    { class: "meter" },
    make("div", { class: "meter-head" }, make("span", {}, text(label)), make("strong", {}, amount)),
    limit === null ? null : make("meter", { min: 0, max: limit, high: 0.8 * limit, optimum: 0, value: Math.min(used, limit), "aria-label": text(label) }),
    note ? make("p", { class: "note" }, note) : null,
  );
}

async function showUsage() {
  const place = by("usage");
  place.replaceChildren(make("p", { class: "note" }, "…"));
  let usage;
  try {
    usage = await json("/v1/usage");
  } catch (error) {
    place.replaceChildren(make("p", { class: "note" }, error.status === 404 ? text("usage_missing") : error.message));
    return;
  }
  const { plan, price } = usage;
  const rows = ["requests_per_minute", "tokens_per_minute", "requests_in_flight"]
    .filter((name) => Number.isFinite(usage.limits?.[name]))
    .map((name) => make("div", {}, make("dt", {}, text(name)), make("dd", {}, figures.format(usage.limits[name]))));
  place.replaceChildren(
    ...(plan ? [make("p", { class: "plan" }, `${text("plan")}: `, make("strong", {}, plan), price ? ` · ${price}` : "")] : []),
    ...(usage.today ? [meter("tokens_day", usage.today)] : []),
    ...(usage.month ? [meter("tokens_month", usage.month)] : []),
    ...(rows.length ? [make("dl", { class: "limits" }, ...rows)] : []),
  );
}

by("account").addEventListener("click", () => {
  const theme = localStorage.getItem("theme") ?? "auto";
  for (const input of by("theme").querySelectorAll("input")) input.checked = input.value === theme;
  dialog.showModal();
  showUsage();
});

by("theme").addEventListener("change", (event) => {
  const theme = event.target.value;
  if (theme === "auto") {
    localStorage.removeItem("theme");
    delete document.documentElement.dataset.theme;
  } else {
    localStorage.setItem("theme", theme);
    document.documentElement.dataset.theme = theme;
  }
});

by("language").addEventListener("change", (event) => {
  localStorage.setItem("language", event.target.value);
  location.assign(`/?lang=${event.target.value}${location.hash}`);
});

const channel = new BroadcastChannel("session");
channel.addEventListener("message", () => location.reload());

by("logout").addEventListener("click", async () => {
  try {
    await request("/session", { method: "DELETE" });
  } catch (error) {
    warn(error.message);
    return;
  }
  running.clear();
  sessionStorage.clear();
  channel.postMessage("ended");
  history.replaceState(null, "", "/");
  sessionEnded();
});
