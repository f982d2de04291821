/** Tabs by the ARIA pattern: arrows, Home and End move; the address may name the one that is open. */

import { html, useEffect, useId, useState } from "../ui.js";

/**
 * @param {{label: string, tabs: {id: string, name: string, content: () => unknown}[], inAddress?: boolean, kind?: string}} props
 */
export function Tabs({ label, tabs, inAddress = false, kind = "tabs" }) {
  const prefix = useId("tabs");
  const named = () => tabs.find((tab) => inAddress && location.hash === `#${tab.id}`)?.id;
  const [open, setOpen] = useState(named() ?? tabs[0].id);
  const [seen, setSeen] = useState([open]);
  const choose = (id) => {
    setOpen(id);
    setSeen((before) => (before.includes(id) ? before : [...before, id]));
    if (inAddress) {
      history.replaceState(null, "", `#${id}`);
    }
  };
  useEffect(() => {
    const follow = () => named() && choose(named());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const press = (event) => {
    const at = tabs.findIndex((tab) => tab.id === open);
    const next = {
      ArrowRight: (at + 1) % tabs.length,
      ArrowLeft: (at + tabs.length - 1) % tabs.length,
      Home: 0,
      End: tabs.length - 1,
    }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      choose(tabs[next].id);
      document.getElementById(`${prefix}-${tabs[next].id}`)?.focus();
    }
  };
  return html`<div class=${kind}>
    <div class="tab-list" role="tablist" aria-label=${label} onKeyDown=${press}>
      ${tabs.map(
        (tab) => html`<button
          type="button" role="tab" class="tab" key=${tab.id}
          id=${`${prefix}-${tab.id}`}
          aria-selected=${tab.id === open ? "true" : "false"}
          aria-controls=${`${prefix}-${tab.id}-panel`}
          tabindex=${tab.id === open ? 0 : -1}
          onClick=${() => choose(tab.id)}
        >${tab.name}</button>`,
      )}
    </div>
    ${tabs.map(
      (tab) => html`<div
        role="tabpanel" class="tab-panel" key=${tab.id}
        id=${`${prefix}-${tab.id}-panel`}
        aria-labelledby=${`${prefix}-${tab.id}`}
        hidden=${tab.id !== open}
      >${seen.includes(tab.id) && tab.content()}</div>`,
    )}
  </div>`;
}
