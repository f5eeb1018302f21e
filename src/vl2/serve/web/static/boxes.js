// Boxes over a picture, tied to the words that name them, and the same as a PNG.

import { make } from "./dom.js";
import { SCALE, toPixels } from "./grounding.js";
import { say } from "./i18n.js";

// As in vl2.infer.draw: hues that stay apart for most color-blind people.
const COLORS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"];
const WHITE_ON = new Set(["#0072B2", "#000000"]); // black is read better on all the others

/** Return a color for each label, the first of them the first color. */
export function colorsOf(mentions) {
  const labels = [...new Set(mentions.map(({ label }) => label))];
  return new Map(labels.map((label, index) => [label, COLORS[index % COLORS.length]]));
}

const inkOn = (color) => (WHITE_ON.has(color) ? "#fff" : "#000");

/** A picture with the boxes of an answer that is still coming. `picture`: {url, name, width, height}. */
export class BoxedPicture {
  constructor(picture) {
    this.picture = picture;
    this.count = 0;
    const image = make("img", { src: picture.url, alt: picture.name, width: picture.width, height: picture.height });
    // The frame has the picture's shape, so that shares of it are shares of the picture.
    this.frame = make("div", { className: "frame" }, image);
    this.frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
    this.frame.style.setProperty("--ratio", picture.width / picture.height);
    const caption = make("figcaption", { className: "note", textContent: say("boxMeaning") });
    this.element = make("figure", { className: "annotated" }, this.frame, caption);
  }

  /** Show the picture larger when it is clicked, or by a button for those who have no pointer. */
  onOpen(open) {
    const button = make("button", {
      type: "button",
      className: "enlarge",
      title: say("enlarge"),
      textContent: "⤢",
      attributes: { "aria-label": say("enlarge") },
    });
    this.frame.append(button);
    this.frame.classList.add("can-open");
    this.frame.addEventListener("click", open);
  }

  /** Add the boxes that are new: an answer grows, and what has come stays. */
  update(mentions, page) {
    const colors = colorsOf(mentions);
    const all = mentions.flatMap(({ label, boxes, page: at }, index) =>
      at === page ? boxes.map((box) => ({ label, box, index })) : [],
    );
    for (const { label, box, index } of all.slice(this.count)) {
      this.frame.append(boxElement(box, label, index, colors.get(label), this.picture));
    }
    this.count = all.length;
    this.element.setAttribute("aria-label", say("picture", this.count));
  }
}

function boxElement([x0, y0, x1, y1], label, index, color, picture) {
  const [left, top, right, bottom] = toPixels([x0, y0, x1, y1], picture).map(Math.round);
  const element = make(
    "div",
    {
      className: "box",
      title: label,
      dataset: { mention: index },
      attributes: { role: "img", "aria-label": say("boxAt", label || say("unnamed"), left, top, right, bottom) },
    },
  );
  if (label) element.append(make("span", { className: "box-label", textContent: label, attributes: { "aria-hidden": "true" } }));
  const percent = (value) => `${(value / SCALE) * 100}%`;
  Object.assign(element.style, {
    left: percent(x0),
    top: percent(y0),
    width: percent(Math.max(0, x1 - x0)),
    height: percent(Math.max(0, y1 - y0)),
  });
  element.style.setProperty("--color", color);
  element.style.setProperty("--ink", inkOn(color));
  if (y0 < 60) element.classList.add("inside");
  return element;
}

// Types of blocks that are pictures, as in vl2.process.page_blocks.
const PICTURES = ["image", "figure", "picture"];
export const isPictureBlock = (type) => PICTURES.includes(type.toLowerCase());

/** Return what stands above a block: a button with its type, and for a picture what its boxes show. */
export function blockElement(mention, index, color, picture) {
  const button = mentionElement(mention, index, color);
  button.classList.add("block-type");
  if (picture && isPictureBlock(mention.label)) {
    button.append(...mention.boxes.filter(([x0, y0, x1, y1]) => x0 < x1 && y0 < y1).map((box) => cutOut(picture, box)));
  }
  return button;
}

/** Return an element that shows a part of a picture. */
export function cutOut(picture, [x0, y0, x1, y1]) {
  const [width, height] = [x1 - x0, y1 - y0];
  const image = make("img", { src: picture.url, alt: "" });
  const share = (value, whole) => `${(value / whole) * 100}%`;
  Object.assign(image.style, {
    width: share(SCALE, width),
    height: share(SCALE, height),
    left: share(-x0, width),
    top: share(-y0, height),
  });
  const element = make("span", { className: "cut-out" }, image);
  element.style.aspectRatio = `${width * picture.width} / ${height * picture.height}`;
  element.style.setProperty("--width", `${Math.round((width / SCALE) * picture.width)}px`);
  return element;
}

/** Return a button for the words that name boxes. */
export function mentionElement(mention, index, color) {
  const element = make("button", {
    type: "button",
    className: "mention",
    textContent: mention.label || `□ ${index + 1}`,
    dataset: { mention: index },
  });
  element.style.setProperty("--color", color);
  return element;
}

/** Let words and boxes of one answer light each other up, by pointer and by focus. */
export function linkMentions(scope) {
  const light = (target) => {
    const index = target?.closest?.("[data-mention]")?.dataset.mention;
    scope.classList.toggle("is-linked", index !== undefined);
    for (const element of scope.querySelectorAll("[data-mention]")) {
      element.classList.toggle("is-lit", element.dataset.mention === index);
    }
  };
  scope.addEventListener("pointerover", (event) => light(event.target));
  scope.addEventListener("pointerleave", () => light(null));
  scope.addEventListener("focusin", (event) => light(event.target));
  scope.addEventListener("focusout", () => light(null));
}

/** Return a PNG of the picture, in its own pixels, with boxes and labels. */
export async function drawPng(picture, mentions) {
  const bitmap = await createImageBitmap(picture.blob);
  const canvas = make("canvas", { width: picture.width, height: picture.height });
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, picture.width, picture.height);
  const colors = colorsOf(mentions);
  const unit = Math.max(2, Math.round(Math.min(picture.width, picture.height) / 200));
  const size = Math.max(12, 6 * unit);
  pen.font = `600 ${size}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  for (const { label, boxes } of mentions) {
    const color = colors.get(label);
    for (const box of boxes) {
      const [x0, y0, x1, y1] = toPixels(box, picture);
      pen.strokeStyle = color;
      pen.lineWidth = unit;
      pen.strokeRect(x0 + unit / 2, y0 + unit / 2, Math.max(0, x1 - x0 - unit), Math.max(0, y1 - y0 - unit));
      if (label) drawLabel(pen, label, x0, y0, size, color, picture);
    }
  }
  bitmap.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function drawLabel(pen, label, x, y, size, color, picture) {
  const width = pen.measureText(label).width + size / 2;
  const height = size * 1.4;
  const left = Math.max(0, Math.min(x, picture.width - width));
  const top = y >= height ? y - height : y;
  pen.fillStyle = color;
  pen.fillRect(left, top, width, height);
  pen.fillStyle = inkOn(color);
  pen.fillText(label, left + size / 4, top + size * 0.2);
}
