/** The playground: one conversation or two, the composer below, the settings beside. */

import { IconButton, Icon } from "../parts/icons.js";
import { announce } from "../parts/announce.js";
import { html, useEffect, useRef, useState, useStore } from "../ui.js";
import { Composer } from "./composer.js";
import { SettingsPanel } from "./settings_panel.js";
import { Totals } from "./figures.js";
import { useFollowing } from "./following.js";
import { ImportError, exportLanes, importLanes } from "./transfer.js";
import { chosenTurns } from "./tree.js";
import { Turn } from "./turn.js";

const MOST_FILE_BYTES = 256 * 2 ** 20;

export function Playground({ session, chats }) {
  useStore(session);
  useStore(chats);
  const [isPanelOpen, setPanelOpen] = useState(false);
  const isPair = chats.lanes.length > 1;
  useEffect(() => {
    const press = (event) => {
      if (event.key === "Escape" && chats.isRunning && !document.querySelector("dialog[open]")) {
        chats.stop();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  return html`<div class=${isPair ? "playground pair" : "playground"}>
    <div class="chat">
      <${Toolbar} ...${{ session, chats, isPanelOpen }} onPanel=${() => setPanelOpen(!isPanelOpen)} />
      <div class="lanes">
        ${chats.lanes.map((lane, index) => html`<${Lane} key=${index} ...${{ session, chats, lane, index, isPair }} />`)}
      </div>
      <${Composer} ...${{ session, chats }} />
    </div>
    <${SettingsPanel} ...${{ chats, isOpen: isPanelOpen }} />
  </div>`;
}

function Toolbar({ session, chats, isPanelOpen, onPanel }) {
  const file = useRef(null);
  const [problem, setProblem] = useState("");
  const isPair = chats.lanes.length > 1;
  const load = async (event) => {
    const [chosen] = event.currentTarget.files;
    event.currentTarget.value = "";
    try {
      if (chosen.size > MOST_FILE_BYTES) {
        throw new ImportError("This file is too large.");
      }
      chats.replace(importLanes(await chosen.text()));
      setProblem("");
      announce("The conversation is imported.");
    } catch (error) {
      setProblem(error instanceof ImportError ? error.message : "This file cannot be read.");
    }
  };
  return html`<div class="toolbar" role="toolbar" aria-label="Conversation">
    <div class="row">
      <button type="button" class="quiet" aria-pressed=${isPair ? "true" : "false"} onClick=${() => chats.compare(!isPair)}>
        <${Icon} name="columns" /><span>Compare</span>
      </button>
      <button type="button" class="quiet" disabled=${chats.isEmpty} onClick=${() => save(session, chats)}><${Icon} name="download" /><span>Export</span></button>
      <button type="button" class="quiet" onClick=${() => file.current.click()}><${Icon} name="upload" /><span>Import</span></button>
      <input ref=${file} type="file" accept="application/json,.json" hidden aria-label="Conversation to import" onChange=${load} />
      <button type="button" class="quiet" disabled=${chats.isEmpty} onClick=${() => chats.clear()}><${Icon} name="trash" /><span>Clear</span></button>
      ${chats.cleared && html`<button type="button" class="quiet" onClick=${() => chats.undoClear()}>Undo</button>`}
    </div>
    <button type="button" class="quiet panel-button" aria-expanded=${isPanelOpen ? "true" : "false"} aria-controls="settings" onClick=${onPanel}>
      <${Icon} name="settings" /><span>Settings</span>
    </button>
    ${problem && html`<p class="toolbar-problem" role="alert">${problem}</p>`}
  </div>`;
}

function save(session, chats) {
  const text = exportLanes(chats.lanes, session.model?.id ?? "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `conversation-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function Lane({ session, chats, lane, index, isPair }) {
  const turns = chosenTurns(lane.tree);
  const end = useRef(null);
  const last = turns.at(-1);
  const follow = useFollowing(end, last?.id, last?.status);
  const pictures = [];
  const rows = turns.map((turn) => {
    pictures.push(...(turn.pictures ?? []));
    return html`<${Turn} key=${turn.id} ...${{ session, chats, lane, turn, follow }} pictures=${[...pictures]} />`;
  });
  const name = isPair ? `Conversation ${"AB"[index]}` : "Conversation";
  return html`<section class="lane" aria-label=${name}>
    ${isPair && html`<header class="lane-head">
      <button type="button" class="quiet" aria-pressed=${chats.active === index ? "true" : "false"} onClick=${() => { chats.active = index; chats.changed(); }}>
        <span class="lane-letter">${"AB"[index]}</span>
        <span>temperature ${lane.settings.temperature || "1"}${lane.settings.seed && `, seed ${lane.settings.seed}`}</span>
      </button>
    </header>`}
    ${rows.length ? rows : html`<${Empty} ...${{ session, chats }} />`}
    ${rows.length > 0 && html`<${Totals} turns=${turns} />`}
    <div ref=${end} class="lane-end"></div>
  </section>`;
}

const IDEAS = ["What is in this picture?", "Describe the colours and shapes you see.", "Write a short poem about a lighthouse.", "List three facts about the sea as a table."];

function Empty({ session, chats }) {
  return html`<div class="empty">
    <h2>Ask about a picture</h2>
    <p class="soft">Drop one anywhere here, paste it, or add it with the button below. What you write and attach stays in this browser and goes to this server only.</p>
    <ul class="ideas">
      ${IDEAS.map((idea) => html`<li key=${idea}><button type="button" class="idea" onClick=${() => { chats.setDraft({ text: idea }); document.getElementById("question")?.focus(); }}>${idea}</button></li>`)}
    </ul>
    ${!session.key && html`<button type="button" class="button primary" onClick=${() => session.ask()}>Enter API key</button>`}
  </div>`;
}
