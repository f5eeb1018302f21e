// One turn on the page: the question with its pictures, the answer as it comes, its boxes, and what can be done with it.

import { annotated, coloursOf, drawPng, linkMentions, mentionElement } from "./boxes.js";
import { make, save, toast } from "./dom.js";
import { plainText, readAnswer } from "./grounding.js";
import { say } from "./i18n.js";
import { renderMarkdown } from "./markdown.js";

export class TurnView {
  /** `again` runs when the person asks for another try. */
  constructor(turn, conversation, again) {
    this.turn = turn;
    this.conversation = conversation;
    this.question = question(turn);
    this.text = make("div", { className: "answer-text" });
    this.figure = make("div", { className: "answer-figure" });
    this.notes = make("div", { className: "notes" });
    this.answer = make(
      "article",
      { className: "turn answer", attributes: { "aria-label": say("answer"), "aria-busy": "true" } },
      this.text,
      this.figure,
      this.notes,
    );
    this.again = again;
    this.boxesShown = "";
    linkMentions(this.answer);
    this.update();
  }

  /** Show the answer as far as it has come. */
  update() {
    const { answer } = this.turn;
    const { markdown, mentions } = readAnswer(answer.text, answer.isDone);
    const colours = coloursOf(mentions);
    const blocks = renderMarkdown(markdown, (index) =>
      mentionElement(mentions[index], index, colours.get(mentions[index].label)),
    );
    if (!answer.text && !answer.isDone) blocks.push(make("p", { className: "waiting", textContent: say("waiting") }));
    this.text.replaceChildren(...blocks);
    this.text.classList.toggle("is-coming", !answer.isDone && answer.text !== "");
    this.showBoxes(mentions);
    if (answer.isDone) this.finish(mentions);
  }

  showBoxes(mentions) {
    const picture = this.conversation.pictureOf(this.turn);
    const state = JSON.stringify(mentions);
    if (!picture || state === this.boxesShown) return;
    this.boxesShown = state;
    // The picture stays in place while boxes come, so that nothing flickers.
    this.figure.replaceChildren(...(mentions.length ? [annotated(picture, mentions)] : []));
  }

  finish(mentions) {
    const { answer } = this.turn;
    this.answer.setAttribute("aria-busy", "false");
    const notes = [];
    if (answer.error) notes.push(make("p", { className: "error", textContent: answer.error, attributes: { role: "alert" } }));
    if (answer.isStopped) notes.push(make("p", { className: "note", textContent: say("stopped") }));
    if (answer.finish === "length") notes.push(make("p", { className: "note", textContent: say("cut") }));
    const tools = make("div", { className: "answer-tools" });
    if (answer.text) {
      tools.append(this.tool("copy", () => copy(plainText(answer.text))));
      if (mentions.length) tools.append(this.tool("savePng", () => this.savePng(mentions)));
      tools.append(this.tool("saveJson", () => this.saveJson()));
    }
    tools.append(this.tool("again", this.again, "again"));
    if (answer.usage) tools.append(make("span", { className: "usage", textContent: usageLine(answer.usage) }));
    this.notes.replaceChildren(...notes, tools);
  }

  tool(words, run, className = "") {
    const button = make("button", { type: "button", className: `ghost small ${className}`, textContent: say(words) });
    button.addEventListener("click", run);
    return button;
  }

  async savePng(mentions) {
    const picture = this.conversation.pictureOf(this.turn);
    save(await drawPng(picture, mentions), `${stem(picture.name)}-boxes.png`);
  }

  saveJson() {
    const text = `${JSON.stringify(this.conversation.toJson(this.turn), null, 2)}\n`;
    const picture = this.conversation.pictureOf(this.turn);
    save(new Blob([text], { type: "application/json" }), `${picture ? stem(picture.name) : "answer"}.json`);
  }
}

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
