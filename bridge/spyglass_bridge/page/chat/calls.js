/** The tools that an answer calls, as cards, and a way to send their results back. */

import { html, useEffect, useId, useState } from "../ui.js";

export function Calls({ session, chats, lane, turn, running }) {
  const [, setCount] = useState(0);
  const answer = running?.answer;
  useEffect(() => answer?.watch(() => answer.calls.length && setCount((count) => count + 1)), [answer]);
  const calls = (answer ? answer.calls : turn.calls) ?? [];
  if (!calls.length) {
    return null;
  }
  const isOpen = !answer && turn.children.length === 0 && turn.status === "done";
  return html`<div class="calls">
    ${calls.filter(Boolean).map((call, index) => html`<${Card} key=${index} call=${call} />`)}
    ${isOpen && html`<${Results} ...${{ session, chats, lane, turn, calls }} />`}
  </div>`;
}

function Card({ call }) {
  return html`<section class="call" aria-label=${`Call of ${call.name}`}>
    <header><span class="tag">calls</span> <code>${call.name || "…"}</code></header>
    <pre tabindex="0" aria-label="Arguments">${indented(call.arguments)}</pre>
  </section>`;
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function Results({ session, chats, lane, turn, calls }) {
  const [results, setResults] = useState(calls.map(() => ""));
  const prefix = useId("result");
  const submit = (event) => {
    event.preventDefault();
    session.withKey(() => chats.giveResults(lane, turn, results));
  };
  return html`<form class="stack results" onSubmit=${submit}>
    ${calls.map((call, index) => html`<div class="field" key=${index}>
      <label for=${`${prefix}-${index}`}>Result of ${call.name}</label>
      <textarea
        id=${`${prefix}-${index}`} rows="2" class="mono" value=${results[index]} placeholder="What the tool returns, as text or JSON"
        onInput=${(event) => setResults(results.map((one, place) => (place === index ? event.currentTarget.value : one)))}
      ></textarea>
    </div>`)}
    <div class="row end"><button type="submit" class="button" disabled=${chats.isRunning}>Send ${calls.length > 1 ? "results" : "result"}</button></div>
  </form>`;
}
