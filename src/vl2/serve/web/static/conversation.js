// A chat as data: a tree of turns, each a question with pictures and an answer with boxes. Turns with the same parent are
// variants: a question that was edited, or an answer that was asked for again. One of them is chosen, and is shown.

import { newId } from "./dom.js";
import { readObject } from "./extraction.js";
import { dataUrl } from "./pictures.js";
import { isReader } from "./prompts.js";
import { served, settings } from "./settings.js";

const ROOT = ""; // the parent of the first turn
const MAX_TITLE = 80; // characters

export class Conversation {
  /** `all` holds the turns with parents before children; `chosen` maps a parent to the turn that is shown after it. */
  constructor({ id = newId(), title = "", created = Date.now(), updated = created, all = [], chosen = {} } = {}) {
    Object.assign(this, { id, title, created, updated, all });
    this.chosen = new Map(Object.entries(chosen));
  }

  /** The turns that are shown, first to last. */
  get turns() {
    const path = [];
    for (let turn = this.after(ROOT); turn; turn = this.after(turn.id)) path.push(turn);
    return path;
  }

  /** The turn that is shown after another one, or undefined. */
  after(parent) {
    const variants = this.all.filter((turn) => turn.parent === parent);
    return variants.find(({ id }) => id === this.chosen.get(parent)) ?? variants.at(-1);
  }

  /** A turn and its variants, in the order in which they were asked. */
  variants(turn) {
    return this.all.filter(({ parent }) => parent === turn.parent);
  }

  choose(turn) {
    this.chosen.set(turn.parent, turn.id);
  }

  /**
   * Add a turn at the end, or as a variant of `instead`. `shown` is what a person sees of the question, `prompt` what the
   * model gets; `task` and `query` are what the person chose and typed. An answer to "Extract" fits `schema`.
   */
  begin({ shown, prompt, pictures, task, query, schema }, instead = null) {
    const answer = {
      text: "",
      boxes: [],
      blocks: undefined, // of the DeepSeek-OCR family, and so is the Markdown
      markdown: undefined,
      finish: null,
      usage: null,
      error: null,
      places: undefined, // of extracted values: [{path, page, box}], boxes in 999ths
      presence: null, // {question, says}: what the model says when asked whether the thing is there
      isDone: false,
      isStopped: false,
      model: settings.model,
      hasBlocks: isReader(served.kind),
    };
    const parent = instead ? instead.parent : (this.turns.at(-1)?.id ?? ROOT);
    const turn = { id: newId(), parent, shown, prompt, pictures, task, query, schema, answer };
    this.all.push(turn);
    this.choose(turn);
    this.updated = Date.now();
    this.title ||= (shown || pictures[0]?.name || "").replace(/\s+/g, " ").slice(0, MAX_TITLE);
    return turn;
  }

  /** Forget a turn that nothing follows. */
  drop(turn) {
    this.all.splice(this.all.indexOf(turn), 1);
    if (this.chosen.get(turn.parent) === turn.id) this.chosen.delete(turn.parent);
  }

  /** A turn and those before it. */
  pathTo(turn) {
    const path = [];
    for (let at = turn; at; at = this.all.find(({ id }) => id === path[0].parent)) path.unshift(at);
    return path;
  }

  /** The turns up to one that the model sees: those that have an answer, and the last. */
  kept(turn) {
    return this.pathTo(turn).filter((each) => each.answer.text || each === turn);
  }

  answered() {
    return this.turns.filter((turn) => turn.answer.text);
  }

  /** The picture that the boxes of a turn's answer are about: the last one so far. */
  pictureOf(turn) {
    return this.picturesOf(turn, 1).at(-1) ?? null;
  }

  /** The pictures that an answer about so many pages is about: the last ones so far. */
  picturesOf(turn, numPages) {
    return this.kept(turn).flatMap(({ pictures }) => pictures).slice(-numPages);
  }

  /** The messages of a request whose last question is that of `last`. */
  async messages(last) {
    const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
    for (const turn of this.kept(last)) {
      const urls = await Promise.all(turn.pictures.map(dataUrl));
      const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
      messages.push({ role: "user", content: [...parts, { type: "text", text: turn.prompt }] });
      if (turn !== last) messages.push({ role: "assistant", content: turn.answer.text });
    }
    return messages;
  }

  /** The messages that ask something else about a picture of a turn: the last one, or that of a page. */
  async aside(turn, question, page = null) {
    const picture = page === null ? this.pictureOf(turn) : this.picturesOf(turn, turn.pictures.length || 1)[page];
    const url = await dataUrl(picture);
    const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: question }];
    return [{ role: "user", content }];
  }

  /** The sizes of the pictures of each message, with those that are about to be sent. */
  sizes(pending) {
    return [...this.answered().map(({ pictures }) => pictures), pending].map((pictures) =>
      pictures.map(({ width, height }) => ({ width, height })),
    );
  }

  /** All pictures, each once. */
  get pictures() {
    return [...new Map(this.all.flatMap(({ pictures }) => pictures).map((picture) => [picture.id, picture])).values()];
  }

  /** The chat as plain data, in which pictures are named by their ids. */
  toRecord() {
    const { id, title, created, updated } = this;
    const turns = this.all.map((turn) => ({ ...turn, pictures: turn.pictures.map((picture) => picture.id) }));
    return { id, title, created, updated, turns, chosen: Object.fromEntries(this.chosen) };
  }

  /** Return the chat of a record and its pictures. An answer that was still coming when it was kept counts as stopped. */
  static fromRecord({ turns, ...record }, pictures) {
    const byId = new Map(pictures.map((picture) => [picture.id, picture]));
    const all = turns.map((turn) => ({
      ...turn,
      pictures: turn.pictures.map((id) => byId.get(id)).filter(Boolean),
      answer: turn.answer.isDone ? turn.answer : { ...turn.answer, isDone: true, isStopped: true },
    }));
    return new Conversation({ ...record, all });
  }

  /** One answer as a file. */
  toJson(turn) {
    const picture = this.pictureOf(turn);
    const { text, boxes, blocks, markdown, places, finish, usage, presence, model } = turn.answer;
    return {
      model,
      question: turn.prompt,
      text,
      boxes,
      blocks, // undefined is left out of JSON
      markdown,
      value: turn.schema && (readObject(text) ?? undefined),
      places,
      presence,
      image: picture && { name: picture.name, width: picture.width, height: picture.height },
      finish_reason: finish,
      usage,
    };
  }
}
