// The log-in: without scripts the form works as well.
import { text } from "./texts.js";

const form = document.getElementById("login");
const field = document.getElementById("key");
const error = document.getElementById("login-error");

function show(message) {
  error.textContent = message;
  error.hidden = !message;
  field.setAttribute("aria-invalid", String(Boolean(message)));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  show("");
  form.querySelector("button").disabled = true;
  try {
    const response = await fetch("/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ key: field.value.trim() }),
    });
    if (response.ok) {
      field.value = "";
      location.reload();
      return;
    }
    show(text(response.status === 401 ? "login_failed" : response.status === 403 ? "login_https" : "login_unreachable"));
  } catch {
    show(text("login_unreachable"));
  }
  form.querySelector("button").disabled = false;
  field.select();
  field.focus();
});

for (const link of document.querySelectorAll("[data-language]")) {
  link.addEventListener("click", () => localStorage.setItem("language", link.dataset.language));
}

// A link from another site arrives without the cookie (SameSite=Strict); this request has it. Firefox's reload repeats
// the navigation of the other site, again without the cookie, so this page navigates itself. If that has no session
// either, a second attempt within PAUSE_MS would begin an endless row.
const PAUSE_MS = 30_000;
if (!field.value && Date.now() - Number(sessionStorage.getItem("entered")) > PAUSE_MS) {
  const session = await fetch("/session").catch(() => null);
  if (session?.ok) {
    sessionStorage.setItem("entered", String(Date.now()));
    const query = new URLSearchParams(location.search);
    query.set("entered", "");
    location.replace(`/?${query}${location.hash}`);
  }
}
