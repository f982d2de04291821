/** The side panel: how the active conversation is answered. */

import { html, useId } from "../ui.js";
import { readSettings } from "./settings.js";

export function SettingsPanel({ chats, isOpen }) {
  const { settings } = chats.lanes[chats.active];
  const { problems } = readSettings(settings);
  const set = (name) => (event) => chats.setSetting(name, event.currentTarget.value);
  const shared = { settings, problems, set };
  return html`<aside id="settings" class=${isOpen ? "panel open" : "panel"} aria-label="Settings">
    <h2>Settings${chats.lanes.length > 1 && html`<span class="tag">${"AB"[chats.active]}</span>`}</h2>
    <${Area} ...${shared} name="system" label="System prompt" rows="3" placeholder="How the model should answer" />
    <${Slider} ...${shared} name="temperature" label="Temperature" min="0" max="2" step="0.05" usual="1" />
    <${Slider} ...${shared} name="topP" label="Top P" min="0.05" max="1" step="0.05" usual="1" />
    <div class="pair-of-fields">
      <${Field} ...${shared} name="maxTokens" label="Max tokens" placeholder="most" />
      <${Field} ...${shared} name="seed" label="Seed" placeholder="random" />
    </div>
    <${Area} ...${shared} name="stop" label="Stop strings, one a line" rows="2" mono />
    <fieldset class="field">
      <legend>Detail of pictures</legend>
      <div class="choice">
        ${["auto", "low", "high"].map((detail) => html`<label key=${detail}><input type="radio" name="detail" value=${detail} checked=${settings.detail === detail} onChange=${set("detail")} /><span>${detail}</span></label>`)}
      </div>
    </fieldset>
    <label class="switch"><input type="checkbox" role="switch" checked=${settings.attention} onChange=${(event) => chats.setSetting("attention", event.currentTarget.checked)} /><span>Show where it looked</span></label>
    <details open=${Boolean(settings.schema)}>
      <summary>JSON schema</summary>
      <${Area} ...${shared} name="schema" label="The answer is held to this schema" rows="6" mono placeholder=${'{"type": "object", "properties": {…}}'} />
    </details>
    <details open=${Boolean(settings.tools)}>
      <summary>Tools</summary>
      <${Area} ...${shared} name="tools" label="Functions that the model may call" rows="6" mono placeholder=${'[{"name": "…", "description": "…", "parameters": {…}}]'} />
    </details>
  </aside>`;
}

function Note({ id, problem }) {
  return problem ? html`<span id=${id} class="bad">${problem}</span>` : null;
}

function Area({ settings, problems, set, name, label, rows, placeholder, mono = false }) {
  const id = useId("field");
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <textarea id=${id} rows=${rows} class=${mono ? "mono" : ""} spellcheck=${!mono} value=${settings[name]} placeholder=${placeholder}
      aria-invalid=${problems[name] ? "true" : "false"} aria-describedby=${`${id}-note`} onInput=${set(name)}></textarea>
    <${Note} id=${`${id}-note`} problem=${problems[name]} />
  </div>`;
}

function Field({ settings, problems, set, name, label, placeholder }) {
  const id = useId("field");
  return html`<div class="field">
    <label for=${id}>${label}</label>
    <input id=${id} inputmode="numeric" value=${settings[name]} placeholder=${placeholder}
      aria-invalid=${problems[name] ? "true" : "false"} aria-describedby=${`${id}-note`} onInput=${set(name)} />
    <${Note} id=${`${id}-note`} problem=${problems[name]} />
  </div>`;
}

function Slider({ settings, problems, set, name, label, usual, ...limits }) {
  const id = useId("field");
  return html`<div class="field">
    <div class="slider-head">
      <label for=${id}>${label}</label>
      <input class="slider-number" inputmode="decimal" aria-label=${`${label}, as a number`} value=${settings[name]} placeholder=${usual}
        aria-invalid=${problems[name] ? "true" : "false"} aria-describedby=${`${id}-note`} onInput=${set(name)} />
    </div>
    <input id=${id} type="range" ...${limits} value=${settings[name] || usual} onInput=${set(name)} />
    <${Note} id=${`${id}-note`} problem=${problems[name]} />
  </div>`;
}
