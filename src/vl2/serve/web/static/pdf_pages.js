// PDF files: the server draws their pages, and a person chooses which of them to ask about.

import { drawPages } from "./api.js";
import { byId, make } from "./dom.js";
import { say } from "./i18n.js";
import { blobOf, blobUrl, openPicture } from "./pictures.js";

const THUMB_PX = 240; // the longer side
const BATCH = 24; // thumbnails of one request
const MAX_SHOWN = 2000; // pages of a file

export const isPdf = (file) => file.type === "application/pdf" || /\.pdf$/i.test(file.name);

/**
 * Return the pages that a person chooses as pictures; none if the dialog is canceled. A file of one page has no dialog.
 * `most` is how many may be chosen, `maxBytes` the limit for a file. Throw an Error with a sentence if it cannot be read.
 */
export async function choosePages(file, most, maxBytes) {
  if (file.size > maxBytes) {
    throw new Error(say("tooLarge", file.name, (file.size / 2 ** 20).toFixed(1), Math.floor(maxBytes / 2 ** 20)));
  }
  const url = (await blobUrl(file)).replace(/^data:[^,;]*/, "data:application/pdf"); // some systems know no type
  const first = await drawPages(url, range(1, BATCH), { max_side_px: THUMB_PX, format: "jpeg" });
  const numPages = Math.min(first.num_pages, MAX_SHOWN);
  const chosen = numPages === 1 ? [1] : await new PageDialog(file.name, url, numPages, first.data, most).ask();
  const pictures = [];
  while (pictures.length < chosen.length) {
    // The server draws as many as it has time for.
    const { data } = await drawPages(url, chosen.slice(pictures.length), {});
    if (!data.length) break;
    for (const page of data) {
      const drawn = new File([blobOf(page.url)], say("pdfPage", file.name, page.page), { type: "image/png" });
      pictures.push(await openPicture(drawn, maxBytes));
    }
  }
  return pictures;
}

const range = (first, count) => Array.from({ length: count }, (_, index) => first + index);

class PageDialog {
  constructor(name, url, numPages, thumbs, most) {
    Object.assign(this, { url, numPages, most });
    this.boxes = range(1, numPages).map((page) => this.pageElement(page));
    this.wanted = new Set(); // pages that came into view and have no thumbnail yet
    this.isLoading = false;
    byId("pages-title").textContent = name;
    byId("pages-list").replaceChildren(...this.boxes.map(({ parentElement }) => parentElement));
    byId("pages-error").hidden = true;
    for (const thumb of thumbs) this.showThumb(thumb);
    this.observer = new IntersectionObserver((seen) => this.see(seen), { root: byId("pages-list"), rootMargin: "400px" });
  }

  /** Show the dialog, and return the chosen pages in their order. */
  ask() {
    const dialog = byId("pages");
    const end = new AbortController();
    const listen = (id, run) => byId(id).addEventListener("click", run, { signal: end.signal });
    const check = (isChecked) => {
      for (const [index, box] of this.boxes.entries()) box.checked = isChecked && index < this.most;
      this.showCount();
    };
    listen("pages-all", () => check(true));
    listen("pages-none", () => check(false));
    listen("cancel-pages", () => dialog.close());
    byId("pages-list").addEventListener("change", () => this.showCount(), { signal: end.signal });
    this.showCount();
    dialog.returnValue = "";
    dialog.showModal();
    for (const box of this.boxes) this.observer.observe(box.parentElement);
    return new Promise((resolve) => {
      dialog.addEventListener(
        "close",
        () => {
          end.abort();
          this.observer.disconnect();
          byId("pages-list").replaceChildren();
          resolve(dialog.returnValue === "add" ? this.chosen() : []);
        },
        { once: true },
      );
    });
  }

  chosen() {
    return this.boxes.flatMap((box, index) => (box.checked ? [index + 1] : []));
  }

  showCount() {
    const count = this.chosen().length;
    byId("pages-count").textContent = count > this.most ? say("pagesOver", this.most) : say("pagesChosen", count, this.numPages);
    byId("pages-count").classList.toggle("is-over", count > this.most);
    byId("add-pages").disabled = count === 0 || count > this.most;
  }

  /** Return the checkbox of a page, within its label. */
  pageElement(page) {
    const box = make("input", { type: "checkbox", value: page, attributes: { "aria-label": say("pageNumber", page) } });
    make("label", { className: "page" }, box, make("span", { className: "page-thumb" }), make("span", { className: "page-number", textContent: page }));
    return box;
  }

  showThumb({ page, width, height, url }) {
    const image = make("img", { src: URL.createObjectURL(blobOf(url)), alt: "", width, height });
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    this.boxes[page - 1]?.parentElement.querySelector(".page-thumb").replaceChildren(image);
  }

  see(seen) {
    for (const { target, isIntersecting } of seen) {
      const page = Number(target.querySelector("input").value);
      const isMissing = isIntersecting && !target.querySelector("img");
      if (isMissing) this.wanted.add(page);
      else this.wanted.delete(page); // what was scrolled past need not be drawn
    }
    this.load();
  }

  async load() {
    if (this.isLoading) return;
    this.isLoading = true;
    try {
      while (this.wanted.size && byId("pages").open) {
        const pages = [...this.wanted].sort((one, other) => one - other).slice(0, BATCH);
        const { data } = await drawPages(this.url, pages, { max_side_px: THUMB_PX, format: "jpeg" });
        for (const thumb of data) {
          this.showThumb(thumb);
          this.wanted.delete(thumb.page);
        }
        if (!data.length) break;
      }
    } catch (error) {
      this.wanted.clear();
      byId("pages-error").textContent = error.message;
      byId("pages-error").hidden = false;
    } finally {
      this.isLoading = false;
    }
  }
}
