// Boxes in an answer: <|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>, on a scale of 0 to 999.

export const SCALE = 999;
// Private characters that stand for a mention while Markdown is read; taken out of the answer before.
export const MENTION_START = "\uE000";
export const MENTION_END = "\uE001";

const GROUP = /<\|ref\|>([\s\S]{0,1000}?)<\|\/ref\|>(?:\s*<\|det\|>([\d\s,[\]]*)(?:<\|\/det\|>|$)?)?/g;
const BOX = /\[\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\]/g;
const STRAY_BOXES = /<\|det\|>[\d\s,[\]]*(?:<\|\/det\|>|$)?/g;
const TAG = /<\|\/?(?:ref|det|grounding)\|>/g;
const TAG_BEGUN = /<(?:\|(?:\/?[a-z]{0,9}\|?)?)?$/; // the end of a text that is still coming

/**
 * Split an answer into Markdown, in which each mention is a number between MENTION_START and MENTION_END, and the
 * mentions: [{label, boxes: [[x0, y0, x1, y1]]}]. Malformed boxes are left out, unfinished ones too.
 */
export function readAnswer(text, isComplete = true) {
  const mentions = [];
  let clean = text.replaceAll(MENTION_START, "").replaceAll(MENTION_END, "");
  clean = clean.replace(GROUP, (_, label, list) => {
    const boxes = boxesIn(list ?? "");
    const name = label.trim();
    if (!boxes.length) return name;
    mentions.push({ label: name, boxes });
    return `${MENTION_START}${mentions.length - 1}${MENTION_END}`;
  });
  clean = clean.replace(STRAY_BOXES, (list) => {
    const boxes = boxesIn(list);
    if (!boxes.length) return "";
    mentions.push({ label: "", boxes });
    return `${MENTION_START}${mentions.length - 1}${MENTION_END}`;
  });
  clean = clean.replace(TAG, "");
  if (!isComplete) clean = clean.replace(TAG_BEGUN, "");
  return { markdown: clean, mentions };
}

function boxesIn(list) {
  return [...list.matchAll(BOX)]
    .map((match) => match.slice(1, 5).map(Number))
    .filter((box) => Math.max(...box) <= SCALE);
}

/** Return the answer without tags and boxes, as it is copied. */
export function plainText(text) {
  const { markdown, mentions } = readAnswer(text);
  return markdown.replace(/\uE000(\d+)\uE001/g, (_, index) => mentions[index].label);
}

export function toPixels(box, { width, height }) {
  return box.map((value, index) => (value / SCALE) * (index % 2 ? height : width));
}
