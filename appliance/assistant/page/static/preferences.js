// Runs before the first paint: the chosen appearance and language, without a flash of the others.
(() => {
  const root = document.documentElement;
  const stored = (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null; // Storage is blocked: the system's preferences apply.
    }
  };
  const theme = stored("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const language = stored("language");
  const query = new URLSearchParams(location.search);
  if (language && language !== root.lang && query.get("lang") !== language) {
    query.set("lang", language);
    location.replace(`/?${query}${location.hash}`);
  }
})();
