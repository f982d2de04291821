/**
 * Shows markdown while it grows. Complete blocks are rendered once, the open one again with each frame at most, and never
 * more in a frame than leaves the page responsive. Code without an end grows as plain text.
 */

import { BlockCutter } from "./blocks.js";
import { openCode, renderMarkdown } from "./markdown.js";

const FRAME_MS = 8;
/** A long open block is rendered again at most this often. */
const LONG_BLOCK_CHARACTERS = 1500;
const LONG_BLOCK_MS = 150;

/** The views that have something to draw; a frame's time is one for all of them. @type {Set<MarkdownView>} */
const waiting = new Set();
let frame = 0;

function drawSoon(view) {
  waiting.add(view);
  frame ||= requestAnimationFrame(drawAll);
}

function drawAll() {
  frame = 0;
  const until = performance.now() + FRAME_MS;
  for (const view of [...waiting]) {
    if (performance.now() >= until) {
      break;
    }
    waiting.delete(view);
    view.draw(until);
  }
  if (waiting.size) {
    frame ||= requestAnimationFrame(drawAll);
  }
}

export class MarkdownView {
  #element;
  #cutter = new BlockCutter();
  #given = null;
  #text = "";
  #queue = [];
  #tail = document.createElement("div");
  #code = null;
  #isDone = false;
  #tailText = "";
  #tailShownAt = 0;
  #whenShown;

  /**
   * @param {HTMLElement} element where it is shown
   * @param {() => void} [whenShown] called after each frame that showed more
   */
  constructor(element, whenShown = () => {}) {
    this.#element = element;
    this.#whenShown = whenShown;
    this.#tail.className = "block";
    element.replaceChildren(this.#tail);
  }

  /**
   * @param {string} text the whole text so far
   * @param {boolean} isDone whether no more will come
   */
  show(text, isDone) {
    this.#given = { text, isDone };
    drawSoon(this);
  }

  /** Takes over what `show` was given last: once a frame, however often it is called. */
  #take({ text, isDone }) {
    if (!text.startsWith(this.#text) || (this.#isDone && (text !== this.#text || !isDone))) {
      this.#reset();
    }
    if (this.#isDone) {
      return;
    }
    this.#queue.push(...this.#cutter.push(text.slice(this.#text.length)));
    this.#text = text;
    if (isDone) {
      this.#queue.push(...this.#cutter.finish());
      this.#isDone = true;
    }
  }

  /** Ends the drawing. */
  close() {
    waiting.delete(this);
  }

  #reset() {
    this.#cutter = new BlockCutter();
    this.#text = "";
    this.#queue = [];
    this.#isDone = false;
    this.#code = null;
    this.#tailText = "";
    this.#tail.replaceChildren();
    this.#element.replaceChildren(this.#tail);
  }

  /** Draws what there is time for. @param {number} until when to stop */
  draw(until) {
    if (this.#given) {
      this.#take(this.#given);
      this.#given = null;
    }
    while (this.#queue.length && performance.now() < until) {
      const block = document.createElement("div");
      block.className = "block";
      block.append(renderMarkdown(this.#queue.shift()));
      this.#tail.before(block);
      this.#clearTail();
    }
    if (this.#queue.length || !this.#drawTail()) {
      drawSoon(this);
    } else if (this.#isDone) {
      this.#tail.remove();
    }
    this.#whenShown();
  }

  #clearTail() {
    this.#code = null;
    this.#tailText = "";
    this.#tail.replaceChildren();
  }

  /** @returns {boolean} whether the open block is shown as it is now */
  #drawTail() {
    const open = this.#cutter.open;
    if (open === this.#tailText) {
      return true;
    }
    if (this.#cutter.isCode) {
      this.#drawOpenCode(open);
    } else {
      const now = performance.now();
      if (open.length > LONG_BLOCK_CHARACTERS && now - this.#tailShownAt < LONG_BLOCK_MS) {
        return false;
      }
      this.#tail.replaceChildren(renderMarkdown(open));
      this.#tailShownAt = now;
    }
    this.#tailText = open;
    return true;
  }

  #drawOpenCode(open) {
    const start = open.indexOf("\n") + 1;
    if (!this.#code || !open.startsWith(this.#tailText)) {
      const { frame, code } = openCode();
      this.#code = code;
      this.#tail.replaceChildren(frame);
      code.append(document.createTextNode(start ? open.slice(start) : ""));
    } else {
      this.#code.append(document.createTextNode(open.slice(Math.max(start, this.#tailText.length))));
    }
  }
}
