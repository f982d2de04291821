/** Asks for the key, tries it, and says what is wrong with one that is not taken. */

import { explain } from "../api.js";
import { html, useEffect, useId, useRef, useState, useStore } from "../ui.js";
import { Dialog } from "./dialog.js";

export function KeyDialog({ session }) {
  useStore(session);
  return session.isAsking ? html`<${Form} session=${session} />` : null;
}

function Form({ session }) {
  const [problem, setProblem] = useState(session.problem);
  const [isBusy, setBusy] = useState(false);
  const input = useRef(null);
  const field = useId("key");
  const note = useId("note");
  useEffect(() => input.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const key = input.current.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) {
      setProblem({ title: "This is no key", detail: "A key has letters, digits and signs, and no spaces." });
      return;
    }
    setBusy(true);
    try {
      await session.enter(key);
    } catch (error) {
      setProblem(explain(error));
      setBusy(false);
      input.current?.focus();
    }
  };
  return html`<${Dialog} title="Your API key" onClose=${() => session.stopAsking()}>
    <form class="stack" onSubmit=${submit}>
      <p id=${note} class="soft">It is kept in this tab until you close it, and travels in a header to this server only.</p>
      <div class="field">
        <label for=${field}>API key</label>
        <input
          ref=${input} id=${field} type="password" autocomplete="off" spellcheck=${false} required
          aria-describedby=${note} aria-invalid=${problem ? "true" : "false"} placeholder="sk-…"
        />
      </div>
      ${problem && html`<${Problem} problem=${problem} />`}
      <div class="row end">
        ${session.key && html`<button type="button" class="button" onClick=${() => { session.forget(); session.stopAsking(); }}>Forget the key</button>`}
        <button type="submit" class="button primary" disabled=${isBusy}>${isBusy ? "Trying it…" : "Use this key"}</button>
      </div>
    </form>
  <//>`;
}

/** An error in words. @param {{problem: {title: string, detail: string}, children?: unknown}} props */
export function Problem({ problem, children }) {
  return html`<div class="problem" role="alert"><strong>${problem.title}</strong><span>${problem.detail}</span>${children}</div>`;
}
