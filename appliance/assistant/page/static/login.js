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

// A link from another site arrives without the cookie (SameSite=Strict); this request has it.
if (!field.value) {
  const session = await fetch("/session").catch(() => null);
  if (session?.ok) location.reload();
}
