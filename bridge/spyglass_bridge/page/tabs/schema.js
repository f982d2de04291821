/** The schema tab: what goes in and comes out, as a tree and as JSON, as the server itself tells it. */

import { callJson, explain } from "../api.js";
import { CodeBlock } from "../parts/code_block.js";
import { Problem } from "../parts/key_dialog.js";
import { Tabs } from "../parts/tabs.js";
import { html, useEffect, useState, useStore } from "../ui.js";

const VARIANTS = [
  { id: "input", name: "Input" },
  { id: "output", name: "Output" },
  { id: "streaming", name: "Streaming" },
];
const MOST_DEPTH = 12;
const WITHOUT_EFFECT = ["Must change nothing.", "A label, without an effect."];

export function SchemaTab({ session }) {
  useStore(session);
  const tabs = VARIANTS.map(({ id, name }) => ({ id, name, content: () => html`<${Variant} ...${{ session, variant: id }} />` }));
  return html`<${Tabs} label="Schema" tabs=${tabs} kind="segments" />`;
}

function Variant({ session, variant }) {
  const [schema, setSchema] = useState(null);
  const [problem, setProblem] = useState(null);
  const [isRaw, setRaw] = useState(false);
  const { key, model } = session;
  useEffect(() => {
    if (!key || !model) {
      return;
    }
    callJson(`/models/${encodeURIComponent(model.id).replaceAll("%2F", "/")}/schema/${variant}`, { key })
      .then((found) => { setSchema(found); setProblem(null); })
      .catch((error) => setProblem(explain(error)));
  }, [key, model?.id, variant]);
  if (problem) {
    return html`<${Problem} problem=${problem} />`;
  }
  if (!key) {
    return html`<p class="soft">The schemas are told to who has a key.</p><button type="button" class="button primary" onClick=${() => session.ask()}>Enter API key</button>`;
  }
  if (!schema) {
    return html`<p class="soft">Loading…</p>`;
  }
  return html`<div class="choice">
      ${[false, true].map((raw) => html`<label key=${raw}><input type="radio" name=${`form-${variant}`} checked=${isRaw === raw} onChange=${() => setRaw(raw)} /><span>${raw ? "JSON" : "Tree"}</span></label>`)}
    </div>
    ${isRaw
      ? html`<${CodeBlock} text=${JSON.stringify(schema, null, 2)} language="json" label=${`${variant}.json`} />`
      : html`<div class="schema"><p>${schema.description}</p><${Fields} schema=${schema} root=${schema} depth=${0} /></div>`}`;
}

/** Follows references. @returns {any} */
function resolve(schema, root) {
  let found = schema;
  for (let steps = 0; found?.$ref && steps < MOST_DEPTH; steps += 1) {
    found = found.$ref.replace(/^#\//, "").split("/").reduce((at, name) => at?.[name.replaceAll("~1", "/").replaceAll("~0", "~")], root);
  }
  return found ?? {};
}

/** The forms that a value may have, without null. */
function formsOf(schema, root) {
  const { anyOf, oneOf } = schema;
  return (anyOf ?? oneOf ?? [schema]).map((one) => resolve(one, root)).filter((one) => one.type !== "null");
}

function Fields({ schema, root, depth }) {
  const required = schema.required ?? [];
  const names = Object.keys(schema.properties ?? {}).sort((one, other) => required.includes(other) - required.includes(one));
  const neutral = depth === 0 ? names.filter((name) => WITHOUT_EFFECT.includes(schema.properties[name].description)) : [];
  const others = names.filter((name) => !neutral.includes(name));
  return html`<${List} ...${{ schema, root, depth, required }} names=${others} />
    ${neutral.length > 0 && html`<details class="neutral"><summary>Taken without an effect</summary><${List} ...${{ schema, root, depth, required }} names=${neutral} /></details>`}`;
}

function List({ names, schema, root, depth, required }) {
  return html`<ul class="fields">
    ${names.map((name) => html`<${Field} key=${name} ...${{ name, root, depth }} schema=${schema.properties[name]} isRequired=${required.includes(name)} />`)}
  </ul>`;
}

function Field({ name, schema, root, depth, isRequired }) {
  const [isOpen, setOpen] = useState(false);
  const found = resolve(schema, root);
  const inner = innerForms(found, root);
  const head = html`<code class="field-name">${name}</code>
    <span class="field-type">${typeOf(found, root)}</span>
    ${isRequired && html`<span class="tag">required</span>`}
    ${found.default !== undefined && found.default !== null && html`<span class="soft">default ${JSON.stringify(found.default)}</span>`}
    ${schema.description && html`<span class="field-words">${schema.description}</span>`}`;
  if (!inner.length || depth >= MOST_DEPTH) {
    return html`<li class="leaf">${head}</li>`;
  }
  return html`<li><details onToggle=${(event) => setOpen(event.currentTarget.open)}><summary>${head}</summary>
    ${isOpen && inner.map((one, index) => html`<div class="form" key=${index}>
      ${inner.length > 1 && html`<p class="soft">${one.title ?? "either"}</p>`}
      <${Fields} schema=${one} root=${root} depth=${depth + 1} />
    </div>`)}
  </details></li>`;
}

/** The objects inside a value: itself, its alternatives, or what its list holds. */
function innerForms(schema, root, depth = 0) {
  if (depth > 4) {
    return [];
  }
  return formsOf(schema, root).flatMap((one) => {
    if (one.anyOf || one.oneOf) {
      return innerForms(one, root, depth + 1);
    }
    if (one.items) {
      return innerForms(resolve(one.items, root), root, depth + 1);
    }
    return one.properties ? [one] : [];
  });
}

function typeOf(schema, root, depth = 0) {
  if (depth > 4) {
    return "…";
  }
  const { anyOf, oneOf } = schema;
  if (anyOf ?? oneOf) {
    return [...new Set((anyOf ?? oneOf).map((one) => typeOf(resolve(one, root), root, depth + 1)))].join(" or ");
  }
  if (schema.const !== undefined || schema.enum) {
    return (schema.enum ?? [schema.const]).map((value) => JSON.stringify(value)).join(" or ");
  }
  if (schema.type === "array") {
    return `list of ${typeOf(resolve(schema.items ?? {}, root), root, depth + 1)}`;
  }
  const limits = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]]
    .filter(([name]) => schema[name] !== undefined && Math.abs(schema[name]) <= Number.MAX_SAFE_INTEGER)
    .map(([name, sign]) => `${sign} ${schema[name]}`);
  return [schema.type ?? "anything", ...limits].join(" ");
}
