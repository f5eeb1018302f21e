// A page that was read, beside what was read on it: a block and its box on the page light each other up.

import { BoxedPicture, colorsOf, cutOut, isPictureBlock, linkMentions } from "./boxes.js";
import { byId, make } from "./dom.js";
import { say } from "./i18n.js";
import { MarkdownView } from "./markdown.js";
import { makeZoomable } from "./zoom.js";

/** Open the view. `blocks` are those of the API's answer, `pictures` their pages; `copy(text)` copies. */
export function openDocument({ blocks, markdown, pictures, copy }) {
  // A block is to its boxes what a mention in an answer is: see grounding.js.
  const mentions = blocks.map(({ type, boxes_999, page }) => ({ label: type, boxes: boxes_999, page }));
  const colors = colorsOf(mentions);
  const pages = make("div", {
    className: "document-pages",
    tabIndex: 0,
    attributes: { role: "group", "aria-label": say("documentPages") },
  });
  for (const [page, picture] of pictures.entries()) pages.append(pageElement(picture, mentions, page));
  const text = make("div", { className: "document-text answer-text" });
  text.append(...blocks.map((block, index) => blockSection(block, index, colors.get(block.type), pictures[block.page], copy)));
  const { buttons } = makeZoomable(pages, { needsCtrl: true });
  byId("document-title").textContent = pictures[0]?.name ?? "";
  const copyAll = make("button", { type: "button", className: "ghost small", textContent: say("copyMarkdown") });
  copyAll.addEventListener("click", () => copy(markdown));
  byId("document-tools").replaceChildren(buttons, copyAll);
  const place = byId("document-place");
  const scope = make("div", { className: "document" }, pages, text); // a new one, without the listeners of the last
  place.replaceChildren(scope);
  linkMentions(scope);
  linkPlaces(pages, text);
  byId("document").showModal();
}

function pageElement(picture, mentions, page) {
  const boxed = new BoxedPicture(picture);
  boxed.update(mentions, page);
  // A box within a larger one must be reachable by the pointer, so it comes after it.
  const area = (box) => Number.parseFloat(box.style.width) * Number.parseFloat(box.style.height);
  boxed.frame.append(...[...boxed.frame.querySelectorAll(".box")].sort((one, other) => area(other) - area(one)));
  return boxed.frame;
}

function blockSection({ type, text, boxes_999 }, index, color, picture, copy) {
  const name = make("span", { className: "mention block-type", textContent: type || say("unnamed") });
  const body = make("div", { className: "block-body" });
  const section = make(
    "section",
    { className: "block", tabIndex: 0, dataset: { mention: index }, attributes: { "aria-label": type || say("unnamed") } },
    name,
    body,
  );
  section.style.setProperty("--color", color);
  name.style.setProperty("--color", color);
  if (picture && isPictureBlock(type)) {
    body.append(...boxes_999.filter(([x0, y0, x1, y1]) => x0 < x1 && y0 < y1).map((box) => cutOut(picture, box)));
  }
  new MarkdownView(body, { mention: () => "", label: () => "", copy }).update(text.replace(/[\uE000\uE001]/g, ""));
  return section;
}

/** Scroll to the other side of what is clicked, or reached by keyboard. */
function linkPlaces(pages, text) {
  const counterpart = (place, target) => {
    const index = target.closest("[data-mention]")?.dataset.mention;
    return index === undefined ? null : place.querySelector(`[data-mention="${index}"]`);
  };
  const show = (element) => element?.scrollIntoView({ block: "nearest", inline: "nearest" });
  pages.addEventListener("click", ({ target }) => {
    const block = counterpart(text, target);
    block?.focus({ preventScroll: true });
    show(block);
  });
  text.addEventListener("focusin", ({ target }) => show(counterpart(pages, target)));
}
