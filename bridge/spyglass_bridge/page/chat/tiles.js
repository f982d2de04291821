/** Draws a picture as the model will see it: scaled, at the top left of its canvas, cut into tiles. */

import { html, useEffect, useRef } from "../ui.js";

const MOST_PIXELS = 320;

/**
 * @param {{picture: import("./tree.js").Picture, canvas: import("./estimate.js").Canvas}} props
 */
export function TilePreview({ picture, canvas }) {
  const element = useRef(null);
  useEffect(() => {
    const image = new Image();
    image.onload = () => draw(element.current, image, canvas);
    image.src = picture.data;
    return () => {
      image.onload = null;
    };
  }, [picture.id, JSON.stringify(canvas)]);
  const tiles = canvas.rows * canvas.columns;
  const words = `${tiles} ${tiles === 1 ? "tile" : "tiles"} of ${canvas.tile_size} × ${canvas.tile_size}`;
  return html`<figure class="tiles">
    <canvas ref=${element} role="img" aria-label=${`${picture.name} as the model sees it: ${words}`}></canvas>
    <figcaption>
      ${canvas.columns} × ${canvas.rows} ${tiles === 1 ? "tile" : "tiles"}
      <span class="soft"> · seen at ${canvas.picture_width} × ${canvas.picture_height}</span>
    </figcaption>
  </figure>`;
}

function draw(element, image, canvas) {
  const context = element?.getContext("2d");
  if (!context) {
    return;
  }
  const width = canvas.columns * canvas.tile_size;
  const height = canvas.rows * canvas.tile_size;
  const scale = (MOST_PIXELS / Math.max(width, height)) * Math.min(2, devicePixelRatio || 1);
  element.width = Math.round(width * scale);
  element.height = Math.round(height * scale);
  element.style.setProperty("aspect-ratio", `${width} / ${height}`);
  const colours = getComputedStyle(element);
  context.fillStyle = colours.backgroundColor;
  context.fillRect(0, 0, element.width, element.height);
  hatch(context, element.width, element.height, colours.borderTopColor, scale);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.picture_width * scale, canvas.picture_height * scale);
  grid(context, canvas, scale, colours.color);
}

/** Stripes where there is only padding. */
function hatch(context, width, height, colour, scale) {
  context.strokeStyle = colour;
  context.lineWidth = Math.max(1, 6 * scale);
  for (let x = -height; x < width; x += 40 * scale) {
    context.beginPath();
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
    context.stroke();
  }
}

function grid(context, { rows, columns, tile_size: size }, scale, colour) {
  for (const [style, width] of [["#ffffff", 4], [colour, 2]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        context.strokeRect(column * size * scale, row * size * scale, size * scale, size * scale);
      }
    }
  }
}
