/** Starts the page: its state, and what is shown of it. */

import { Chats } from "./chat/chats.js";
import { Playground } from "./chat/playground.js";
import { DeployDialog } from "./model/deploy.js";
import { ModelHeader } from "./model/header.js";
import { KeyDialog } from "./parts/key_dialog.js";
import { Tabs } from "./parts/tabs.js";
import { applyTheme } from "./parts/theme.js";
import { TopBar } from "./parts/top_bar.js";
import { Session } from "./session.js";
import { ApiTab } from "./tabs/api.js";
import { SchemaTab } from "./tabs/schema.js";
import { UsageTab } from "./tabs/usage.js";
import { html, render, useEffect, useState, useStore } from "./ui.js";

function Page({ session, chats }) {
  useStore(session);
  const [isDeploying, setDeploying] = useState(false);
  const name = session.model?.id;
  useEffect(() => {
    document.title = name ? `${name} · Spyglass` : "Spyglass";
  }, [name]);
  const tabs = [
    { id: "playground", name: "Playground", content: () => html`<${Playground} ...${{ session, chats }} />` },
    { id: "api", name: "API", content: () => html`<${ApiTab} ...${{ session, chats }} />` },
    { id: "schema", name: "Schema", content: () => html`<${SchemaTab} session=${session} />` },
    { id: "usage", name: "Usage", content: () => html`<${UsageTab} session=${session} />` },
  ];
  return html`<${TopBar} session=${session} />
    <main id="content" tabindex="-1">
      <${ModelHeader} session=${session} onDeploy=${() => setDeploying(true)} />
      <${Tabs} label="The model" tabs=${tabs} inAddress />
    </main>
    <${Foot} session=${session} />
    <${KeyDialog} session=${session} />
    ${isDeploying && html`<${DeployDialog} session=${session} onClose=${() => setDeploying(false)} />`}`;
}

function Foot({ session }) {
  return html`<footer class="foot">
    <span>Spyglass ${session.about?.version ?? ""}</span>
    <a href="/docs">API reference</a>
    <a href="/openapi.json">openapi.json</a>
  </footer>`;
}

applyTheme();
const session = new Session();
const chats = new Chats(session);
render(html`<${Page} ...${{ session, chats }} />`, document.getElementById("page"));
await Promise.all([session.open(), chats.restore()]);
