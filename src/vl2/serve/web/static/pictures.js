// Pictures that a person adds: checked, measured, and turned into what is sent.

import { make, newId } from "./dom.js";
import { say } from "./i18n.js";

const SENDABLE = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
let count = 0; // of pictures that came without a name

/** Return {id, name, blob, url, width, height, mark} of a file. Error with a sentence if it is no picture. */
export async function openPicture(file, maxBytes) {
  const name = file.name || `picture-${(count += 1)}.png`;
  const checkSize = ({ size }) => {
    if (size > maxBytes) {
      throw new Error(say("tooLarge", name, (size / 2 ** 20).toFixed(1), Math.floor(maxBytes / 2 ** 20)));
    }
  };
  checkSize(file);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(say("notPicture", name));
  }
  const { width, height } = bitmap; // upright, as the server holds it
  // What only a browser can read (AVIF, SVG) goes out as PNG.
  const blob = SENDABLE.includes(file.type) ? file : await toPng(bitmap);
  bitmap.close();
  checkSize(blob);
  return { id: newId(), name, blob, url: URL.createObjectURL(blob), width, height, mark: null };
}

/** Return a picture that was kept, ready to be shown. */
export const restorePicture = (kept) => ({ ...kept, url: URL.createObjectURL(kept.blob) });

async function toPng(source) {
  const canvas = make("canvas", { width: source.width, height: source.height });
  canvas.getContext("2d").drawImage(source, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** Return the data URL that is sent: the file as it is, or with the marked object in a red rectangle. */
export async function dataUrl(picture) {
  return blobUrl(picture.mark ? await withMark(picture) : picture.blob);
}

/** Return the content of a data URL in base64. */
export function blobOf(url) {
  const [, type, base64] = /^data:([^;,]*);base64,(.*)$/s.exec(url);
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}

/** Return the content of a blob as a data URL. */
export function blobUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function withMark(picture) {
  const bitmap = await createImageBitmap(picture.blob);
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0);
  bitmap.close();
  const [x0, y0, x1, y1] = picture.mark;
  const line = Math.max(2, Math.round(Math.min(picture.width, picture.height) / 90));
  pen.strokeStyle = "red";
  pen.lineWidth = line;
  pen.strokeRect(x0 - line / 2, y0 - line / 2, x1 - x0 + line, y1 - y0 + line); // around it, not over it
  // Of a photo as PNG the noise of its sensor alone would be more than the server takes.
  const type = ["image/jpeg", "image/webp"].includes(picture.blob.type) ? "image/jpeg" : "image/png";
  return new Promise((resolve) => canvas.toBlob(resolve, type, 0.95));
}

/** Return the pictures among the files of a paste or a drop. */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}
