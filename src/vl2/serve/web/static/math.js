// Formulas in LaTeX: \( \), \[ \], $ $ and $$ $$. KaTeX draws them; its 0.5 MB are loaded with the first formula.

import { make } from "./dom.js";

const MAX_TEX = 5000; // characters of a formula; a longer one is shown as it was written
const MAX_CACHED = 500;
const CLOSERS = { "\\(": "\\)", "\\[": "\\]", $$: "$$", $: "$" };
const OPTIONS = { throwOnError: true, trust: false, strict: "ignore", maxExpand: 500, maxSize: 30, output: "htmlAndMathml" };

let loading = null;
const drawn = new Map(); // elements by formula: an answer that is still coming is built again and again

/** Add the rules for formulas to a parser of Markdown. Their tokens are "math", with {isDisplay, tail} in `meta`. */
export function addMathRules(parser) {
  parser.inline.ruler.before("escape", "math", readInline);
  parser.block.ruler.before("table", "math_block", readBlock, { alt: ["paragraph", "blockquote", "list"] });
}

function readInline(state, silent) {
  const { src, pos } = state;
  const opener = ["\\(", "\\[", "$$", "$"].find((mark) => src.startsWith(mark, pos));
  if (!opener) return false;
  const end = opener === "$" ? endOfDollars(src, pos) : endOf(state, CLOSERS[opener], pos + opener.length);
  if (end < 0) return false;
  const closer = CLOSERS[opener];
  const tex = src.slice(pos + opener.length, end);
  if (!tex.trim() || tex.length > MAX_TEX) return false;
  if (!silent) {
    const meta = { isDisplay: opener === "\\[" || opener === "$$", tail: "" };
    Object.assign(state.push("math", "", 0), { content: tex, markup: `${opener}${tex}${closer}`, meta });
  }
  state.pos = end + closer.length;
  return true;
}

/** Return where the closing mark stands, or -1. Where it was sought in vain once, it is not sought again. */
function endOf(state, closer, from) {
  state.closersGone ??= new Set();
  if (state.closersGone.has(closer)) return -1;
  const end = state.src.indexOf(closer, from);
  if (end < 0) state.closersGone.add(closer);
  return end;
}

/** The same of a single dollar, which may also be a price: no blank within the marks, and no digit after them. */
function endOfDollars(src, pos) {
  if (!/\S/.test(src[pos + 1] ?? "")) return -1;
  for (let end = src.indexOf("$", pos + 1); end > 0 && end - pos < MAX_TEX; end = src.indexOf("$", end + 1)) {
    if (/[^\s\\]/.test(src[end - 1]) && !/[\d$]/.test(src[end + 1] ?? "")) return end;
  }
  return -1;
}

/**
 * Read a formula that begins a line. It ends with its closing mark, at a blank line, or with the text: so what follows
 * never changes where the block begins. One without a closing mark is shown as it was written.
 */
function readBlock(state, start, end, silent) {
  const line = (number) => state.src.slice(state.bMarks[number] + state.tShift[number], state.eMarks[number]);
  const first = line(start);
  const opener = ["\\[", "$$"].find((mark) => first.startsWith(mark));
  if (!opener || state.sCount[start] - state.blkIndent >= 4) return false;
  const closer = CLOSERS[opener];
  const closes = first.indexOf(closer, 2);
  if (closes >= 0 && first.slice(closes + 2).trim()) return false; // words follow in the line
  if (silent) return true;
  const lines = [];
  let tail = null;
  let next = start;
  for (; next < end && tail === null && line(next).trim() && state.sCount[next] >= state.blkIndent; next += 1) {
    const text = next === start ? first.slice(2) : line(next);
    const at = text.indexOf(closer);
    lines.push(at < 0 ? text : text.slice(0, at));
    if (at >= 0) tail = text.slice(at + closer.length).trim();
  }
  state.line = next;
  const tex = lines.join("\n");
  const isWhole = tail !== null && tex.trim() !== "" && tex.length <= MAX_TEX;
  const written = `${opener}${tex}${tail === null ? "" : closer}`;
  Object.assign(state.push("math", "", 0), {
    block: true,
    content: isWhole ? tex : "",
    markup: written,
    meta: { isDisplay: true, tail: tail ?? "" },
    map: [start, next],
  });
  return true;
}

/** Return an element with a formula: as it was written until KaTeX is there, and for good where KaTeX cannot read it. */
export function mathElement(tex, written, isDisplay) {
  const properties = { className: isDisplay ? "math math-display" : "math", textContent: written };
  const element = make("span", isDisplay ? { ...properties, tabIndex: 0 } : properties); // a wide one is scrolled
  if (!tex) return element;
  if (globalThis.katex) draw(element, tex, isDisplay);
  else load().then(() => draw(element, tex, isDisplay), () => {}); // without KaTeX what was written stays
  return element;
}

function load() {
  loading ??= new Promise((resolve, reject) => {
    const style = make("link", { rel: "stylesheet", href: "/web/katex/katex.min.css" });
    style.addEventListener("load", () => resolve(import("./katex/katex.min.js")));
    style.addEventListener("error", reject);
    document.head.append(style);
  });
  return loading;
}

function draw(element, tex, isDisplay) {
  const key = `${isDisplay} ${tex}`;
  if (!drawn.has(key)) {
    const place = document.createElement("span");
    try {
      globalThis.katex.render(tex, place, { ...OPTIONS, displayMode: isDisplay });
      drawn.set(key, place.firstChild);
    } catch {
      drawn.set(key, null); // not LaTeX that KaTeX knows, or nested too deep
    }
    if (drawn.size > MAX_CACHED) drawn.delete(drawn.keys().next().value);
  }
  const known = drawn.get(key);
  if (known) element.replaceChildren(known.cloneNode(true));
}
