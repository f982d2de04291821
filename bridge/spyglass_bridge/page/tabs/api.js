/** The API tab: how to ask this model from a program, as code that runs as it stands. */

import { exampleOf, exampleOfPlayground, KINDS } from "../examples/requests.js";
import { LANGUAGES } from "../examples/languages.js";
import { CodeBlock } from "../parts/code_block.js";
import { html, useState, useStore } from "../ui.js";

/** @param {import("../session.js").Session} session @returns {import("../examples/languages.js").Place} */
export function placeOf(session) {
  const port = session.about?.grpc_port;
  const isSecure = Boolean(session.about?.grpc_tls) || location.protocol === "https:";
  return { origin: location.origin, grpc: port ? `${location.hostname}:${port}` : null, isSecure };
}

export function ApiTab({ session, chats }) {
  useStore(session);
  useStore(chats);
  const [kind, setKind] = useState("message");
  const [language, setLanguage] = useState("curl");
  const model = session.model?.id ?? "MODEL";
  const example = kind === "playground" ? exampleOfPlayground(chats) : exampleOf(kind, model);
  const { name, highlight, write } = LANGUAGES.find((one) => one.id === language);
  return html`<div class="api">
    <p class="lead">The API is OpenAI's: give its clients the address <code>${location.origin}/v1/openai</code> and your key. Or speak gRPC.</p>
    <${CodeBlock} text=${"export SPYGLASS_API_KEY=…   # your key"} language="bash" label="Once, in your shell" />
    <${Choice} label="Example" options=${KINDS} value=${kind} onChange=${setKind} />
    <${Choice} label="Language" options=${LANGUAGES} value=${language} onChange=${setLanguage} />
    <${CodeBlock} text=${write(example, placeOf(session))} language=${highlight} label=${`${KINDS.find((one) => one.id === kind).name}, ${name}`} />
    ${kind === "playground" && example.pictures.length > 0 && html`<p class="soft">It reads the pictures of the playground from files beside it: ${example.pictures.map((picture) => picture.file).join(", ")}.</p>`}
    <p class="links"><a href="/docs">Every parameter</a><a href="/openapi.json">openapi.json</a></p>
  </div>`;
}

function Choice({ label, options, value, onChange }) {
  return html`<fieldset class="field">
    <legend>${label}</legend>
    <div class="choice wrap">
      ${options.map((option) => html`<label key=${option.id}><input type="radio" name=${`api-${label}`} value=${option.id} checked=${value === option.id} onChange=${() => onChange(option.id)} /><span>${option.name}</span></label>`)}
    </div>
  </fieldset>`;
}
