/** Keeps the conversations in this browser's IndexedDB, so that a reload finds them again. */

import { createStore, get, set } from "../vendor/idb-keyval.js";
import { readLanes } from "./transfer.js";

const NAME = "conversations";

let store;

function opened() {
  store ??= createStore("spyglass", "playground");
  return store;
}

/** @param {{lanes: object[], active: number}} chats */
export async function saveChats(chats) {
  try {
    await set(NAME, chats, opened());
  } catch {
    // A private window without storage: the conversation lives as long as the page.
  }
}

/** @returns {Promise<{lanes: import("./chats.js").Lane[], active: number}|null>} */
export async function loadChats() {
  try {
    const kept = await get(NAME, opened());
    if (!kept) {
      return null;
    }
    return { lanes: readLanes(kept.lanes), active: Number(kept.active) || 0 };
  } catch {
    return null;
  }
}
