// Pictures that can be made larger: by wheel, by pinching, by keys and by buttons. What is too large is scrolled.

import { BoxedPicture, linkMentions } from "./boxes.js";
import { byId, make } from "./dom.js";
import { say } from "./i18n.js";

const MOST = 8;
const STEP = 1.25;

/**
 * Let the pictures in a scrolled element be zoomed; their width in style.css is a multiple of --zoom. With `needsCtrl`
 * the wheel alone scrolls. Returns {buttons, reset}: an element with buttons, and a function for the first size.
 */
export function makeZoomable(viewport, { needsCtrl }) {
  let zoom = 1;
  const pointers = new Map(); // fingers on the picture, by their ids
  let spread = 0; // the distance of two fingers
  const figure = make("output", { className: "zoom-figure", textContent: "100%" });

  /** Zoom, while what lies at a point of the window stays there. */
  const zoomTo = (wanted, at = centerOf(viewport)) => {
    const picture = pictureAt(viewport, at);
    const before = picture?.getBoundingClientRect();
    zoom = Math.min(MOST, Math.max(1, wanted));
    viewport.style.setProperty("--zoom", zoom);
    if (before?.width) {
      const after = picture.getBoundingClientRect();
      const scale = after.width / before.width;
      viewport.scrollBy(after.left + (at.x - before.left) * scale - at.x, after.top + (at.y - before.top) * scale - at.y);
    }
    figure.textContent = `${Math.round(zoom * 100)}%`;
  };
  viewport.addEventListener(
    "wheel",
    (event) => {
      if (needsCtrl && !event.ctrlKey) return;
      event.preventDefault();
      zoomTo(zoom * Math.exp(-event.deltaY / (event.deltaMode ? 20 : 400)), { x: event.clientX, y: event.clientY });
    },
    { passive: false },
  );
  viewport.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // those are the browser's
    if (event.key === "+" || event.key === "=") zoomTo(zoom * STEP);
    else if (event.key === "-") zoomTo(zoom / STEP);
    else if (event.key === "0") zoomTo(1);
    else return;
    event.preventDefault();
  });
  viewport.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "touch") return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    spread = spreadOf(pointers);
  });
  viewport.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size !== 2) return;
    const now = spreadOf(pointers);
    const [one, other] = pointers.values();
    if (spread > 0) zoomTo(zoom * (now / spread), { x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
    spread = now;
  });
  for (const end of ["pointerup", "pointercancel"]) viewport.addEventListener(end, ({ pointerId }) => pointers.delete(pointerId));
  const button = (text, words, run) => {
    const element = make("button", { type: "button", className: "ghost icon", textContent: text, attributes: { "aria-label": say(words) }, title: say(words) });
    element.addEventListener("click", run);
    return element;
  };
  const buttons = make(
    "div",
    { className: "zoom-buttons" },
    button("−", "zoomOut", () => zoomTo(zoom / STEP)),
    figure,
    button("+", "zoomIn", () => zoomTo(zoom * STEP)),
  );
  zoomTo(1);
  return { buttons, reset: () => zoomTo(1) };
}

/** Return the picture at a height of the window, or the first. */
function pictureAt(viewport, { y }) {
  const pictures = [...viewport.children];
  return pictures.find((picture) => picture.getBoundingClientRect().bottom >= y) ?? pictures[0];
}

const centerOf = (element) => {
  const { left, top, width, height } = element.getBoundingClientRect();
  return { x: left + width / 2, y: top + height / 2 };
};

function spreadOf(pointers) {
  if (pointers.size !== 2) return 0;
  const [one, other] = pointers.values();
  return Math.hypot(one.x - other.x, one.y - other.y);
}

/** Show a picture with its boxes in the whole window. `mentions` and `page` as for BoxedPicture. */
export function openZoom(picture, mentions, page) {
  const dialog = byId("zoom");
  const viewport = make("div", {
    className: "zoom-viewport",
    tabIndex: 0,
    attributes: { role: "group", "aria-label": say("zoomHelp") },
  });
  const boxed = new BoxedPicture(picture);
  boxed.update(mentions, page);
  viewport.append(boxed.frame);
  const { buttons } = makeZoomable(viewport, { needsCtrl: false });
  byId("zoom-title").textContent = picture.name;
  byId("zoom-tools").replaceChildren(buttons);
  byId("zoom-place").replaceChildren(viewport);
  linkMentions(viewport);
  dialog.showModal();
  viewport.focus();
}
