// Tables in HTML, as the DeepSeek-OCR family writes them. Of the markup only rows, cells, their spans and line breaks are
// read. The elements are made here, so nothing of a text becomes markup.

import { make } from "./dom.js";
import { tableBlock } from "./table_copy.js";

const MAX_SPAN = 100; // columns or rows of one merged cell
const TAG = /<(\/?)([a-z][a-z0-9]*)((?:\s[^<>]*|\/)?)>/gi;
const TABLE_TAG = /<(\/?)table(?:\s[^<>]*)?>/gi;
const ENTITIES = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'", nbsp: "\u00A0" };

/** Add the rule for tables to a parser of Markdown: a block from `<table` to the end tag, or to the end of the text. */
export function addTableRule(parser) {
  parser.block.ruler.before("table", "html_table", (state, start, end, silent) => {
    const line = (number) => state.src.slice(state.bMarks[number] + state.tShift[number], state.eMarks[number]);
    if (!/^<table[\s>]/i.test(line(start))) return false;
    if (silent) return true;
    let last = start;
    let depth = 0;
    for (; last < end; last += 1) {
      for (const [, slash] of line(last).matchAll(TABLE_TAG)) depth += slash ? -1 : 1;
      if (depth <= 0) break;
    }
    state.line = Math.min(last + 1, end);
    Object.assign(state.push("html_table", "", 0), {
      content: state.getLines(start, state.line, state.blkIndent, false),
      map: [start, state.line],
    });
    return true;
  }, { alt: ["paragraph"] });
}

/** Return the elements of a table: its cells with their text, and before it the words outside of all cells. */
export function tableElements(html, plain, copy) {
  const { rows, outside } = readTable(html);
  const cells = (row) => row.map(({ tag, text, spans }) => make(tag, { textContent: plain(tidy(text)), ...spans }));
  const table = make("table", {}, ...rows.map((row) => make("tr", {}, ...cells(row))));
  const shown = tableBlock(table, copy, "html");
  const words = tidy(outside);
  return words ? [make("p", { textContent: plain(words) }), shown] : [shown];
}

function readTable(html) {
  const rows = [];
  let outside = "";
  let cell = null;
  let depth = 0; // of tables; the cells of an inner one are words of the outer cell
  let done = 0;
  const take = (text) => {
    if (cell) cell.text += text;
    else outside += text;
  };
  for (const match of html.matchAll(TAG)) {
    take(html.slice(done, match.index));
    done = match.index + match[0].length;
    const [, slash, name, attributes] = match;
    const tag = name.toLowerCase();
    if (tag === "table") depth += slash ? -1 : 1;
    const isCell = tag === "td" || tag === "th";
    if (depth > 1 || tag === "br" || tag === "p" || tag === "li") {
      take(isCell ? " " : tag === "b" || tag === "i" ? "" : "\n");
    } else if (tag === "tr" || isCell || tag === "table") {
      cell = null;
      if (tag === "tr" && !slash) rows.push([]);
      if (isCell && !slash) {
        if (!rows.length) rows.push([]);
        const span = (which) => Number(new RegExp(`\\b${which}\\s*=\\s*["']?(\\d{1,9})`, "i").exec(attributes)?.[1] ?? 1);
        const bounded = (value) => Math.min(MAX_SPAN, Math.max(1, value));
        cell = { tag, text: "", spans: { colSpan: bounded(span("colspan")), rowSpan: bounded(span("rowspan")) } };
        rows.at(-1).push(cell);
      }
    }
  }
  take(html.slice(done).replace(/<[^<>]*$/, "")); // without a tag that is still coming
  return { rows: rows.filter((row) => row.length), outside };
}

/** Return a text with its entities as characters, and without blank lines and blanks around its lines. */
function tidy(text) {
  const whole = text.replace(/&(?:([a-z]{2,4})|#(\d{1,7})|#x([0-9a-f]{1,6}));/gi, (all, name, decimal, hex) => {
    if (name) return ENTITIES[name.toLowerCase()] ?? all;
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff ? String.fromCodePoint(code) : all;
  });
  return whole.split("\n").map((line) => line.trim()).filter(Boolean).join("\n");
}
