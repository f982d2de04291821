/**
 * Who asks, and whom: the key, the model, and how the server is. The key is kept for the browser's session only, and no
 * further than this tab.
 */

import { ApiError, callJson, explain } from "./api.js";
import { Store } from "./ui.js";

const KEY = "spyglass-key";
const POLL_MS = 2000;

/**
 * @typedef {{id: string, metadata: {description: string, context_length: number, max_tokens: number,
 *   pricing: {input_tokens: number, output_tokens: number, cached_input_tokens: number}, tags: string[], dtype?: string,
 *   quantization?: string, max_images?: number, max_image_bytes?: number}}} Model
 */

export class Session extends Store {
  key = "";
  /** @type {{name: string, version: string, public: boolean, model: Model|null, grpc_port: number|null, grpc_tls: boolean,
   *   built_with_llama: "auto"|"on"|"off"}|null} */
  about = null;
  /** @type {Model|null} */
  model = null;
  /** @type {{status: string, running?: number, waiting?: number, output_tokens_per_second?: number}|null} */
  status = null;
  /** Why the key that is kept is not taken. */
  problem = null;
  isAsking = false;
  #hasStatus = true;
  #whenKnown = null;

  async open() {
    this.key = readKey();
    const about = await callJson("/page/about.json").catch(() => null);
    this.about = about;
    this.model = about?.model ?? null;
    this.changed();
    if (this.key) {
      await this.#loadModel().catch((error) => {
        this.problem = explain(error);
        this.changed();
      });
    }
    this.#poll();
  }

  /**
   * Takes a key if the server knows it.
   * @throws {ApiError}
   */
  async enter(key) {
    const before = this.key;
    this.key = key;
    try {
      await this.#loadModel();
    } catch (error) {
      this.key = before;
      throw error;
    }
    keepKey(key);
    this.problem = null;
    this.isAsking = false;
    const whenKnown = this.#whenKnown;
    this.#whenKnown = null;
    this.changed();
    whenKnown?.();
  }

  forget() {
    this.key = "";
    keepKey("");
    this.model = this.about?.model ?? null;
    this.problem = null;
    this.changed();
  }

  /** Opens the dialog that asks for a key. @param {() => void} [whenKnown] what to do once there is one */
  ask(whenKnown) {
    this.isAsking = true;
    this.#whenKnown = whenKnown ?? null;
    this.changed();
  }

  stopAsking() {
    this.isAsking = false;
    this.#whenKnown = null;
    this.changed();
  }

  /** Calls `action` when there is a key: at once, or after the dialog. */
  withKey(action) {
    if (this.key) {
      action();
    } else {
      this.ask(action);
    }
  }

  async #loadModel() {
    const list = await callJson("/v1/models", { key: this.key });
    this.model = list.data?.[0] ?? null;
    this.changed();
  }

  async #poll() {
    for (;;) {
      if (!document.hidden) {
        const status = await this.#readStatus();
        if (JSON.stringify(status) !== JSON.stringify(this.status)) {
          this.status = status;
          this.changed();
        }
        if (this.key && !this.model && !this.problem) {
          await this.#loadModel().catch(() => {});
        }
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  async #readStatus() {
    if (this.key && this.#hasStatus && !this.problem) {
      try {
        return await callJson("/v1/status", { key: this.key });
      } catch (error) {
        const status = error instanceof ApiError ? error.status : 0;
        this.#hasStatus = status !== 404;
        this.problem = status === 401 ? explain(error) : null;
      }
    }
    try {
      const response = await fetch("/ready", { credentials: "omit", cache: "no-store" });
      return await response.json();
    } catch {
      return { status: "out of reach" };
    }
  }
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function keepKey(key) {
  try {
    if (key) {
      sessionStorage.setItem(KEY, key);
    } else {
      sessionStorage.removeItem(KEY);
    }
  } catch {
    // Without storage the key lives as long as the page.
  }
}
