// Boxes in an answer: <|ref|>label<|/ref|><|det|>[[x0, y0, x1, y1], ...]<|/det|>, on a scale of 0 to 999. Unlimited-OCR
// writes <|det|>label [x0, y0, x1, y1]<|/det|>, and <PAGE> before each of several pages.

export const SCALE = 999;
// A mention while Markdown is read: its number between two private characters, taken out of the answer before.
export const MENTION = /\uE000(\d+)\uE001/g;

const TAG = /<\|\/?(?:ref|det|grounding)\|>|<PAGE>/g;
const TAG_BEGUN = /<(?:\|(?:\/?[a-z]{0,9}\|?)?|P(?:A(?:GE?)?)?)?$/; // the end of a text that is still coming
const LIST = /^[\d\s,[\]]*/;
const NAMED_LIST = /^([^<[\]]{1,1000})(?=\[)/;
const BOX = /\[\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9},\s{0,9}(\d{1,4})\s{0,9}\]/g;
const MAX_LABEL = 1000; // characters; what is longer is a lost end tag, not a label

/**
 * Split an answer into Markdown, in which each mention is its number (see MENTION), and the mentions in their order:
 * [{label, boxes: [[x0, y0, x1, y1]], page}]. Malformed boxes are left out, unfinished ones too. Goes over the text once.
 * With `hasBlocks` a mention stands above the block that follows it, and tables stand alone.
 */
export function readAnswer(text, { isComplete = true, hasBlocks = false } = {}) {
  let clean = text.replace(/[\uE000\uE001]/g, "");
  if (!isComplete) clean = clean.replace(TAG_BEGUN, "");
  const mentions = [];
  const parts = []; // what is shown, piece by piece
  let label = null; // where in `parts` the words stand that boxes may follow
  let last = { tag: "", end: 0 };
  let numPages = 0;
  const take = (body) => {
    if (last.tag === "<|ref|>") {
      label = body.length <= MAX_LABEL ? parts.length : null;
    } else if (last.tag === "<|det|>") {
      const [name = ""] = NAMED_LIST.exec(body) ?? [];
      if (name) {
        label = parts.length;
        parts.push(name);
        body = body.slice(name.length);
      }
      const [list] = LIST.exec(body);
      const boxes = boxesIn(list);
      if (boxes.length) addMention(mentions, parts, label, boxes, Math.max(0, numPages - 1), hasBlocks);
      label = null;
      body = body.slice(list.length);
    } else if (body.trim()) {
      label = null; // other words stand between
    }
    parts.push(body);
  };
  for (const match of clean.matchAll(TAG)) {
    take(clean.slice(last.end, match.index));
    if (match[0] === "<PAGE>") numPages += 1;
    last = { tag: match[0], end: match.index + match[0].length };
  }
  take(clean.slice(last.end));
  const markdown = parts.join("");
  return {
    markdown: hasBlocks ? markdown.replace(/<table\b/gi, "\n\n$&").replace(/<\/table\s{0,9}>/gi, "$&\n\n") : markdown,
    mentions,
    numPages: Math.max(1, numPages),
  };
}

/** Put a mention in the place of the words that name it, or at the end where none do. */
function addMention(mentions, parts, label, boxes, page, hasBlocks) {
  const around = hasBlocks ? "\n\n" : "";
  const mark = `${around}\uE000${mentions.length}\uE001${around}`;
  const words = label === null ? "" : parts[label];
  mentions.push({ label: words.trim().replace(/\s+/g, " "), boxes, page });
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
