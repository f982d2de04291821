/** One turn of a conversation: what was said, its pictures and calls, and what can be done with it. */

import { Problem } from "../parts/key_dialog.js";
import { copy } from "../parts/copy.js";
import { Icon, IconButton } from "../parts/icons.js";
import { html, useEffect, useId, useRef, useState } from "../ui.js";
import { WhereItLooked } from "./attention.js";
import { Calls } from "./calls.js";
import { Figures } from "./figures.js";
import { MarkdownView } from "./markdown_view.js";
import { branchOf } from "./tree.js";

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

export function Turn({ session, chats, lane, turn, pictures, follow }) {
  const [isEditing, setEditing] = useState(false);
  const running = chats.running.get(turn.id);
  return html`<article class=${`turn ${turn.role}`} aria-label=${NAMES[turn.role]} aria-busy=${running ? "true" : "false"}>
    <header class="turn-head"><span class="who">${NAMES[turn.role]}</span></header>
    <div class="turn-body">
      ${turn.pictures?.length > 0 && html`<ul class="thumbs">${turn.pictures.map((picture) => html`<li key=${picture.id}><${Thumb} picture=${picture} /></li>`)}</ul>`}
      ${isEditing
        ? html`<${Editor} ...${{ chats, lane, turn }} onClose=${() => setEditing(false)} />`
        : turn.role === "assistant"
          ? html`<${Answer} ...${{ session, chats, lane, turn, running, pictures, follow }} />`
          : html`<div class="said">${turn.text}</div>`}
    </div>
    ${!isEditing && !running && html`<${Actions} ...${{ session, chats, lane, turn }} onEdit=${() => setEditing(true)} />`}
  </article>`;
}

function Answer({ session, chats, lane, turn, running, pictures, follow }) {
  return html`<${AnswerText} ...${{ turn, running, follow }} />
    <${Calls} ...${{ session, chats, lane, turn, running }} />
    ${turn.error && html`<${Problem} problem=${turn.error}>
      <span class="row">
        ${turn.error.needsKey && html`<button type="button" class="button" onClick=${() => session.ask(() => chats.retry(lane, turn))}>Enter API key</button>`}
      </span>
    <//>`}
    ${turn.status === "stopped" && html`<p class="note">Stopped.</p>`}
    ${turn.figures && html`<${Figures} figures=${turn.figures} finishReason=${turn.finishReason} />`}
    ${turn.attention && html`<details class="looked-frame"><summary>Where it looked</summary><${WhereItLooked} attention=${turn.attention} pictures=${pictures} /></details>`}`;
}

function AnswerText({ turn, running, follow }) {
  const element = useRef(null);
  const view = useRef(null);
  const answer = running?.answer;
  useEffect(() => {
    view.current = new MarkdownView(element.current, () => element.current?.dataset.running && follow());
    return () => view.current.close();
  }, []);
  useEffect(() => {
    if (!answer) {
      view.current.show(turn.isJson ? asCode(turn.text) : turn.text, true);
      return undefined;
    }
    const show = () => {
      element.current.dataset.waiting = answer.text || answer.calls.length ? "" : "yes";
      view.current.show(answer.text, false);
    };
    show();
    return answer.watch(show);
  }, [answer, turn.text]);
  return html`<div ref=${element} class="markdown" data-running=${answer ? "yes" : undefined} data-waiting=${answer && !answer.text ? "yes" : undefined}></div>`;
}

/** An answer that is JSON is shown as such, indented. */
function asCode(text) {
  try {
    return `\`\`\`json\n${JSON.stringify(JSON.parse(text), null, 2)}\n\`\`\`\n`;
  } catch {
    return text;
  }
}

function Branches({ chats, lane, turn }) {
  const { index, count } = branchOf(lane.tree, turn);
  if (count < 2) {
    return null;
  }
  return html`<span class="branches" role="group" aria-label="Branches">
    <${IconButton} name="back" label="Earlier branch" disabled=${index === 0 || chats.isRunning} onClick=${() => chats.switchBranch(lane, turn, -1)} />
    <span>${index + 1}/${count}</span>
    <${IconButton} name="chevron" label="Later branch" disabled=${index === count - 1 || chats.isRunning} onClick=${() => chats.switchBranch(lane, turn, 1)} />
  </span>`;
}

function Actions({ session, chats, lane, turn, onEdit }) {
  const button = useRef(null);
  return html`<div class="actions">
    <${Branches} ...${{ chats, lane, turn }} />
    ${turn.text && html`<button ref=${button} type="button" class="quiet" onClick=${() => copy(button.current, turn.text, "Copy")}>Copy</button>`}
    ${turn.role === "assistant" && html`<button type="button" class="quiet" disabled=${chats.isRunning} onClick=${() => session.withKey(() => chats.retry(lane, turn))}>Retry</button>`}
    ${turn.role === "user" && html`<button type="button" class="quiet" disabled=${chats.isRunning} onClick=${onEdit}>Edit</button>`}
  </div>`;
}

function Editor({ chats, lane, turn, onClose }) {
  const input = useRef(null);
  const field = useId("edit");
  useEffect(() => input.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    chats.edit(lane, turn, input.current.value);
    onClose();
  };
  const press = (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      onClose();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      submit(event);
    }
  };
  return html`<form class="stack" onSubmit=${submit}>
    <label class="off-screen" for=${field}>Your words</label>
    <textarea ref=${input} id=${field} rows="4" onKeyDown=${press}>${turn.text}</textarea>
    <div class="row end">
      <button type="button" class="button" onClick=${onClose}>Cancel</button>
      <button type="submit" class="button primary">Ask again</button>
    </div>
  </form>`;
}

/** A small picture; one at an address is not loaded, only named. @param {{picture: import("./tree.js").Picture}} props */
export function Thumb({ picture }) {
  return picture.data
    ? html`<img class="thumb" src=${picture.data} alt=${picture.name} title=${picture.name} />`
    : html`<span class="thumb address" title=${picture.url}><${Icon} name="link" /><span>${picture.name}</span></span>`;
}
