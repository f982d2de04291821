/** What the model is: its name, what it costs, how exact and how long it is, whose it is. */

import { context, number, price } from "../format.js";
import { html, useStore } from "../ui.js";

const LICENCE = "https://www.llama.com/llama3_2/license/";

/** Whether the licence of Llama asks for its notice: names of models that are made of Llama begin with it. */
export function isLlama({ about, model }) {
  const said = about?.built_with_llama ?? "auto";
  return said === "auto" ? /llama/i.test(model?.id ?? "") : said === "on";
}

export function ModelHeader({ session, onDeploy }) {
  useStore(session);
  const { model, about } = session;
  const metadata = model?.metadata;
  const precision = [metadata?.dtype, metadata?.quantization].filter((one) => one && one !== "none");
  const tags = [...new Set([...precision, ...(metadata?.tags ?? [])])];
  const isDemo = model?.id === "spyglass-demo";
  return html`<section class="hero" aria-labelledby="model-name">
    <img class="cover" src="/page/cover.svg" alt="" width="116" height="116" />
    <div class="hero-text">
      <div class="tags">
        <span class="tag strong">${about?.public ? "Public" : "Private"}</span>
        ${tags.map((tag) => html`<span class="tag" key=${tag}>${tag}</span>`)}
      </div>
      <h1 id="model-name">${model?.id ?? "A private model"}</h1>
      <p class="lead">${metadata?.description || (model ? "" : "This deployment tells of its model to who has a key.")}</p>
      ${metadata ? html`<${Facts} metadata=${metadata} />` : html`<p><button type="button" class="button primary" onClick=${() => session.ask()}>Enter API key</button></p>`}
      <p class="links">
        ${isDemo && html`<span>Demo model: SmolLM2-135M inside the Llama 3.2 Vision architecture, Apache-2.0</span>`}
        ${isLlama(session) && html`<strong>Built with Llama</strong><a href=${LICENCE} target="_blank" rel="noopener noreferrer nofollow">Llama 3.2 Community License</a>`}
        <a href="/docs">API reference</a>
      </p>
    </div>
    <div class="hero-side"><button type="button" class="button" onClick=${onDeploy}>Deploy private endpoint</button></div>
  </section>`;
}

function Facts({ metadata }) {
  const { pricing } = metadata;
  const facts = [
    ["Input", price(pricing.input_tokens), "/ M tokens"],
    ["Output", price(pricing.output_tokens), "/ M tokens"],
    ["Cached input", price(pricing.cached_input_tokens), "/ M tokens"],
    ["Context", context(metadata.context_length), "tokens"],
    ["Longest answer", number(metadata.max_tokens), "tokens"],
  ];
  return html`<dl class="facts">
    ${facts.map(([name, value, unit]) => html`<div class="fact" key=${name}><dt>${name}</dt><dd>${value} <span class="soft">${unit}</span></dd></div>`)}
  </dl>`;
}
