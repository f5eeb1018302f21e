// A table of an answer, with a button that copies it for a spreadsheet: rows of cells with tabs between them.

import { make } from "./dom.js";
import { say } from "./i18n.js";

/** Return a block with a table that may still grow. `copy(text)` runs with its text at that time. */
export function tableBlock(table, copy, className = "") {
  const button = make("button", {
    type: "button",
    className: "ghost small",
    textContent: say("copyTable"),
    title: say("copyTableHelp"),
  });
  button.addEventListener("click", () => copy(toTsv(table)));
  const scrolled = make("div", { className: `table ${className}`.trim(), tabIndex: 0 }, table);
  return make("div", { className: "table-block" }, scrolled, make("div", { className: "table-foot" }, button));
}

/** Return the cells row by row. The text of a merged cell stands in its first place, and the others are empty. */
export function toTsv(table) {
  const grid = [];
  for (const [y, row] of [...table.rows].entries()) {
    grid[y] ??= [];
    let x = 0;
    for (const cell of row.cells) {
      while (grid[y][x] !== undefined) x += 1;
      for (let down = 0; down < cell.rowSpan && y + down < table.rows.length; down += 1) {
        grid[y + down] ??= [];
        for (let right = 0; right < cell.colSpan; right += 1) grid[y + down][x + right] = "";
      }
      grid[y][x] = cell.innerText.trim().replace(/\s+/g, " ");
    }
  }
  return grid.map((cells) => Array.from(cells, (text) => text ?? "").join("\t")).join("\n");
}
