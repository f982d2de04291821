/** Code with a copy button, which copies exactly what is shown. */

import { html, useLayoutEffect, useRef } from "../ui.js";
import { copy } from "./copy.js";
import { highlight } from "./highlight.js";

/** @param {{text: string, language: string, label: string}} props */
export function CodeBlock({ text, language, label }) {
  const code = useRef(null);
  const button = useRef(null);
  useLayoutEffect(() => {
    code.current.textContent = text;
    button.current.textContent = "Copy";
    highlight(code.current, language);
  }, [text, language]);
  return html`<div class="code">
    <div class="code-head"><span>${label}</span><button ref=${button} type="button" class="copy" onClick=${() => copy(button.current, text, "Copy")}>Copy</button></div>
    <pre tabindex="0" aria-label=${label}><code ref=${code}></code></pre>
  </div>`;
}
