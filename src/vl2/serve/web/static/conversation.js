// What was said so far, as data: turns of a question with pictures and an answer with boxes.

import { dataUrl } from "./pictures.js";
import { settings } from "./settings.js";

export class Conversation {
  constructor() {
    this.turns = [];
  }

  /**
   * Add a turn. `shown` is what a person sees of the question, `prompt` what the model gets; `task` and `query` are what
   * the person chose and typed.
   */
  begin({ shown, prompt, pictures, task, query }) {
    const answer = {
      text: "",
      boxes: [],
      blocks: undefined, // of the DeepSeek-OCR family, and so is the Markdown
      markdown: undefined,
      finish: null,
      usage: null,
      error: null,
      presence: null, // {question, says}: what the model says when asked whether the thing is there
      isDone: false,
      isStopped: false,
    };
    const turn = { shown, prompt, pictures, task, query, answer };
    this.turns.push(turn);
    return turn;
  }

  /** The turns that the model sees: those that have an answer, and the last. */
  kept(turns = this.turns) {
    return turns.filter((turn, index) => turn.answer.text || index === turns.length - 1);
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
    const upTo = this.kept(this.turns.slice(0, this.turns.indexOf(turn) + 1));
    return upTo.flatMap(({ pictures }) => pictures).slice(-numPages);
  }

  /** The messages of a request whose last question is the last turn's. */
  async messages() {
    const turns = this.kept();
    const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
    for (const [index, turn] of turns.entries()) {
      const urls = await Promise.all(turn.pictures.map(dataUrl));
      const parts = urls.map((url) => ({ type: "image_url", image_url: { url } }));
      messages.push({ role: "user", content: [...parts, { type: "text", text: turn.prompt }] });
      if (index < turns.length - 1) messages.push({ role: "assistant", content: turn.answer.text });
    }
    return messages;
  }

  /** The messages that ask something else about the picture of a turn. */
  async aside(turn, question) {
    const url = await dataUrl(this.pictureOf(turn));
    const content = [{ type: "image_url", image_url: { url } }, { type: "text", text: question }];
    return [{ role: "user", content }];
  }

  /** The sizes of the pictures of each message, with those that are about to be sent. */
  sizes(pending) {
    return [...this.answered().map(({ pictures }) => pictures), pending].map((pictures) =>
      pictures.map(({ width, height }) => ({ width, height })),
    );
  }

  /** One answer as a file. */
  toJson(turn) {
    const picture = this.pictureOf(turn);
    const { text, boxes, blocks, markdown, finish, usage, presence } = turn.answer;
    return {
      model: settings.model,
      question: turn.prompt,
      text,
      boxes,
      blocks, // undefined is left out of JSON
      markdown,
      presence,
      image: picture && { name: picture.name, width: picture.width, height: picture.height },
      finish_reason: finish,
      usage,
    };
  }
}
