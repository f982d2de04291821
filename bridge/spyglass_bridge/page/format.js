/** Numbers, money and times as people read them. */

const WHOLE = new Intl.NumberFormat("en");

/** @param {number} count */
export function number(count) {
  return WHOLE.format(count);
}

/** @param {number} dollars */
export function money(dollars) {
  if (!Number.isFinite(dollars) || dollars === 0) {
    return "$0";
  }
  if (dollars >= 0.01) {
    return `$${dollars.toFixed(dollars >= 100 ? 0 : dollars >= 1 ? 2 : 4)}`;
  }
  return `$${dollars.toPrecision(2).includes("e") ? dollars.toFixed(10).replace(/0+$/, "") : dollars.toPrecision(2)}`;
}

/** @param {number} dollars a price per million tokens */
export function price(dollars) {
  return `$${dollars < 0.01 && dollars > 0 ? dollars.toPrecision(2) : dollars.toFixed(2)}`;
}

/** @param {number} tokens a context's length */
export function context(tokens) {
  return tokens >= 1024 && tokens % 1024 === 0 ? `${number(tokens / 1024)}k` : number(tokens);
}

/** @param {number} ms */
export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** @param {number} rate tokens a second */
export function speed(rate) {
  return rate >= 100 ? number(Math.round(rate)) : rate.toFixed(1);
}

/** @param {number} count @param {string} one @param {string} [many] */
export function counted(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}
