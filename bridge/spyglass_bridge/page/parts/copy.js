/** A button that copies a text and says so. */

import { announce } from "./announce.js";

const SHOWN_MS = 1500;

/** When each button says again what it said. @type {WeakMap<HTMLElement, number>} */
const timers = new WeakMap();

/**
 * @param {() => string} text what to copy, asked for when the button is pressed
 * @param {string} [label]
 * @returns {HTMLButtonElement}
 */
export function copyButton(text, label = "Copy") {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = label;
  button.addEventListener("click", () => copy(button, text(), label));
  return button;
}

/**
 * Copies, and shows on the button for a moment that it did.
 * @param {HTMLElement} button @param {string} text @param {string} label what the button says at other times
 */
export async function copy(button, text, label) {
  let outcome = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    outcome = copyOldWay(text) ? "Copied" : "Could not copy";
  }
  button.textContent = outcome;
  announce(outcome);
  clearTimeout(timers.get(button));
  timers.set(
    button,
    setTimeout(() => {
      button.textContent = label;
    }, SHOWN_MS),
  );
}

/** Pages that are not on localhost and have no TLS have no clipboard object. */
function copyOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "off-screen";
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}
