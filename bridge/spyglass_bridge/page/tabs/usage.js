/** The usage tab: what this key has used, by day and in its latest requests, and what things cost. */

import { callJson, explain } from "../api.js";
import { duration, money, number, price } from "../format.js";
import { Problem } from "../parts/key_dialog.js";
import { html, useEffect, useState, useStore } from "../ui.js";
import { DayChart } from "./day_chart.js";

const DAYS = 30;

export function UsageTab({ session }) {
  useStore(session);
  const [usage, setUsage] = useState(null);
  const [problem, setProblem] = useState(null);
  const load = () =>
    callJson(`/v1/usage?group_by=day&records=20&since=${dayBefore(DAYS - 1)}`, { key: session.key })
      .then((found) => { setUsage(found); setProblem(null); })
      .catch((error) => setProblem(explain(error)));
  useEffect(() => {
    if (session.key) {
      load();
    }
  }, [session.key]);
  if (!session.key) {
    return html`<p class="soft">What a key has used is told to who has it.</p><button type="button" class="button primary" onClick=${() => session.ask()}>Enter API key</button>`;
  }
  if (problem) {
    return html`<${Problem} problem=${problem} />`;
  }
  if (!usage) {
    return html`<p class="soft">Loading…</p>`;
  }
  return html`<div class="usage">
    <div class="section-head"><h2>The last ${DAYS} days</h2><button type="button" class="button" onClick=${load}>Refresh</button></div>
    <dl class="facts">
      ${[
        ["Requests", number(usage.generations)],
        ["Tokens in", number(usage.prompt_tokens)],
        ["Cached", number(usage.cached_tokens)],
        ["Tokens out", number(usage.completion_tokens)],
        ["Pictures", number(usage.images)],
        ["Cost", money(usage.estimated_cost)],
      ].map(([name, value]) => html`<div class="fact" key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
    <${DayChart} days=${usage.data} count=${DAYS} />
    <${Latest} records=${usage.records} />
    ${session.model && html`<${Prices} pricing=${session.model.metadata.pricing} />`}
  </div>`;
}

function dayBefore(days) {
  return new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 10);
}

function Latest({ records }) {
  return html`<h2>Latest requests</h2>
    ${records.length === 0
      ? html`<p class="soft">There are none yet.</p>`
      : html`<div class="table-frame" tabindex="0" role="region" aria-label="Latest requests"><table>
          <thead><tr><th scope="col">Started</th><th scope="col">Took</th><th scope="col">Outcome</th><th scope="col" class="right">In</th><th scope="col" class="right">Cached</th><th scope="col" class="right">Out</th><th scope="col" class="right">Pictures</th><th scope="col" class="right">Cost</th><th scope="col">Request</th></tr></thead>
          <tbody>${records.map((record, index) => html`<tr key=${index}>
            <td>${new Date(record.started).toLocaleString()}</td>
            <td>${record.finished ? duration(new Date(record.finished) - new Date(record.started)) : "running"}</td>
            <td>${record.outcome || "running"}</td>
            <td class="right">${number(record.prompt_tokens)}</td>
            <td class="right">${number(record.cached_tokens)}</td>
            <td class="right">${number(record.completion_tokens)}</td>
            <td class="right">${number(record.images)}</td>
            <td class="right">${money(record.estimated_cost)}</td>
            <td><code>${record.request_id}</code></td>
          </tr>`)}</tbody>
        </table></div>`}`;
}

function Prices({ pricing }) {
  const rows = [["Input", pricing.input_tokens], ["Input found in a cache", pricing.cached_input_tokens], ["Output", pricing.output_tokens]];
  return html`<h2>Prices</h2><div class="table-frame" tabindex="0" role="region" aria-label="Prices"><table class="narrow">
    <thead><tr><th scope="col">Tokens</th><th scope="col" class="right">For a million</th></tr></thead>
    <tbody>${rows.map(([name, dollars]) => html`<tr key=${name}><td>${name}</td><td class="right">${price(dollars)}</td></tr>`)}</tbody>
  </table></div>`;
}
