// The texts of the page's language, from the server's table.
const table = JSON.parse(document.body.dataset.texts);

export function text(key) {
  return table[key] ?? key;
}
