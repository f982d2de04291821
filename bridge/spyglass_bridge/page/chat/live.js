/** An answer while it is being written: what has come so far, and who watches it. The turn gets it all at the end. */

export class LiveAnswer {
  text = "";
  /** @type {import("./tree.js").Call[]} */
  calls = [];
  finishReason = null;
  usage = null;
  /** @type {{images: object[], tokens: object[]}|null} */
  attention = null;
  #watchers = new Set();
  #began = performance.now();
  #firstAt = null;
  #lastAt = null;

  /** @param {() => void} watcher called after each piece */
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** @param {any} chunk a chunk of a chat completion */
  take(chunk) {
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices?.[0];
    if (!choice) {
      return;
    }
    const { content, tool_calls: calls } = choice.delta ?? {};
    if (content || calls?.length) {
      this.#lastAt = performance.now();
      this.#firstAt ??= this.#lastAt;
    }
    if (typeof content === "string") {
      this.text += content;
    }
    for (const piece of calls ?? []) {
      const call = (this.calls[piece.index] ??= { id: "", name: "", arguments: "" });
      call.id ||= piece.id ?? "";
      call.name ||= piece.function?.name ?? "";
      call.arguments += piece.function?.arguments ?? "";
    }
    this.finishReason = choice.finish_reason ?? this.finishReason;
    this.#takeAttention(choice.image_attention);
    for (const watcher of this.#watchers) {
      watcher();
    }
  }

  #takeAttention(found) {
    if (found?.tokens?.length) {
      this.attention ??= { images: found.images ?? [], tokens: [] };
      this.attention.tokens.push(...found.tokens);
    }
  }

  /** @returns {import("./tree.js").Figures} */
  figures() {
    const used = this.usage;
    const tokens = used?.completion_tokens ?? 0;
    const spanS = this.#firstAt !== null && this.#lastAt !== null ? (this.#lastAt - this.#firstAt) / 1000 : 0;
    return {
      firstTokenMs: this.#firstAt === null ? null : this.#firstAt - this.#began,
      totalMs: performance.now() - this.#began,
      promptTokens: used?.prompt_tokens ?? 0,
      cachedTokens: used?.prompt_tokens_details?.cached_tokens ?? 0,
      completionTokens: tokens,
      cost: used?.estimated_cost ?? 0,
      tokensPerSecond: tokens > 1 && spanS > 0 ? (tokens - 1) / spanS : null,
    };
  }
}
