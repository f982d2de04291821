/** Server-sent events from the body of a fetch, as the standard describes their parsing. */

/** Splits text that arrives in pieces into the data of its events. Knows nothing of the network. */
export class EventParser {
  #rest = "";
  #data = [];
  #skipsLineFeed = false;

  /**
   * @param {string} piece
   * @returns {string[]} the data of the events that this piece completes
   */
  push(piece) {
    let text = piece;
    if (this.#skipsLineFeed && text) {
      text = text.startsWith("\n") ? text.slice(1) : text;
      this.#skipsLineFeed = false;
    }
    if (text.endsWith("\r")) {
      this.#skipsLineFeed = true;
    }
    const lines = (this.#rest + text).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() ?? "";
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) {
          events.push(this.#data.join("\n"));
          this.#data = [];
        }
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return events;
  }
}

/** How long events may be worked on before the page gets its turn. */
const TURN_MS = 8;

/**
 * The data of each event. Lets the page breathe between them, however fast they come.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  let began = performance.now();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) {
        return;
      }
      for (const data of parser.push(decoder.decode(value, { stream: true }))) {
        yield data;
        if (performance.now() - began > TURN_MS) {
          await nextTask();
          began = performance.now();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Ends the task: what waits, such as a click or a frame, goes first. */
export function nextTask() {
  return new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve(undefined);
    };
    channel.port2.postMessage(null);
  });
}
