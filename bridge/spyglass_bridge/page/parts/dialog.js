/** A modal dialog: the browser's own, which keeps the focus inside and gives it back. */

import { html, useEffect, useId, useRef } from "../ui.js";
import { IconButton } from "./icons.js";

/** @param {{title: string, onClose: () => void, wide?: boolean, children: unknown}} props */
export function Dialog({ title, onClose, wide = false, children }) {
  const element = useRef(null);
  const heading = useId("dialog");
  useEffect(() => {
    element.current.showModal();
    return () => element.current?.close();
  }, []);
  const pressOutside = (event) => event.target === element.current && onClose();
  return html`<dialog
    ref=${element} class=${wide ? "dialog wide" : "dialog"} aria-labelledby=${heading}
    onCancel=${(event) => { event.preventDefault(); onClose(); }} onMouseDown=${pressOutside}
  >
    <div class="dialog-body">
      <header class="dialog-head"><h2 id=${heading}>${title}</h2><${IconButton} name="close" label="Close" onClick=${onClose} /></header>
      ${children}
    </div>
  </dialog>`;
}
