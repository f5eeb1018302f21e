// Markdown to elements, never through HTML: tags in a text are shown as text, links go to http(s) only.

import { make } from "./dom.js";

const INLINE =
  /(`+)([\s\S]*?)\1|\*\*(?=\S)([\s\S]+?)\*\*|\*(?=[^\s*])([^*\n]+?)\*|\[([^\]\n]{1,300})\]\((https?:\/\/[^\s)]{1,2000})\)|\uE000(\d+)\uE001/g;
const FENCE = /^\s{0,3}(```+|~~~+)/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const ROW = /^\s*\|.*\|\s*$/;
const DIVIDER = /^\s*\|(?:\s*:?-{1,}:?\s*\|)+\s*$/;

/** Return the elements of a text. `mention(index)` makes the element of a mention (see grounding.js). */
export function renderMarkdown(text, mention) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      const end = lines.findIndex((other, index) => index > at && other.trim().startsWith(fence[1]));
      const stop = end < 0 ? lines.length : end;
      blocks.push(make("pre", {}, make("code", { textContent: lines.slice(at + 1, stop).join("\n") })));
      at = stop + 1;
    } else if (HEADING.test(line)) {
      const [, marks, title] = HEADING.exec(line);
      blocks.push(make(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(title, mention)));
      at += 1;
    } else if (/^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/.test(line)) {
      blocks.push(make("hr"));
      at += 1;
    } else if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "")) {
      const end = endOf(lines, at, (other) => ROW.test(other));
      blocks.push(table(lines.slice(at, end), mention));
      at = end;
    } else if (ITEM.test(line)) {
      const end = endOf(lines, at, (other) => ITEM.test(other) || /^\s{2,}\S/.test(other));
      blocks.push(list(lines.slice(at, end), mention));
      at = end;
    } else if (/^\s*>/.test(line)) {
      const end = endOf(lines, at, (other) => /^\s*>/.test(other));
      const quoted = lines.slice(at, end).map((other) => other.replace(/^\s*>\s?/, ""));
      blocks.push(make("blockquote", {}, ...renderMarkdown(quoted.join("\n"), mention)));
      at = end;
    } else {
      const end = endOf(lines, at, (other, index) => other.trim() && (index === at || !startsBlock(lines, index)));
      blocks.push(make("p", {}, ...inline(lines.slice(at, end).join("\n"), mention)));
      at = end;
    }
  }
  return blocks;
}

function startsBlock(lines, index) {
  const line = lines[index];
  return FENCE.test(line) || HEADING.test(line) || ITEM.test(line) || /^\s*>/.test(line)
    || (ROW.test(line) && DIVIDER.test(lines[index + 1] ?? ""));
}

function endOf(lines, start, belongs) {
  let end = start;
  while (end < lines.length && belongs(lines[end], end)) end += 1;
  return Math.max(end, start + 1);
}

function list(lines, mention) {
  const entries = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match) entries.push({ depth: match[1].length, isNumbered: match[3] !== undefined, start: match[3], text: match[4] });
    else if (entries.length) entries[entries.length - 1].text += `\n${line.trim()}`;
  }
  const build = (from, to) => {
    const depth = entries[from].depth;
    const element = make(entries[from].isNumbered ? "ol" : "ul");
    if (entries[from].isNumbered) element.start = Number(entries[from].start);
    for (let index = from; index < to; index += 1) {
      let next = index + 1;
      while (next < to && entries[next].depth > depth) next += 1;
      const item = make("li", {}, ...inline(entries[index].text, mention));
      if (next > index + 1) item.append(build(index + 1, next));
      element.append(item);
      index = next - 1;
    }
    return element;
  };
  return build(0, entries.length);
}

function table(lines, mention) {
  const cells = (line) => line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => make(tag, {}, ...inline(cell, mention))));
  return make(
    "div",
    { className: "table", tabIndex: 0 },
    make("table", {}, make("thead", {}, row(lines[0], "th")), make("tbody", {}, ...lines.slice(2).map((l) => row(l, "td")))),
  );
}

function inline(text, mention) {
  const nodes = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    pushText(nodes, text.slice(last, match.index));
    const [whole, , code, strong, emphasis, label, url, index] = match;
    if (code !== undefined) nodes.push(make("code", { textContent: code.trim() }));
    else if (strong !== undefined) nodes.push(make("strong", {}, ...inline(strong, mention)));
    else if (emphasis !== undefined) nodes.push(make("em", {}, ...inline(emphasis, mention)));
    else if (url !== undefined) nodes.push(make("a", { href: url, rel: "noopener noreferrer", target: "_blank", textContent: label }));
    else nodes.push(mention(Number(index)));
    last = match.index + whole.length;
  }
  pushText(nodes, text.slice(last));
  return nodes;
}

function pushText(nodes, text) {
  text.split("\n").forEach((part, index) => {
    if (index) nodes.push(make("br"));
    if (part) nodes.push(document.createTextNode(part));
  });
}
