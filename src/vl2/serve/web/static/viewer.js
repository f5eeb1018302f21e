// One picture before it is sent: how it will be cut, what it costs, and the object marked in it.

import { byId, make } from "./dom.js";
import { say } from "./i18n.js";

let shown = null; // {picture, plan, onMark}

/** Open the dialog. `plan`: the server's report on this picture, or null; `onMark` runs when the mark has changed. */
export function openViewer(picture, plan, onMark) {
  shown = { picture, plan, onMark };
  byId("viewer-title").textContent = picture.name;
  byId("viewer-figures").textContent = plan ? figures(plan) : "";
  byId("viewer-stage").replaceChildren(stage(picture, plan));
  showCorners();
  byId("viewer").showModal();
}

function figures(plan) {
  const [columns, rows] = plan.grid;
  if (columns * rows === 1) return say("figuresWhole", ...plan.size, ...plan.canvas, plan.visual_tokens);
  return say(
    "figures", ...plan.size, ...plan.canvas, plan.tiles_encoded - 1, columns, rows,
    plan.visual_tokens, plan.global_tokens, plan.visual_tokens - plan.global_tokens,
  );
}

/** The canvas as the model gets it: the picture on gray, cut by lines. */
function stage(picture, plan) {
  const canvas = plan?.canvas ?? [picture.width, picture.height];
  const resized = plan?.resized ?? canvas;
  const offset = plan?.offset ?? [0, 0];
  const [columns, rows] = plan?.grid ?? [1, 1];
  const image = make("img", { src: picture.url, alt: picture.name, draggable: false });
  const mark = make("div", { className: "mark-box", id: "mark-box", hidden: true });
  const inner = make("div", { className: "stage-picture" }, image, mark);
  const share = (value, whole) => `${(value / whole) * 100}%`;
  Object.assign(inner.style, {
    left: share(offset[0], canvas[0]),
    top: share(offset[1], canvas[1]),
    width: share(resized[0], canvas[0]),
    height: share(resized[1], canvas[1]),
  });
  const outer = make("div", { className: "stage-canvas" }, inner);
  outer.style.aspectRatio = `${canvas[0]} / ${canvas[1]}`;
  outer.style.setProperty("--ratio", canvas[0] / canvas[1]);
  const line = (className, side, at) => {
    const element = make("i", { className: `tile-line ${className}` });
    element.style[side] = at;
    outer.append(element);
  };
  for (let column = 1; column < columns; column += 1) line("vertical", "left", share(column, columns));
  for (let row = 1; row < rows; row += 1) line("horizontal", "top", share(row, rows));
  connectPointer(inner, picture);
  return outer;
}

function connectPointer(inner, picture) {
  let start = null;
  const at = (event) => {
    const place = inner.getBoundingClientRect();
    const x = ((event.clientX - place.left) / place.width) * picture.width;
    const y = ((event.clientY - place.top) / place.height) * picture.height;
    return [Math.min(picture.width, Math.max(0, x)), Math.min(picture.height, Math.max(0, y))].map(Math.round);
  };
  inner.addEventListener("pointerdown", (event) => {
    start = at(event);
    inner.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  inner.addEventListener("pointermove", (event) => {
    if (start) drawMark(ordered(start, at(event)));
  });
  inner.addEventListener("pointerup", (event) => {
    if (start) drawMark(ordered(start, at(event)));
    start = null;
  });
  inner.addEventListener("pointercancel", () => (start = null));
}

const ordered = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

function drawMark(box) {
  setMark(box);
  showCorners();
}

function setMark(box) {
  const isArea = box !== null && box[2] - box[0] >= 2 && box[3] - box[1] >= 2;
  shown.picture.mark = isArea ? box : null;
  showMark();
  shown.onMark();
}

function showCorners() {
  const { picture } = shown;
  for (const input of corners()) {
    input.max = Number(input.dataset.corner) % 2 ? picture.height : picture.width;
    input.value = picture.mark ? picture.mark[input.dataset.corner] : "";
  }
  showMark();
}

function showMark() {
  const { picture } = shown;
  const place = byId("mark-box");
  place.hidden = picture.mark === null;
  if (!picture.mark) return;
  const [x0, y0, x1, y1] = picture.mark;
  Object.assign(place.style, {
    left: `${(x0 / picture.width) * 100}%`,
    top: `${(y0 / picture.height) * 100}%`,
    width: `${((x1 - x0) / picture.width) * 100}%`,
    height: `${((y1 - y0) / picture.height) * 100}%`,
  });
}

const corners = () => [...byId("mark").querySelectorAll("[data-corner]")];

/** Connect what stays in the page. */
export function connectViewer() {
  byId("clear-mark").addEventListener("click", () => {
    drawMark(null);
  });
  byId("mark").addEventListener("input", () => {
    const values = corners().map((input) => Number.parseInt(input.value, 10));
    const { width, height } = shown.picture;
    const inside = values.map((value, index) => Math.min(index % 2 ? height : width, Math.max(0, value)));
    // The fields stay as they are typed: half a number is not yet a corner.
    setMark(values.some(Number.isNaN) ? null : inside);
  });
}
