/** What an answer took, and what a conversation took in all. */

import { counted, duration, money, number, speed } from "../format.js";
import { html } from "../ui.js";

/** @param {{figures: import("./tree.js").Figures, finishReason: string|null}} props */
export function Figures({ figures, finishReason }) {
  const shown = [
    figures.firstTokenMs !== null && ["First token", duration(figures.firstTokenMs)],
    figures.tokensPerSecond !== null && ["Speed", `${speed(figures.tokensPerSecond)} tokens/s`],
    figures.promptTokens > 0 && ["Prompt", counted(figures.promptTokens, "token")],
    figures.cachedTokens > 0 && ["Cached", number(figures.cachedTokens)],
    figures.completionTokens > 0 && ["Answer", counted(figures.completionTokens, "token")],
    figures.promptTokens > 0 && ["Cost", money(figures.cost)],
    finishReason === "length" && ["Ended", "at max_tokens"],
  ].filter(Boolean);
  return shown.length
    ? html`<dl class="figures">${shown.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`
    : null;
}

/** @param {{turns: import("./tree.js").Turn[]}} props */
export function Totals({ turns }) {
  const all = turns.map((turn) => turn.figures).filter((figures) => figures?.promptTokens);
  const sum = (field) => all.reduce((total, figures) => total + figures[field], 0);
  if (!all.length) {
    return null;
  }
  return html`<p class="totals">
    In all ${counted(all.length, "answer")} · ${number(sum("promptTokens"))} tokens in (${number(sum("cachedTokens"))} cached) · ${" "}
    ${number(sum("completionTokens"))} out · ${money(sum("cost"))}
  </p>`;
}
