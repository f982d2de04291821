/** Where the model looked: choose words of an answer, and see over each picture what they attended to. */

import { counted } from "../format.js";
import { html, useEffect, useId, useMemo, useRef, useState } from "../ui.js";
import { averageMap, drawHeat, heatColour } from "./heat.js";

const MOST_PIXELS = 560;

/**
 * @param {{attention: {images: import("./heat.js").Grid[], tokens: object[]}, pictures: import("./tree.js").Picture[]}} props
 *   the pictures of the conversation up to the answer, in the same order
 */
export function WhereItLooked({ attention, pictures }) {
  const tokens = attention.tokens;
  const [range, setRange] = useState([0, 0]);
  const [pointed, setPointed] = useState(null);
  const [opacity, setOpacity] = useState(0.75);
  const slider = useId("opacity");
  const [from, to] = pointed === null ? [Math.min(...range), Math.max(...range)] : [pointed, pointed];
  const chosen = tokens.slice(from, to + 1);
  const choose = (event, index) => setRange(event.shiftKey ? [range[0], index] : [index, index]);
  const press = (event, index) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step ? Math.min(tokens.length - 1, Math.max(0, index + step)) : { Home: 0, End: tokens.length - 1 }[event.key];
    if (next === undefined) {
      return;
    }
    event.preventDefault();
    setRange(event.shiftKey ? [range[0], next] : [next, next]);
    event.currentTarget.parentElement.children[next].focus();
  };
  return html`<section class="looked" aria-label="Where it looked">
    <header class="looked-head">
      <h4>Where it looked</h4>
      <div class="row">
        <button type="button" class="quiet" onClick=${() => setRange(wordAround(tokens, range[1]))}>Word</button>
        <button type="button" class="quiet" onClick=${() => setRange(sentenceAround(tokens, range[1]))}>Sentence</button>
        <button type="button" class="quiet" onClick=${() => setRange([0, tokens.length - 1])}>All</button>
      </div>
    </header>
    <div class="tokens" role="group" aria-label="Tokens of the answer; with Shift a range" onMouseLeave=${() => setPointed(null)}>
      ${tokens.map(
        (token, index) => html`<button
          type="button"
          class="token"
          key=${index}
          tabindex=${index === range[1] ? 0 : -1}
          aria-pressed=${index >= Math.min(...range) && index <= Math.max(...range) ? "true" : "false"}
          onClick=${(event) => choose(event, index)}
          onMouseEnter=${() => setPointed(index)}
          onKeyDown=${(event) => press(event, index)}
        >${shown(token.token)}</button>`,
      )}
    </div>
    <div class="looked-pictures">
      ${attention.images.map((grid, index) => html`<${Overlay} key=${index} ...${{ grid, index, chosen, opacity }} picture=${pictures[index]} />`)}
    </div>
    <footer class="looked-foot">
      <${Legend} />
      <label for=${slider}>Overlay</label>
      <input id=${slider} type="range" min="0" max="1" step="0.05" value=${opacity}
        onInput=${(event) => setOpacity(Number(event.currentTarget.value))} />
      <span class="soft">${counted(chosen.length, "token")}: “${chosen.map((token) => token.token).join("").trim()}”</span>
    </footer>
  </section>`;
}

function shown(text) {
  return text.replace(/\n/g, "⏎").replace(/^ +| +$/g, "\u00a0") || "·";
}

function Overlay({ grid, index, chosen, opacity, picture }) {
  const element = useRef(null);
  const [image, setImage] = useState(null);
  const map = useMemo(() => averageMap(chosen, index, grid), [chosen[0], chosen.length, index]);
  useEffect(() => {
    if (!picture?.data) {
      return undefined;
    }
    const loading = new Image();
    loading.onload = () => setImage(loading);
    loading.src = picture.data;
    return () => {
      loading.onload = null;
    };
  }, [picture?.id]);
  useEffect(() => draw(element.current, image, map, grid, opacity), [image, map, opacity]);
  const name = picture?.name ?? `picture ${index + 1}`;
  return html`<figure>
    <canvas ref=${element} role="img" aria-label=${map ? `${name}, ${describe(map)}` : `${name}: no attention was kept for this choice`}></canvas>
    <figcaption>${name}${map ? html`<span class="soft"> · at most ${(map.peak * 100).toFixed(2)} % in a patch</span>` : html`<span class="soft"> · nothing was kept for this choice</span>`}</figcaption>
  </figure>`;
}

/** Where the most of a map lies, in words. */
function describe(map) {
  const most = map.values.indexOf(Math.max(...map.values));
  const across = ["left", "middle", "right"][Math.floor(((most % map.columns) / map.columns) * 3)];
  const down = ["top", "centre", "bottom"][Math.floor((Math.floor(most / map.columns) / map.rows) * 3)];
  return `most attention at the ${down} ${across}`;
}

function draw(element, image, map, grid, opacity) {
  const context = element?.getContext("2d");
  if (!context) {
    return;
  }
  const width = image?.naturalWidth || grid.covered_columns;
  const height = image?.naturalHeight || grid.covered_rows;
  const scale = MOST_PIXELS / Math.max(width, height);
  element.width = Math.round(width * scale);
  element.height = Math.round(height * scale);
  if (image) {
    context.drawImage(image, 0, 0, element.width, element.height);
  } else {
    context.fillStyle = "#888888";
    context.fillRect(0, 0, element.width, element.height);
  }
  if (map) {
    drawHeat(context, map, grid, opacity);
  }
}

function Legend() {
  const element = useRef(null);
  useEffect(() => {
    const context = element.current.getContext("2d");
    for (let x = 0; x < 120; x += 1) {
      context.fillStyle = `rgb(${heatColour(x / 119).join(" ")})`;
      context.fillRect(x, 0, 1, 10);
    }
  }, []);
  return html`<span class="legend"><span>little</span><canvas ref=${element} width="120" height="10" aria-hidden="true"></canvas><span>most</span></span>`;
}

function wordAround(tokens, index) {
  let from = index;
  let to = index;
  while (from > 0 && !/^\s/.test(tokens[from].token)) {
    from -= 1;
  }
  while (to < tokens.length - 1 && !/^\s/.test(tokens[to + 1].token)) {
    to += 1;
  }
  return [from, to];
}

function sentenceAround(tokens, index) {
  const ends = (token) => /[.!?:]["')]*\s*$|\n/.test(token.token);
  let from = index;
  let to = index;
  while (from > 0 && !ends(tokens[from - 1])) {
    from -= 1;
  }
  while (to < tokens.length - 1 && !ends(tokens[to])) {
    to += 1;
  }
  return [from, to];
}
