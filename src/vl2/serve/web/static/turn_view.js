// One turn on the page: the question with its pictures, the answer as it comes, its boxes, and what can be done with it.

import { blockElement, BoxedPicture, colorsOf, drawPng, linkMentions, mentionElement } from "./boxes.js";
import { make, save, toast } from "./dom.js";
import { readObject, toCsv } from "./extraction.js";
import { extractionElement, mentionsOf } from "./extraction_view.js";
import { plainText, readAnswer } from "./grounding.js";
import { say } from "./i18n.js";
import { MarkdownView } from "./markdown.js";
import { openDocument } from "./document_view.js";
import { needsQuestion } from "./prompts.js";
import { openZoom } from "./zoom.js";

const PRESENCE = { yes: "presenceYes", no: "presenceNo" };
const MAX_QUESTION_PX = 320; // as in style.css

export class TurnView {
  /** `again(turn)` asks once more, `edit(turn, words)` with other words, and `choose(turn)` shows a variant. */
  constructor(turn, conversation, { again, edit, choose }) {
    this.turn = turn;
    this.conversation = conversation;
    this.question = question(turn);
    if (needsQuestion(turn.task)) this.question.append(this.editor(edit));
    this.text = make("div", { className: "answer-text" });
    this.waiting = make("p", { className: "waiting", textContent: say("waiting") });
    this.figure = make("div", { className: "answer-figure" });
    this.notes = make("div", { className: "notes" });
    this.answer = make(
      "article",
      { className: "turn answer", attributes: { "aria-label": say("answer"), "aria-busy": "true" } },
      make("h2", { className: "hidden-text", textContent: say("answer") }), // above the headings of the answer
      this.waiting,
      this.text,
      this.figure,
      this.notes,
    );
    this.again = () => again(turn);
    this.choose = choose;
    this.mentions = [];
    this.hasBlocks = turn.answer.hasBlocks;
    this.markdown = new MarkdownView(this.text, {
      mention: (index) => this.mentionElement(index),
      label: (index) => this.mentions[index].label,
      copy,
    });
    this.answer.classList.toggle("is-extraction", turn.schema !== undefined);
    this.boxed = []; // a picture with boxes for each page
    linkMentions(this.answer);
    this.update();
  }

  /** Show the answer as far as it has come. */
  update() {
    if (this.answer.getAttribute("aria-busy") === "false") return;
    const { answer } = this.turn;
    const { hasBlocks } = this;
    if (this.turn.schema) {
      this.mentions = mentionsOf(answer);
      this.pictures = this.conversation.picturesOf(this.turn, this.turn.pictures.length || 1);
      this.text.replaceChildren(...(answer.text ? [extractionElement(answer)] : []));
    } else {
      const { markdown, mentions, numPages } = readAnswer(answer.text, { isComplete: answer.isDone, hasBlocks });
      this.mentions = mentions;
      this.pictures = this.conversation.picturesOf(this.turn, numPages);
      this.colors = colorsOf(mentions);
      this.markdown.update(markdown);
    }
    this.waiting.hidden = answer.text !== "" || answer.isDone;
    this.text.classList.toggle("is-coming", !answer.isDone && answer.text !== "");
    this.showBoxes();
    if (answer.isDone) this.finish(this.mentions);
  }

  mentionElement(index) {
    const mention = this.mentions[index];
    const color = this.colors.get(mention.label);
    if (!this.hasBlocks) return mentionElement(mention, index, color);
    return blockElement(mention, index, color, this.pictures[mention.page]);
  }

  showBoxes() {
    if (!this.mentions.length) return;
    this.pictures.forEach((picture, page) => {
      if (this.boxed[page]?.picture !== picture) {
        this.boxed[page]?.element.remove();
        this.boxed[page] = new BoxedPicture(picture);
        this.boxed[page].onOpen(() => openZoom(picture, this.mentions, page));
        this.figure.append(this.boxed[page].element);
      }
      this.boxed[page].update(this.mentions, page);
    });
  }

  finish(mentions) {
    const { answer } = this.turn;
    this.answer.setAttribute("aria-busy", "false");
    const notes = [];
    if (answer.error) notes.push(this.failure(answer.error));
    notes.push(...this.remarks().map((textContent) => make("p", { className: "note", textContent })));
    if (answer.presence?.says === "no") this.boxed[0]?.element.classList.add("is-doubtful");
    const tools = make("div", { className: "answer-tools" });
    const value = this.turn.schema ? readObject(answer.text) : null;
    if (answer.blocks?.length && this.pictures.length) tools.append(this.tool("openDocument", () => this.openDocument()));
    if (answer.text) {
      tools.append(this.tool("copy", () => copy(answer.markdown ?? (this.turn.schema ? answer.text : plainText(answer.text)))));
      if (value) tools.append(this.tool("saveCsv", () => this.saveCsv(value)));
      if (mentions.length) tools.append(this.tool("savePng", () => this.savePng(mentions)));
      tools.append(this.tool("saveJson", () => this.saveJson()));
    }
    if (!answer.error) tools.append(this.tool("again", this.again, "again"));
    const variants = this.conversation.variants(this.turn);
    if (variants.length > 1) tools.append(this.pager(variants));
    if (answer.usage) tools.append(make("span", { className: "usage", textContent: usageLine(answer.usage) }));
    this.notes.replaceChildren(...notes, tools);
  }

  /** Return what went wrong, with a button for another try. */
  failure(message) {
    return make(
      "div",
      { className: "error", attributes: { role: "alert" } },
      make("p", { textContent: message }),
      this.tool("again", this.again, "again"),
    );
  }

  /** Return buttons that go from variant to variant of this turn. */
  pager(variants) {
    const at = variants.indexOf(this.turn);
    const step = (text, words, to) => {
      const button = make("button", {
        type: "button",
        className: "ghost small step",
        textContent: text,
        disabled: to === undefined,
        title: say(words),
        attributes: { "aria-label": say(words) },
      });
      button.addEventListener("click", () => this.choose(to, text));
      return button;
    };
    return make(
      "span",
      { className: "variants", attributes: { role: "group", "aria-label": say("variants") } },
      step("‹", "variantBefore", variants[at - 1]),
      make("span", { textContent: `${at + 1}/${variants.length}` }),
      step("›", "variantAfter", variants[at + 1]),
    );
  }

  /** Return the tools of the question: copying, and editing in its place. */
  editor(edit) {
    const { turn } = this;
    const place = make("div", { className: "question-tools" });
    const open = this.tool("edit", () => {
      const field = make("textarea", { value: turn.query, maxLength: 100_000, attributes: { "aria-label": say("editQuestion") } });
      const close = () => {
        form.replaceWith(place);
        this.question.classList.remove("is-edited");
        open.focus();
      };
      const form = make(
        "form",
        { className: "question-edit" },
        field,
        make("div", { className: "question-tools" }, this.tool("cancel", close), make("button", { className: "primary small", textContent: say("send") })),
      );
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (field.value.trim()) edit(turn, field.value.trim());
      });
      field.addEventListener("keydown", (event) => {
        if (event.isComposing) return; // Enter and Escape are the input method's
        if (event.key === "Escape") {
          event.preventDefault();
          close();
        } else if (event.key === "Enter" && !event.shiftKey) {
          event.preventDefault();
          form.requestSubmit();
        }
      });
      place.replaceWith(form);
      this.question.classList.add("is-edited");
      field.focus();
    });
    place.append(this.tool("copyShort", () => copy(turn.query)), open);
    return place;
  }

  openDocument() {
    const { blocks, markdown } = this.turn.answer;
    openDocument({ blocks, markdown, pictures: this.pictures, copy });
  }

  /** Return what there is to say about the answer, in sentences. */
  remarks() {
    const { answer, task, query } = this.turn;
    const remarks = [];
    if (answer.isStopped) remarks.push(say("stopped"));
    if (answer.finish === "length") remarks.push(say("cut"));
    if (answer.error || answer.isStopped) return remarks;
    if (!answer.text.trim()) remarks.push(say("empty"));
    else if (this.turn.schema && !readObject(answer.text)) remarks.push(say("notJson"));
    else if (["locate", "describe", "like"].includes(task) && !this.mentions.length) remarks.push(say("noBoxes"));
    if (hasLocated(this.turn)) {
      const others = new Set(this.mentions.map(({ label }) => label).filter((label) => label && !isSame(label, query)));
      remarks.push(...[...others].slice(0, 3).map((label) => say("otherLabel", query, label)));
    }
    if (answer.presence) remarks.push(say(PRESENCE[answer.presence.says] ?? "presenceUnclear", answer.presence.question));
    return remarks;
  }

  remove() {
    this.question.remove();
    this.answer.remove();
  }

  /** Show what went wrong, wherever the page stands. */
  showError() {
    this.notes.scrollIntoView({ block: "nearest" });
  }

  /** Fold a question that would fill the window, when it stands in the page. */
  foldQuestion() {
    const text = this.question.querySelector(".question-text");
    if (!text || text.scrollHeight <= MAX_QUESTION_PX) return;
    const button = make("button", { type: "button", className: "ghost small fold" });
    const fold = (isFolded) => {
      text.classList.toggle("is-folded", isFolded);
      button.textContent = say(isFolded ? "showAll" : "showLess");
      button.setAttribute("aria-expanded", String(!isFolded));
    };
    button.addEventListener("click", () => fold(!text.classList.contains("is-folded")));
    fold(true);
    text.after(button);
  }

  tool(words, run, className = "") {
    const button = make("button", { type: "button", className: `ghost small ${className}`.trim(), textContent: say(words) });
    button.addEventListener("click", run);
    return button;
  }

  async savePng(mentions) {
    for (const [page, picture] of this.pictures.entries()) {
      save(await drawPng(picture, mentions.filter((mention) => mention.page === page)), `${stem(picture.name)}-boxes.png`);
    }
  }

  saveCsv(value) {
    const picture = this.conversation.pictureOf(this.turn);
    const name = picture ? picture.name : "answer";
    save(new Blob([toCsv(name, value)], { type: "text/csv" }), `${stem(name)}.csv`);
  }

  saveJson() {
    const text = `${JSON.stringify(this.conversation.toJson(this.turn), null, 2)}\n`;
    const picture = this.conversation.pictureOf(this.turn);
    save(new Blob([text], { type: "application/json" }), `${picture ? stem(picture.name) : "answer"}.json`);
  }
}

/** Whether a turn is an answer to "Locate" that has boxes. */
export const hasLocated = ({ task, answer }) => task === "locate" && readAnswer(answer.text).mentions.length > 0;

function question(turn) {
  const pictures = turn.pictures.map(({ url, name, mark, width, height }) => {
    const image = make("img", { src: url, alt: name });
    const frame = make("div", { className: "thumb" }, image);
    if (mark) {
      const box = make("div", { className: "mark-box" });
      const [x0, y0, x1, y1] = mark;
      Object.assign(box.style, {
        left: `${(x0 / width) * 100}%`,
        top: `${(y0 / height) * 100}%`,
        width: `${((x1 - x0) / width) * 100}%`,
        height: `${((y1 - y0) / height) * 100}%`,
      });
      frame.append(box);
    }
    return frame;
  });
  const parts = pictures.length ? [make("div", { className: "thumbs" }, ...pictures)] : [];
  if (turn.shown) parts.push(make("p", { className: "question-text", textContent: turn.shown }));
  return make("article", { className: "turn question", attributes: { "aria-label": say("you") } }, ...parts);
}

const isSame = (label, query) => bare(label) === bare(query);

const bare = (words) => words.toLowerCase().replace(/^(?:the|an?)\s+/, "").replace(/[\s.。]+$/, "");

const stem = (name) => name.replace(/\.[^.]*$/, "") || "picture";

function usageLine(usage) {
  const visual = usage.prompt_tokens_details?.visual_tokens ?? 0;
  return say("usage", usage.prompt_tokens, visual, usage.completion_tokens);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(say("copied"));
  } catch {
    toast(say("copyFailed"));
  }
}
