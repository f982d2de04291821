/** The bar at the top: whose page it is, how the server is, the key, and light or dark. */

import { speed } from "../format.js";
import { html, useState, useStore } from "../ui.js";
import { Icon, IconButton } from "./icons.js";
import { THEMES, applyTheme, chosenTheme } from "./theme.js";

const TONES = { ready: "good", busy: "warn", loading: "warn", draining: "warn" };

export function TopBar({ session }) {
  useStore(session);
  return html`<header class="top">
    <a class="brand" href="/"><img src="/page/icon.svg" alt="" width="26" height="26" />Spyglass</a>
    <${State} status=${session.status} />
    <div class="row">
      <${ThemeButton} />
      <button type="button" class="button" onClick=${() => session.ask()}>
        <${Icon} name="key" />${session.key ? "Key" : "Enter API key"}
        ${session.problem && html`<span class="dot bad" title=${session.problem.title}></span>`}
      </button>
    </div>
  </header>`;
}

function State({ status }) {
  const name = status?.status ?? "…";
  const rate = status?.output_tokens_per_second;
  return html`<div class="state" data-state=${name}>
    <span class=${`dot ${TONES[name] ?? (status ? "bad" : "")}`}></span>
    <span class="state-name">${name}</span>
    ${status?.running !== undefined && html`<span class="soft state-more">${status.running} running</span>`}
    ${status?.waiting !== undefined && html`<span class="soft state-more">${status.waiting} waiting</span>`}
    ${rate !== undefined && html`<span class="soft state-more">${speed(rate)} tokens/s</span>`}
  </div>`;
}

function ThemeButton() {
  const [theme, setTheme] = useState(chosenTheme());
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const change = () => {
    applyTheme(next);
    setTheme(next);
  };
  return html`<${IconButton} name=${theme} label=${`Colours: ${theme}. Change to ${next}`} onClick=${change} />`;
}
