/** JSON values as literals of other languages. */

import { MARK_IN_JSON } from "./requests.js";

/** Writes JSON with the pictures' marks replaced. @param {(index: number) => string} picture with its quotes */
export function json(value, picture, indent = 2) {
  return JSON.stringify(value, null, indent).replace(MARK_IN_JSON, (_, index) => picture(Number(index)));
}

/**
 * A Python literal: JSON's strings and numbers are Python's too.
 * @param {unknown} value @param {(index: number) => string} picture an expression
 * @param {string} [margin] what stands before each further line
 */
export function python(value, picture, margin = "") {
  if (value === null || value === undefined) {
    return "None";
  }
  if (typeof value === "boolean") {
    return value ? "True" : "False";
  }
  if (typeof value !== "object") {
    return json(value, picture);
  }
  const deeper = `${margin}    `;
  const parts = Array.isArray(value)
    ? value.map((one) => python(one, picture, deeper))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, picture, deeper)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length + margin.length <= 88 && !line.includes("\n")) {
    return line;
  }
  return `${open}\n${parts.map((part) => `${deeper}${part},\n`).join("")}${margin}${close}`;
}

/** Text in a here-document of a shell in which variables are replaced. */
export function hereText(text) {
  return text.replace(/[\\$`]/g, "\\$&");
}
