// The values of an extraction as a table, tied to their boxes on the page.

import { colorsOf } from "./boxes.js";
import { make } from "./dom.js";
import { leaves, readObject } from "./extraction.js";
import { say } from "./i18n.js";

/** Return the places of an answer as mentions: see grounding.js. */
export const mentionsOf = ({ places = [] }) => places.map(({ path, page, box }) => ({ label: named(path), boxes: [box], page }));

/** Return what there is to show of an answer: a table, or the text that has come so far. */
export function extractionElement({ text, places = [], placing, isDone }) {
  const value = readObject(text);
  if (!value) return make("pre", { className: "raw", tabIndex: 0, textContent: text });
  const colors = colorsOf(mentionsOf({ places }));
  const rows = leaves(value).map(({ path, value: leaf }) => {
    const index = places.findIndex((place) => place.path === path);
    const row = make("tr", {}, make("th", { scope: "row", textContent: named(path) }), make("td", { textContent: shown(leaf) }));
    row.classList.toggle("is-missing", leaf === null);
    if (index >= 0) {
      row.dataset.mention = index;
      row.tabIndex = 0;
      row.style.setProperty("--color", colors.get(named(path)));
    }
    return row;
  });
  const head = make("tr", {}, make("th", { scope: "col", textContent: say("field") }), make("th", { scope: "col", textContent: say("value") }));
  const table = make("table", { className: "values" }, make("thead", {}, head), make("tbody", {}, ...rows));
  const block = make("div", { className: "table", tabIndex: 0 }, table);
  if (isDone || !placing) return block;
  return make("div", {}, block, make("p", { className: "note", textContent: say("placing", placing.done + 1, placing.of) }));
}

/** Return a path as people read it: items/0/price is "items 1 price". */
const named = (path) => path.split("/").map((part) => (/^\d+$/.test(part) ? Number(part) + 1 : part)).join(" ");

const shown = (value) => {
  if (value === null) return say("notThere");
  if (typeof value === "boolean") return say(value ? "yes" : "no");
  return String(value);
};
