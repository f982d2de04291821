/** Pictures on their way into a request: from files, pastes, drops and addresses. */

const SENT_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const QUALITY = 0.9;
const SHRINK = 0.75;
export const USUAL_MOST_BYTES = 20 * 2 ** 20;

export class PictureError extends Error {}

/**
 * Reads a picture. One that is larger than the server takes is scaled down; a kind that it does not take becomes PNG.
 * @param {File|Blob} file
 * @param {number} mostBytes
 * @returns {Promise<import("./tree.js").Picture>}
 * @throws {PictureError}
 */
export async function readPicture(file, mostBytes) {
  const name = file instanceof File && file.name ? file.name : "pasted picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new PictureError(`${name} is not a picture that this browser can read.`);
  }
  const { width, height } = bitmap;
  const fits = SENT_TYPES.includes(file.type) && file.size <= mostBytes;
  const sent = fits ? { blob: file, width, height } : await scaled(bitmap, file.type, mostBytes);
  bitmap.close();
  return { id: newId(), name, type: sent.blob.type, width: sent.width, height: sent.height, data: await dataUri(sent.blob) };
}

/**
 * A picture that the server will fetch. This page does not: it would tell the other site who looks.
 * @param {string} text
 * @returns {import("./tree.js").Picture}
 * @throws {PictureError}
 */
export function pictureAt(text) {
  const written = text.trim();
  if (!URL.canParse(written) || !/^https?:$/.test(new URL(written).protocol)) {
    throw new PictureError("This is not an http or https address.");
  }
  const url = new URL(written);
  return { id: newId(), name: url.host, url: url.href };
}

/** @param {DataTransfer|null} transfer @returns {File[]} the pictures that are pasted or dropped */
export function picturesIn(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

async function scaled(bitmap, type, mostBytes) {
  const target = type === "image/jpeg" || type === "image/webp" ? "image/jpeg" : "image/png";
  for (let share = 1; share > 0.02; share *= SHRINK) {
    const width = Math.max(1, Math.round(bitmap.width * share));
    const height = Math.max(1, Math.round(bitmap.height * share));
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, target, QUALITY));
    if (blob && blob.size <= mostBytes) {
      return { blob, width, height };
    }
  }
  throw new PictureError("The picture cannot be made small enough to be sent.");
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(new PictureError("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(2)), (part) => part.toString(36)).join("");
}
