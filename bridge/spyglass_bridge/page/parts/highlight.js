/** Colours code. The highlighter and its languages are loaded when the first code of theirs is shown. */

const MOST_CHARACTERS = 12_000;
const ALIASES = {
  bash: ["bash", "sh", "shell", "zsh", "console"],
  css: ["css"],
  go: ["go", "golang"],
  java: ["java"],
  javascript: ["javascript", "js", "jsx", "mjs"],
  json: ["json", "jsonc"],
  python: ["python", "py"],
  rust: ["rust", "rs"],
  sql: ["sql"],
  typescript: ["typescript", "ts", "tsx"],
  xml: ["xml", "html", "svg"],
  yaml: ["yaml", "yml"],
};
const LANGUAGES = new Map(Object.entries(ALIASES).flatMap(([name, aliases]) => aliases.map((alias) => [alias, name])));
const KINDS = {
  "hljs-keyword": "k-name",
  "hljs-built_in": "k-name",
  "hljs-type": "k-name",
  "hljs-literal": "k-number",
  "hljs-number": "k-number",
  "hljs-string": "k-text",
  "hljs-attr": "k-key",
  "hljs-attribute": "k-key",
  "hljs-property": "k-key",
  "hljs-title": "k-key",
  "hljs-tag": "k-key",
  "hljs-name": "k-key",
  "hljs-variable": "k-number",
  "hljs-comment": "k-quiet",
  "hljs-meta": "k-quiet",
};

const loaded = new Map();

/** @param {string} name a language that there is */
function load(name) {
  if (!loaded.has(name)) {
    const files = [import("../vendor/highlight/core.js"), import(`../vendor/highlight/${name}.js`)];
    loaded.set(
      name,
      Promise.all(files).then(([core, language]) => {
        core.default.registerLanguage(name, language.default);
        return core.default;
      }),
    );
  }
  return loaded.get(name);
}

/**
 * Colours the text of an element, in its own time; without a known language it stays as it is.
 * @param {HTMLElement} code
 * @param {string} language as people name it
 */
export async function highlight(code, language) {
  const name = LANGUAGES.get(language.toLowerCase());
  const text = code.textContent ?? "";
  if (!name || text.length > MOST_CHARACTERS) {
    return;
  }
  try {
    const highlighter = await load(name);
    if (code.textContent === text) {
      const parsed = new DOMParser().parseFromString(highlighter.highlight(text, { language: name }).value, "text/html");
      code.replaceChildren(...Array.from(parsed.body.childNodes, copyColours));
    }
  } catch {
    // It stays without colours.
  }
}

/** Of what the highlighter wrote only text and its kinds are taken over. */
function copyColours(node) {
  if (node.nodeType === Node.TEXT_NODE) {
    return document.createTextNode(node.data);
  }
  const span = document.createElement("span");
  const kind = [...(node.classList ?? [])].map((one) => KINDS[one]).find(Boolean);
  if (kind) {
    span.className = kind;
  }
  span.append(...Array.from(node.childNodes, copyColours));
  return span;
}
