/**
 * Cuts growing markdown into blocks at its top level, so that each is rendered once, when it is complete. Cuts only where
 * markdown means the same with and without a cut: at blank lines outside of code, and not inside a list. A block that
 * grows too long to be rendered at once is cut between two lines all the same.
 */

const MOST_CHARACTERS = 3000;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LIST_ITEM = /^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)/;
const TABLE_RULE = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;

export class BlockCutter {
  #open = "";
  #line = "";
  #fence = "";
  #isBlank = false;
  #isList = false;

  /** The block that is not complete yet. */
  get open() {
    return this.#open + this.#line;
  }

  /** Whether the open block is code whose end has not come. */
  get isCode() {
    return this.#fence !== "";
  }

  /**
   * @param {string} text what has been added
   * @returns {string[]} the blocks that this completes
   */
  push(text) {
    const done = [];
    let from = 0;
    for (;;) {
      const end = text.indexOf("\n", from);
      if (end < 0) {
        break;
      }
      this.#takeLine(this.#line + text.slice(from, end + 1), done);
      this.#line = "";
      from = end + 1;
    }
    this.#line += text.slice(from);
    this.#cutLongLine(done);
    return done;
  }

  /** @returns {string[]} the rest */
  finish() {
    const done = [];
    if (this.#line) {
      this.#takeLine(this.#line, done);
      this.#line = "";
    }
    this.#flush(done);
    return done;
  }

  #takeLine(line, done) {
    if (this.#fence) {
      this.#open += line;
      const mark = FENCE.exec(line)?.[1];
      if (mark && mark[0] === this.#fence[0] && mark.length >= this.#fence.length && line.trim() === mark) {
        this.#flush(done);
      }
      return;
    }
    if (line.trim() === "") {
      this.#open += line;
      this.#isBlank = true;
      return;
    }
    const isItem = LIST_ITEM.test(line);
    if (this.#isBlank && this.#open.trim() && !/^(?: {2}|\t)/.test(line) && !(this.#isList && isItem)) {
      this.#flush(done);
    }
    const fence = FENCE.exec(line);
    if (fence && !(this.#isList && /^\s/.test(line))) {
      this.#flush(done);
      this.#fence = fence[1];
    } else if (this.#open.length + line.length > MOST_CHARACTERS) {
      this.#cutBetweenLines(done);
    }
    if (!this.#open.trim()) {
      this.#isList = isItem;
    }
    this.#isBlank = false;
    this.#open += line;
  }

  /** A long table goes on with its head repeated for the parser; each part is a table of its own. */
  #cutBetweenLines(done) {
    const [head, rule] = this.#open.split("\n", 2);
    const isTable = head.includes("|") && rule !== undefined && TABLE_RULE.test(rule);
    const isList = this.#isList;
    this.#flush(done);
    this.#isList = isList;
    this.#open = isTable ? `${head}\n${rule}\n` : "";
  }

  #cutLongLine(done) {
    while (!this.#fence && this.#line.length > MOST_CHARACTERS) {
      const space = this.#line.lastIndexOf(" ", MOST_CHARACTERS);
      const end = space > 0 ? space + 1 : MOST_CHARACTERS;
      this.#flush(done);
      done.push(this.#line.slice(0, end));
      this.#line = this.#line.slice(end);
    }
  }

  #flush(done) {
    if (this.#open.trim()) {
      done.push(this.#open);
    }
    this.#open = "";
    this.#fence = "";
    this.#isBlank = false;
    this.#isList = false;
  }
}
