// Markdown to elements. markdown-it reads it; elements are made here from its tokens, never through HTML:
// tags in a text are shown as text, links go to http(s) only, pictures are never fetched. Only tables in HTML are read.

import "./markdown-it.umd.min.js";
import { make } from "./dom.js";
import { MENTION } from "./grounding.js";
import { addTableRule, tableElements } from "./html_table.js";
import { say } from "./i18n.js";
import { addMathRules, mathElement } from "./math.js";
import { tableBlock } from "./table_copy.js";

const MAX_LEVEL = 16; // quotes and lists inside each other; what is deeper is shown as it was written
const MAX_DEPTH = 40; // elements inside each other: a browser's layout is recursive, and ends the tab at some thousands

const parser = globalThis.markdownit({ html: false, breaks: true });
// Indented code would swallow indented text of a page that was read. A definition of a link, wherever it
// stands, changes links before it: without it, what follows a block never changes the block.
parser.disable(["code", "reference"]);
parser.validateLink = (url) => /^https?:\/\//i.test(url);
const [readTable] = parser.block.ruler.getRules(""); // the first of them is that of tables
parser.block.ruler.at("table", (state, start, end, silent) => {
  if (!readTable(state, start, end, true) || isMostlyMissing(state, start, end)) return false;
  return silent || readTable(state, start, end, false);
}, { alt: ["paragraph"] });
parser.block.ruler.before("table", "too_deep", (state, start, end, silent) => {
  if (silent || state.level < MAX_LEVEL) return false;
  state.push("paragraph_open", "p", 1).map = [start, end];
  Object.assign(state.push("inline", "", 0), {
    content: state.getLines(start, end, state.blkIndent, false).trim(),
    map: [start, end],
    children: [],
  });
  state.push("paragraph_close", "p", -1);
  state.line = end;
  return true;
});

addTableRule(parser);
addMathRules(parser);

/** Shows a text that grows. */
export class MarkdownView {
  /**
   * `element` takes the blocks. Of a mention (see grounding.js), `mention(index)` makes the element and `label(index)`
   * gives the words; `copy(text)` runs when a person wants the text of a code block or a table.
   */
  constructor(element, { mention, label, copy }) {
    Object.assign(this, { element, mention, label, copy });
    this.settled = ""; // the text of the blocks that no later text can change
    this.open = []; // the elements of the others
  }

  /** Show the text. Where it begins as the one before, the blocks that are settled stay the elements they are. */
  update(text) {
    const whole = text.replace(/\r\n?/g, "\n");
    if (!whole.startsWith(this.settled)) {
      this.settled = "";
      this.open = [...this.element.children];
    }
    const rest = whole.slice(this.settled.length);
    const tokens = parser.parse(rest, {});
    const { index, line } = lastBlock(tokens, rest.split("\n").length - 1);
    for (const element of this.open) element.remove();
    this.element.append(this.build(tokens.slice(0, index)));
    const open = this.build(tokens.slice(index));
    this.open = [...open.children];
    this.element.append(open);
    this.settled += rest.slice(0, offsetOf(rest, line));
  }

  /** Return the elements of tokens. Not recursive, however deep they nest. */
  build(tokens) {
    const root = document.createDocumentFragment();
    const within = [root]; // the elements that are open
    const flat = tokens.flatMap((token) => (token.type === "inline" ? token.children : [token]));
    for (const token of flat) {
      const place = within.at(-1);
      if (token.nesting < 0) within.pop();
      else if (token.nesting > 0) within.push(token.hidden || within.length > MAX_DEPTH ? place : this.begin(token, place));
      else this.appendLeaf(token, place);
    }
    return root;
  }

  /** Add the element that a token opens, and return it. */
  begin(token, place) {
    const tag = /^h\d$/.test(token.tag) ? `h${Math.min(6, Number(token.tag[1]) + 2)}` : token.tag;
    const element = make(tag);
    if (tag === "ol") element.start = Number(token.attrGet("start") ?? 1);
    if (tag === "a") Object.assign(element, { href: token.attrGet("href"), rel: "noopener noreferrer", target: "_blank" });
    const align = /text-align:(\w+)/.exec(token.attrGet("style") ?? "");
    if (align) element.style.textAlign = align[1];
    place.append(tag === "table" ? tableBlock(element, this.copy) : element);
    return element;
  }

  appendLeaf(token, place) {
    if (token.type === "text") place.append(...this.words(token.content, place));
    else if (token.type === "softbreak" || token.type === "hardbreak") place.append(make("br"));
    else if (token.type === "code_inline") place.append(make("code", { textContent: this.plain(token.content) }));
    else if (token.type === "fence") place.append(this.codeBlock(token));
    else if (token.type === "html_table") place.append(...tableElements(token.content, (text) => this.plain(text), this.copy));
    else if (token.type === "math") place.append(...this.formula(token));
    else if (token.type === "hr") place.append(make("hr"));
    else if (token.type === "image") place.append(imageLink(token.attrGet("src"), this.plain(token.content)));
    else place.append(this.plain(token.content));
  }

  /** Return the nodes of a text with mentions. In a link they are words, for a button has no place there. */
  words(text, place) {
    if (isInLink(place)) return [this.plain(text)];
    // Of a pattern with a group, every second part is what the group matched.
    return text.split(MENTION).map((part, index) => (index % 2 ? this.mention(Number(part)) : part));
  }

  plain(text) {
    return text.replace(MENTION, (_, index) => this.label(Number(index)));
  }

  formula({ content, markup, block, meta }) {
    const element = mathElement(this.plain(content), this.plain(markup), meta.isDisplay);
    if (!block) return [element];
    return [make("p", {}, element), ...(meta.tail ? [make("p", { textContent: this.plain(meta.tail) })] : [])];
  }

  codeBlock(token) {
    const text = this.plain(token.content).replace(/\n$/, "");
    const button = make("button", {
      type: "button",
      className: "ghost small",
      textContent: say("copyShort"),
      attributes: { "aria-label": say("copyCode") },
    });
    button.addEventListener("click", () => this.copy(text));
    const name = make("span", { textContent: token.info.trim().split(/\s/)[0].slice(0, 20) });
    const pre = make("pre", { tabIndex: 0 }, make("code", { textContent: text }));
    return make("div", { className: "code" }, make("div", { className: "code-head" }, name, button), pre);
  }
}

/** Whether a table would get many more cells than are written: a row may leave out cells, and two characters be a row. */
function isMostlyMissing({ src, bMarks, eMarks }, start, end) {
  const cells = (line) => src.slice(bMarks[line], eMarks[line]).split("|").length;
  let line = start + 2; // after the head and the line below it
  let written = 0;
  for (; line < end && src.slice(bMarks[line], eMarks[line]).trim(); line += 1) written += cells(line);
  return (line - start) * cells(start) > 2 * (written + cells(start)) + 50;
}

/** Return the place among the tokens, and the line, of the last block whose first line has come whole. */
function lastBlock(tokens, numLines) {
  const index = tokens.findLastIndex(({ level, nesting, map }) => level === 0 && nesting >= 0 && map?.[0] < numLines);
  return index < 0 ? { index: 0, line: 0 } : { index, line: tokens[index].map[0] };
}

/** Return where a line begins. */
function offsetOf(text, line) {
  let offset = 0;
  for (let count = 0; count < line; count += 1) offset = text.indexOf("\n", offset) + 1;
  return offset;
}

function imageLink(url, words) {
  return make("a", { href: url, rel: "noopener noreferrer", target: "_blank", textContent: words || url });
}

const isInLink = (place) => place instanceof Element && place.closest("a") !== null;
