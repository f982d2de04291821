/** What components are written with: htm templates, preact's hooks, and a store that re-renders whoever looks at it. */

import { html, render, useCallback, useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/preact.js";

export { html, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState };

/** Something that changes and tells so. Owners change their fields and then call `changed`. */
export class Store {
  /** How often it has changed. */
  version = 0;
  #listeners = new Set();

  /**
   * @param {() => void} listener called after each change
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  changed() {
    this.version += 1;
    for (const listener of [...this.#listeners]) {
      listener();
    }
  }
}

/**
 * Renders the component again whenever the store changes.
 * @template {Store} T
 * @param {T} store
 * @returns {T}
 */
export function useStore(store) {
  const [, again] = useReducer((count) => count + 1, 0);
  const seen = store.version;
  useEffect(() => {
    if (store.version !== seen) {
      again();
    }
    return store.subscribe(again);
  }, [store]);
  return store;
}

let lastId = 0;

/** @param {string} [prefix] @returns {string} an id that no other element of the page has */
export function uniqueId(prefix = "id") {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

/** @param {string} [prefix] @returns {string} the same id for as long as the component lives */
export function useId(prefix) {
  return useMemo(() => uniqueId(prefix), []);
}
