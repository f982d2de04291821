/**
 * What a prompt will be before it is sent: its tokens, what they cost, and the tiles of its pictures. Asked of the server
 * when nothing has changed for a moment; of pictures only their sizes travel.
 */

import { ApiError, callJson } from "../api.js";
import { useEffect, useState } from "../ui.js";

const PAUSE_MS = 300;

/**
 * @typedef {{tile_size: number, rows: number, columns: number, picture_width: number, picture_height: number}} Canvas
 * @typedef {{count: number, most: number, cost: number|null, canvases: Canvas[]}} Estimate
 */

/** Stands for a picture: its size says what there is to know. Of one at an address nobody here knows the size. */
export function sizeOnly(picture, detail) {
  return { width: picture.width ?? 560, height: picture.height ?? 560, ...(detail === "auto" ? {} : { detail }) };
}

/**
 * @param {import("../session.js").Session} session
 * @param {import("./chats.js").Chats} chats
 * @returns {Estimate|null}
 */
export function useEstimate(session, chats) {
  const [estimate, setEstimate] = useState(null);
  const hasDraft = Boolean(chats.draft.text.trim() || chats.draft.pictures.length);
  const { messages, tools, model } = hasDraft ? chats.nextRequest(sizeOnly) : {};
  const asked = hasDraft && session.key && session.model ? JSON.stringify({ model, messages, tools }) : "";
  useEffect(() => {
    if (!asked) {
      setEstimate(null);
      return undefined;
    }
    const abort = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const told = await callJson("/tokenize", { key: session.key, body: JSON.parse(asked), signal: abort.signal });
        setEstimate(readEstimate(told, session.model));
      } catch (error) {
        if (error instanceof ApiError) {
          setEstimate(null);
        }
      }
    }, PAUSE_MS);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [asked]);
  return estimate;
}

function readEstimate(told, model) {
  const price = model?.metadata?.pricing?.input_tokens;
  return {
    count: told.count,
    most: told.max_model_len,
    cost: told.estimated_cost ?? (price === undefined ? null : (told.count * price) / 1e6),
    canvases: told.images ?? [],
  };
}
