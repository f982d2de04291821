/**
 * Markdown of a model, which nobody trusts, as elements. HTML in it is shown as text; pictures in it are links and are
 * not loaded; links open apart and tell the other site nothing. What comes out is sanitized once more.
 */

import { Marked } from "../vendor/marked.js";
import createPurifier from "../vendor/purify.js";
import { copyButton } from "../parts/copy.js";
import { highlight } from "../parts/highlight.js";

const TAGS = ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p"].concat(
  ["pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
);
const SAFE_LINK = /^(?:https?|mailto):/i;

/** @param {string} text */
function escape(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const parser = new Marked({
  gfm: true,
  async: false,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code: ({ text, lang }) => {
      const language = /^[\w+#-]{1,24}/.exec(lang ?? "")?.[0] ?? "";
      return `<pre><code class="language-${escape(language)}">${escape(text)}</code></pre>`;
    },
  },
});

const purifier = createPurifier(window);
purifier.addHook("afterSanitizeAttributes", (element) => {
  if (element.nodeName === "A") {
    if (!SAFE_LINK.test(element.getAttribute("href") ?? "")) {
      element.removeAttribute("href");
    }
    element.setAttribute("target", "_blank");
    element.setAttribute("rel", "noopener noreferrer nofollow");
  } else if (element.nodeName !== "CODE") {
    element.removeAttribute("class");
  }
});

/**
 * @param {string} text
 * @returns {DocumentFragment}
 */
export function renderMarkdown(text) {
  const fragment = purifier.sanitize(/** @type {string} */ (parser.parse(text)), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["align", "class", "href", "start", "title"],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const pre of fragment.querySelectorAll("pre")) {
    dressCode(pre);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table-frame";
    frame.tabIndex = 0;
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/** Puts a head with the language and a copy button above code, and colours it. */
function dressCode(pre) {
  const code = pre.querySelector("code");
  if (!code) {
    return;
  }
  const language = [...code.classList].find((name) => name.startsWith("language-"))?.slice("language-".length) ?? "";
  code.removeAttribute("class");
  const frame = document.createElement("div");
  frame.className = "code";
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = language || "text";
  const text = code.textContent ?? "";
  head.append(name, copyButton(() => text));
  pre.replaceWith(frame);
  pre.tabIndex = 0;
  frame.append(head, pre);
  highlight(code, language);
}

/** Code whose end has not come: text in the frame that it will have. */
export function openCode() {
  const pre = document.createElement("pre");
  const code = document.createElement("code");
  pre.append(code);
  pre.tabIndex = 0;
  const frame = document.createElement("div");
  frame.className = "code";
  frame.append(pre);
  return { frame, code };
}
