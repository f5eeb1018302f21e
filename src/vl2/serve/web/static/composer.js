// Where a question is made: its words, its task and its pictures, with what these will cost.

import { ApiError, planTiles } from "./api.js";
import { byId, make } from "./dom.js";
import { FieldsForm } from "./fields_form.js";
import { say } from "./i18n.js";
import { choosePages, isPdf } from "./pdf_pages.js";
import { filesOf, openPicture } from "./pictures.js";
import { makeQuestion, needsQuestion, tasksOf } from "./prompts.js";
import { served } from "./settings.js";
import { connectViewer, openViewer } from "./viewer.js";

export class Composer {
  /** `send({shown, prompt, pictures, task, query})` runs when a question is complete; `sizes(pictures)` as in Conversation. */
  constructor({ send, stop, sizes, hasPicture }) {
    Object.assign(this, { send, stop, sizes, hasPicture });
    this.pictures = [];
    this.limits = { max_images: 16, max_bytes: 20 * 2 ** 20 };
    this.plan = null;
    this.planning = null;
    this.isBusy = false;
    this.field = byId("question");
    this.fields = new FieldsForm({ changed: () => this.tell("") });
    this.connect();
    connectViewer();
    this.showTasks();
  }

  get task() {
    return byId("tasks").querySelector("input:checked").value;
  }

  connect() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("stop").addEventListener("click", () => this.stop());
    this.field.addEventListener("keydown", (event) => {
      // While an input method composes, Enter chooses characters.
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.submit();
      }
    });
    this.field.addEventListener("input", () => {
      this.tell("");
      this.fit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && !event.defaultPrevented && this.isBusy && !document.querySelector("dialog[open]")) this.stop();
    });
    byId("attach").addEventListener("click", () => byId("file").click());
    byId("camera").addEventListener("click", () => byId("camera-file").click());
    for (const id of ["file", "camera-file"]) {
      byId(id).addEventListener("change", async (event) => {
        const files = [...event.target.files];
        event.target.value = ""; // the same file may be chosen again
        await this.add(files);
      });
    }
    document.addEventListener("paste", (event) => {
      const files = filesOf(event.clipboardData);
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
    this.connectDrop();
    byId("tasks").addEventListener("change", () => {
      this.tell("");
      this.showPlaceholder();
    });
  }

  connectDrop() {
    const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    let depth = 0;
    const show = (isOver) => (byId("drop").hidden = !isOver);
    window.addEventListener("dragenter", (event) => {
      if (!hasFiles(event)) return;
      depth += 1;
      show(true);
    });
    window.addEventListener("dragleave", (event) => {
      if (!hasFiles(event)) return;
      depth -= 1;
      show(depth > 0);
    });
    window.addEventListener("dragover", (event) => {
      if (hasFiles(event)) event.preventDefault();
    });
    window.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth = 0;
      show(false);
      this.add(filesOf(event.dataTransfer));
    });
  }

  /** Take pictures in; each that cannot be taken is told. */
  async add(files) {
    this.tell("");
    for (const file of files) {
      const room = this.limits.max_images - this.sizes(this.pictures).flat().length;
      if (room < 1) {
        this.tell(say("tooMany", this.limits.max_images));
        break;
      }
      try {
        this.pictures.push(...(await this.read(file, room)));
      } catch (error) {
        const retry = error instanceof ApiError ? { words: "again", run: () => this.add([file]) } : null;
        this.tell(`${file.name}: ${error.message}`.replace(`${file.name}: ${file.name}`, file.name), retry);
      }
    }
    this.showPictures();
    this.focus();
  }

  /**
   * Say above the question what is wrong with it; "" takes back what was said. `action`: {words, run} of a button.
   * Several failures of one moment stand below each other.
   */
  tell(message, action = null) {
    const place = byId("composer-error");
    if (!message) place.replaceChildren();
    place.hidden = !message;
    if (!message) return;
    const line = make("p", { textContent: message });
    if (action) {
      const button = make("button", { type: "button", className: "ghost small", textContent: say(action.words) });
      button.addEventListener("click", () => {
        this.tell("");
        action.run();
      });
      line.append(" ", button);
    }
    if (![...place.children].some(({ textContent }) => textContent === line.textContent)) place.append(line);
  }

  /** Return the pictures of a file, at most `room` of them. */
  async read(file, room) {
    if (!isPdf(file)) return [await openPicture(file, this.limits.max_bytes)];
    const line = byId("plan");
    line.textContent = say("pdfOpening", file.name);
    line.hidden = false;
    try {
      return await choosePages(file, room, this.limits.max_bytes);
    } finally {
      this.updatePlan();
    }
  }

  /** Make ready for what an example asks. */
  async fill(file, task, question) {
    this.clear();
    byId("tasks").querySelector(`[value=${task}]`).checked = true;
    this.field.value = question;
    this.showPlaceholder();
    this.fit();
    await this.add([file]);
  }

  clear() {
    this.tell("");
    this.pictures = [];
    this.field.value = "";
    if (!needsQuestion(this.task)) byId("tasks").querySelector(`[value=${tasksOf(served.kind)[0]}]`).checked = true;
    this.showPictures();
    this.showPlaceholder();
    this.fit();
  }

  setBusy(isBusy) {
    this.isBusy = isBusy;
    const hadFocus = document.activeElement === byId(isBusy ? "send" : "stop");
    byId("send").hidden = isBusy;
    byId("stop").hidden = !isBusy;
    if (hadFocus) byId(isBusy ? "stop" : "send").focus();
  }

  submit() {
    if (this.isBusy) return;
    const question = this.field.value.trim();
    const missing = this.missing(question);
    if (missing) {
      this.tell(say(missing));
      this.focus();
      return;
    }
    const task = this.task;
    const asked = task === "extract" ? this.fields.question(this.pictures) : makeQuestion(task, question, this.pictures, served.kind);
    this.clear();
    this.send(asked);
  }

  missing(question) {
    const { task } = this;
    if (needsQuestion(task) && !question) return "needQuestion";
    if (task === "extract" && this.fields.missing()) return this.fields.missing();
    if (task === "like" && this.pictures.length !== 2) return "needTwo";
    if (task === "like" && !this.pictures[0].mark) return "needMark";
    if (task !== "ask" && !this.pictures.length && !this.hasPicture()) return "needImage";
    return null;
  }

  focus() {
    if (this.field.hidden) this.fields.focus();
    else this.field.focus();
  }

  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, 200)}px`;
  }

  /** Show the tasks of the model, and the placeholder, in the language of the page. Of a new model the first is chosen. */
  showTasks(isNewModel = false) {
    const tasks = tasksOf(served.kind);
    const before = byId("tasks").querySelector("input:checked")?.value;
    const chosen = !isNewModel && tasks.includes(before) ? before : tasks[0];
    const legend = byId("tasks").querySelector("legend");
    byId("tasks").replaceChildren(
      legend,
      ...tasks.map((task) =>
        make(
          "label",
          { className: "task" },
          make("input", { type: "radio", name: "task", value: task, checked: task === chosen }),
          make("span", { textContent: say(`task${task[0].toUpperCase()}${task.slice(1)}`) }),
        ),
      ),
    );
    this.showPlaceholder();
    this.showPictures();
  }

  showPlaceholder() {
    const { task } = this;
    this.field.placeholder = say(`place${task[0].toUpperCase()}${task.slice(1)}`);
    this.field.hidden = task === "extract";
    this.fields.show(task === "extract");
  }

  showPictures() {
    const place = byId("attachments");
    place.hidden = this.pictures.length === 0;
    place.replaceChildren(...this.pictures.map((picture, index) => this.pictureElement(picture, index)));
    this.updatePlan();
  }

  pictureElement(picture, index) {
    const open = make(
      "button",
      { type: "button", className: "attachment-open", title: say("open", picture.name), attributes: { "aria-label": say("open", picture.name) } },
      make("img", { src: picture.url, alt: "" }),
      make("span", { className: "cost", dataset: { cost: index } }),
    );
    if (picture.mark) open.append(make("span", { className: "flag", textContent: say("marked") }));
    open.addEventListener("click", () => openViewer(picture, this.reportOf(index), () => this.showPictures()));
    const remove = make("button", {
      type: "button",
      className: "remove",
      textContent: "×",
      title: say("remove", picture.name),
      attributes: { "aria-label": say("remove", picture.name) },
    });
    remove.addEventListener("click", () => {
      this.pictures.splice(index, 1);
      this.showPictures();
      this.field.focus();
    });
    return make("li", { className: "attachment" }, open, remove);
  }

  /** The server's report on one of the pictures. */
  reportOf(index) {
    return this.plan?.data.at(index - this.pictures.length) ?? null;
  }

  async updatePlan() {
    this.planning?.abort();
    this.plan = null;
    const line = byId("plan");
    line.hidden = this.pictures.length === 0;
    line.classList.remove("is-over");
    if (!this.pictures.length) return;
    this.planning = new AbortController();
    try {
      this.plan = await planTiles(this.sizes(this.pictures), this.planning.signal);
    } catch (error) {
      if (error.name !== "AbortError") line.textContent = say("planNone", error.message);
      return;
    }
    const { visual_tokens: tokens, tiles_encoded: tiles, context_length: most } = this.plan;
    line.classList.toggle("is-over", tokens >= most);
    line.textContent = tokens >= most ? say("planOver", tokens, most) : say("planAll", tokens, tiles, most);
    for (const element of byId("attachments").querySelectorAll("[data-cost]")) {
      element.textContent = say("tokens", this.reportOf(Number(element.dataset.cost)).visual_tokens);
    }
  }
}
