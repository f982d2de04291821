/**
 * The playground's state and what can be done with it: one conversation, or two with settings of their own that are asked
 * the same. Owns the running answers. Knows no elements.
 */

import { call, errorOfEvent, explain, isAbort } from "../api.js";
import { announce } from "../parts/announce.js";
import { readEvents } from "../sse.js";
import { Store } from "../ui.js";
import { LiveAnswer } from "./live.js";
import { defaultSettings, readSettings, requestBody } from "./settings.js";
import { loadChats, saveChats } from "./storage.js";
import { ROOT, addTurn, chosenTurns, copyTree, emptyTree, lastTurn, switchBranch, turnsUpTo } from "./tree.js";

const SAVE_AFTER_MS = 400;

/** @typedef {{tree: import("./tree.js").Tree, settings: import("./settings.js").Settings}} Lane */

export class Chats extends Store {
  /** @type {Lane[]} */
  lanes = [{ tree: emptyTree(), settings: defaultSettings() }];
  active = 0;
  draft = { text: "", /** @type {import("./tree.js").Picture[]} */ pictures: [] };
  /** @type {Map<string, {answer: LiveAnswer, abort: AbortController}>} the running answers by their turns */
  running = new Map();
  /** @type {{lanes: Lane[], active: number}|null} what was cleared last */
  cleared = null;
  #session;
  #saveTimer = 0;

  /** @param {import("../session.js").Session} session */
  constructor(session) {
    super();
    this.#session = session;
    addEventListener("pagehide", () => this.#save());
    document.addEventListener("visibilitychange", () => document.hidden && this.#save());
  }

  /** Takes up what the browser has kept. */
  async restore() {
    const kept = await loadChats();
    if (kept) {
      this.lanes = kept.lanes;
      this.active = Math.min(kept.active, kept.lanes.length - 1);
      super.changed();
    }
  }

  /** Keeps what is there, soon, and tells all that watch. */
  changed() {
    clearTimeout(this.#saveTimer);
    this.#saveTimer = setTimeout(() => this.#save(), SAVE_AFTER_MS);
    super.changed();
  }

  #save() {
    for (const lane of this.lanes) {
      for (const [id, { answer }] of this.running) {
        if (lane.tree.turns[id]) {
          Object.assign(lane.tree.turns[id], { text: answer.text, calls: answer.calls });
        }
      }
    }
    saveChats({ lanes: this.lanes, active: this.active });
  }

  get isRunning() {
    return this.running.size > 0;
  }

  get isEmpty() {
    return this.lanes.every((lane) => lane.tree.root.children.length === 0);
  }

  /** What is wrong with the settings of any lane; null if nothing is. */
  get problem() {
    for (const [index, lane] of this.lanes.entries()) {
      const [first] = Object.values(readSettings(lane.settings).problems);
      if (first) {
        return { lane: index, text: first };
      }
    }
    return null;
  }

  /** Asks all lanes what the draft says. */
  send() {
    const { text, pictures } = this.draft;
    if ((!text.trim() && !pictures.length) || this.isRunning) {
      return;
    }
    this.draft = { text: "", pictures: [] };
    this.cleared = null;
    for (const lane of this.lanes) {
      const question = addTurn(lane.tree, lastTurn(lane.tree), { role: "user", text, pictures });
      this.#answer(lane, question.id);
    }
    this.changed();
  }

  /** Answers the same again, on a branch beside the old one. */
  retry(lane, turn) {
    this.#answer(lane, turn.parent);
    this.changed();
  }

  /** Puts other words, on a branch beside the old ones, and asks anew where they were the user's. */
  edit(lane, turn, text) {
    const edited = addTurn(lane.tree, turn.parent, { role: turn.role, text, pictures: turn.pictures, callId: turn.callId });
    if (turn.role === "assistant") {
      Object.assign(edited, { status: "done", calls: turn.calls });
    } else {
      this.#answer(lane, edited.id);
    }
    this.changed();
  }

  /** Gives the tools' results and has the model go on. @param {string[]} results one for each call */
  giveResults(lane, turn, results) {
    let last = turn.id;
    for (const [index, called] of turn.calls.entries()) {
      last = addTurn(lane.tree, last, { role: "tool", text: results[index] ?? "", callId: called.id }).id;
    }
    this.#answer(lane, last);
    this.changed();
  }

  switchBranch(lane, turn, step) {
    switchBranch(lane.tree, turn, step);
    this.changed();
  }

  stop() {
    for (const { abort } of this.running.values()) {
      abort.abort();
    }
  }

  clear() {
    this.stop();
    this.cleared = { lanes: this.lanes, active: this.active };
    this.lanes = this.lanes.map(({ settings }) => ({ tree: emptyTree(), settings: { ...settings } }));
    this.changed();
  }

  undoClear() {
    if (this.cleared) {
      this.lanes = this.cleared.lanes;
      this.active = this.cleared.active;
      this.cleared = null;
      this.changed();
    }
  }

  /** Puts a second conversation beside the first, the same so far, or takes it away. */
  compare(isWanted) {
    this.stop();
    const [first] = this.lanes;
    this.lanes = isWanted ? [first, { tree: copyTree(first.tree), settings: { ...first.settings } }] : [first];
    this.active = isWanted ? 1 : 0;
    this.changed();
  }

  /** @param {Lane[]} lanes of an imported file */
  replace(lanes) {
    this.stop();
    this.cleared = { lanes: this.lanes, active: this.active };
    this.lanes = lanes;
    this.active = 0;
    this.changed();
  }

  setSetting(name, value) {
    this.lanes[this.active].settings = { ...this.lanes[this.active].settings, [name]: value };
    this.changed();
  }

  setDraft(changes) {
    this.draft = { ...this.draft, ...changes };
    super.changed();
  }

  /** The request that the active conversation would make now, with the draft where there is one. */
  nextRequest(imageUrl) {
    const lane = this.lanes[this.active];
    const { text, pictures } = this.draft;
    const turns = chosenTurns(lane.tree).filter((turn) => !this.running.has(turn.id));
    const asked = text.trim() || pictures.length ? [...turns, { role: "user", text, pictures }] : turns;
    return requestBody(this.#session.model?.id ?? "MODEL", lane.settings, asked, imageUrl);
  }

  async #answer(lane, parent) {
    const turns = parent === ROOT ? [] : turnsUpTo(lane.tree, parent);
    const turn = addTurn(lane.tree, parent, { role: "assistant", status: "running" });
    const answer = new LiveAnswer();
    const abort = new AbortController();
    this.running.set(turn.id, { answer, abort });
    try {
      const body = {
        ...requestBody(this.#session.model?.id ?? "", lane.settings, turns),
        stream: true,
        stream_options: { include_usage: true },
        ...(lane.settings.attention && turns.some((one) => one.pictures?.length) ? { include: ["image_attention"] } : {}),
      };
      turn.isJson = "response_format" in body;
      const response = await call("/v1/chat/completions", { key: this.#session.key, body, signal: abort.signal });
      await this.#read(response, answer);
      turn.status = "done";
      announce("The answer is complete.");
    } catch (error) {
      turn.status = isAbort(error) ? "stopped" : "failed";
      turn.error = turn.status === "failed" ? explain(error) : null;
      announce(turn.error?.title ?? "Stopped.");
    }
    this.running.delete(turn.id);
    const { text, calls, finishReason, attention } = answer;
    Object.assign(turn, { text, calls, finishReason, attention, figures: answer.figures() });
    this.#save();
    this.changed();
  }

  async #read(response, answer) {
    let isComplete = false;
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") {
        isComplete = true;
        continue; // what comes after it is the end
      }
      const chunk = JSON.parse(data);
      if (chunk.error) {
        throw errorOfEvent(chunk);
      }
      answer.take(chunk);
    }
    if (!isComplete) {
      throw errorOfEvent({ error: { message: "The connection was lost before the answer was complete." } });
    }
  }
}
