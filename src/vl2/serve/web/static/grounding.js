// Boxes in an answer: <|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>, on a scale of 0 to 999.

export const SCALE = 999;
// A mention while Markdown is read: its number between two private characters, taken out of the answer before.
export const MENTION = /\uE000(\d+)\uE001/g;

const TAG = /<\|\/?(?:ref|det|grounding)\|>/g;
const TAG_BEGUN = /<(?:\|(?:\/?[a-z]{0,9}\|?)?)?$/; // the end of a text that is still coming
const LIST = /^[\d\s,[\]]*/;
const BOX = /\[\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9}\]/g;
const MAX_LABEL = 1000; // characters; what is longer is a lost end tag, not a label

/**
 * Split an answer into Markdown, in which each mention is its number (see MENTION), and the mentions in their order:
 * [{label, boxes: [[x0, y0, x1, y1]]}]. Malformed boxes are left out, unfinished ones too. Goes over the text once.
 */
export function readAnswer(text, isComplete = true) {
  let clean = text.replace(/[\uE000\uE001]/g, "");
  if (!isComplete) clean = clean.replace(TAG_BEGUN, "");
  const mentions = [];
  const parts = []; // what is shown, piece by piece
  let label = null; // where in `parts` the words stand that boxes may follow
  let last = { tag: "", end: 0 };
  const take = (body) => {
    if (last.tag === "<|ref|>") {
      label = body.length <= MAX_LABEL ? parts.length : null;
    } else if (last.tag === "<|det|>") {
      const [list] = LIST.exec(body);
      const boxes = boxesIn(list);
      if (boxes.length) addMention(mentions, parts, label, boxes);
      label = null;
      body = body.slice(list.length);
    } else if (body.trim()) {
      label = null; // other words stand between
    }
    parts.push(body);
  };
  for (const match of clean.matchAll(TAG)) {
    take(clean.slice(last.end, match.index));
    last = { tag: match[0], end: match.index + match[0].length };
  }
  take(clean.slice(last.end));
  return { markdown: parts.join(""), mentions };
}

/** Put a mention in the place of the words that name it, or at the end where none do. */
function addMention(mentions, parts, label, boxes) {
  const mark = `\uE000${mentions.length}\uE001`;
  const words = label === null ? "" : parts[label];
  mentions.push({ label: words.trim().replace(/\s+/g, " "), boxes });
  if (label === null) {
    parts.push(mark);
  } else {
    const [before] = /^\s*/.exec(words);
    parts[label] = `${before}${mark}${words.slice(before.length + words.trim().length)}`;
    parts.splice(label + 1); // blanks between the words and their boxes
  }
}

function boxesIn(list) {
  return [...list.matchAll(BOX)]
    .map((match) => match.slice(1, 5).map(Number))
    .filter((box) => Math.max(...box) <= SCALE);
}

/** Return the answer without tags and boxes, as it is copied. */
export function plainText(text) {
  const { markdown, mentions } = readAnswer(text);
  return markdown.replace(MENTION, (_, index) => mentions[index].label);
}

export function toPixels(box, { width, height }) {
  return box.map((value, index) => (value / SCALE) * (index % 2 ? height : width));
}
