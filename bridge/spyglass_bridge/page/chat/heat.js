/** Maps of attention as numbers and as colours. Knows no components. */

/** @typedef {{rows: number, columns: number, covered_rows: number, covered_columns: number}} Grid */

/**
 * The average of some tokens' maps of one image, cut to the patches that the picture covers, with its largest value as 1.
 * @param {object[]} tokens
 * @param {number} index which image
 * @param {Grid} grid
 * @returns {{values: Float32Array, rows: number, columns: number, peak: number}|null} null where no token has a map
 */
export function averageMap(tokens, index, grid) {
  const rows = Math.max(1, Math.min(grid.rows, Math.ceil(grid.covered_rows)));
  const columns = Math.max(1, Math.min(grid.columns, Math.ceil(grid.covered_columns)));
  const values = new Float32Array(rows * columns);
  let count = 0;
  for (const token of tokens) {
    const map = token.maps[index];
    const bytes = map ? decode(map.data, grid.rows * grid.columns) : null;
    if (!bytes) {
      continue;
    }
    count += 1;
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        values[row * columns + column] += (bytes[row * grid.columns + column] / 255) * map.scale;
      }
    }
  }
  const peak = values.reduce((most, value) => Math.max(most, value), 0) / Math.max(1, count);
  if (!count || !peak) {
    return null;
  }
  return { values: values.map((value) => value / count / peak), rows, columns, peak };
}

function decode(text, size) {
  try {
    const binary = atob(text);
    return binary.length === size ? Uint8Array.from(binary, (character) => character.charCodeAt(0)) : null;
  } catch {
    return null;
  }
}

/** Colours from nothing to the most: clear, violet, orange, pale yellow, as in inferno. */
const STOPS = [
  [0, [20, 11, 52]],
  [0.25, [87, 16, 110]],
  [0.5, [188, 55, 84]],
  [0.75, [249, 142, 9]],
  [1, [252, 255, 164]],
];

/** @param {number} value 0 to 1 @returns {number[]} red, green, blue */
export function heatColour(value) {
  const at = Math.max(
    1,
    STOPS.findIndex(([place]) => value <= place),
  );
  const [from, first] = STOPS[at - 1];
  const [to, second] = STOPS[at];
  const share = Math.min(1, Math.max(0, (value - from) / (to - from)));
  return first.map((channel, index) => Math.round(channel + (second[index] - channel) * share));
}

/**
 * Draws a map over a canvas of any size, smoothly.
 * @param {CanvasRenderingContext2D} context
 * @param {{values: Float32Array, rows: number, columns: number}} map
 * @param {Grid} grid
 * @param {number} opacity 0 to 1
 */
export function drawHeat(context, map, grid, opacity) {
  const small = document.createElement("canvas");
  small.width = map.columns;
  small.height = map.rows;
  const pixels = small.getContext("2d").createImageData(map.columns, map.rows);
  map.values.forEach((value, index) => {
    pixels.data.set([...heatColour(value), Math.round(255 * (0.15 + 0.85 * Math.sqrt(value)))], index * 4);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const { width, height } = context.canvas;
  context.save();
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  // The last row and column of patches may lie half outside of the picture.
  context.drawImage(small, 0, 0, (width * map.columns) / grid.covered_columns, (height * map.rows) / grid.covered_rows);
  context.restore();
}
