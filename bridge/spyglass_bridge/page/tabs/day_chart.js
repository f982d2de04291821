/** Bars by day, with a table of the same for those who do not see them. */

import { money, number } from "../format.js";
import { html, useState } from "../ui.js";

const HEIGHT = 180;
const BAR = 14;
const GAP = 6;
const MEASURES = [
  { id: "estimated_cost", name: "Cost", show: money },
  { id: "tokens", name: "Tokens", show: number },
  { id: "generations", name: "Requests", show: number },
];

/** @param {{days: any[], count: number}} props days that were used, and how many to show up to today */
export function DayChart({ days, count }) {
  const [measure, setMeasure] = useState("estimated_cost");
  const { show, name } = MEASURES.find((one) => one.id === measure);
  const used = new Map(days.filter((day) => day.day).map((day) => [day.day, { ...day, tokens: day.prompt_tokens + day.completion_tokens }]));
  const shown = Array.from({ length: count }, (_, index) => {
    const day = new Date(Date.now() - (count - 1 - index) * 86_400_000).toISOString().slice(0, 10);
    return { day, value: used.get(day)?.[measure] ?? 0 };
  });
  const most = Math.max(...shown.map((day) => day.value)) || 1;
  const width = count * (BAR + GAP);
  return html`<figure class="chart">
    <div class="choice">
      ${MEASURES.map((one) => html`<label key=${one.id}><input type="radio" name="measure" checked=${measure === one.id} onChange=${() => setMeasure(one.id)} /><span>${one.name}</span></label>`)}
    </div>
    <div class="chart-frame">
      <svg viewBox=${`0 0 ${width} ${HEIGHT + 20}`} role="img" aria-label=${`${name} by day; the table below says the same`} preserveAspectRatio="none">
        <line class="axis" x1="0" x2=${width} y1=${HEIGHT} y2=${HEIGHT} />
        ${shown.map(({ day, value }, index) => {
          const height = (value / most) * (HEIGHT - 12);
          return html`<g key=${day}><title>${`${day}: ${show(value)}`}</title>
            <rect class="slot" x=${index * (BAR + GAP)} y="0" width=${BAR + GAP} height=${HEIGHT} />
            <rect class="bar" x=${index * (BAR + GAP) + GAP / 2} y=${HEIGHT - height} width=${BAR} height=${height} rx="2" />
          </g>`;
        })}
      </svg>
      <div class="chart-days"><span>${shown[0].day}</span><span>most: ${show(Math.max(...shown.map((day) => day.value)))}</span><span>${shown.at(-1).day}</span></div>
    </div>
    <details><summary>As a table</summary>
      <div class="table-frame" tabindex="0" role="region" aria-label="Usage by day"><table>
        <thead><tr><th scope="col">Day</th><th scope="col" class="right">Requests</th><th scope="col" class="right">In</th><th scope="col" class="right">Out</th><th scope="col" class="right">Cost</th></tr></thead>
        <tbody>${[...used.values()].map((day) => html`<tr key=${day.day}><td>${day.day}</td><td class="right">${number(day.generations)}</td><td class="right">${number(day.prompt_tokens)}</td><td class="right">${number(day.completion_tokens)}</td><td class="right">${money(day.estimated_cost)}</td></tr>`)}</tbody>
      </table></div>
    </details>
  </figure>`;
}
