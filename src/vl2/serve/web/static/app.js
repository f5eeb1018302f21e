// The page: a conversation, what is asked next, and the server between them.

import { listModels, streamChat } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { byId, toast } from "./dom.js";
import { exampleButtons } from "./examples.js";
import { chooseLanguage, currentLanguage, initialLanguage, setLanguage } from "./i18n.js";
import { isReader, presenceQuestion, yesOrNo } from "./prompts.js";
import { connectSettings, offerModels, served, settings } from "./settings.js";
import { connectTheme } from "./theme.js";
import { TurnView } from "./turn_view.js";

let conversation = new Conversation();
let running = null; // the AbortController of the answer that is coming

connectTheme();
setLanguage(initialLanguage());

const composer = new Composer({
  send: (question) => answer(conversation.begin(question)),
  stop: () => running?.abort(),
  sizes: (pictures) => conversation.sizes(pictures),
  hasPicture: () => conversation.answered().some(({ pictures }) => pictures.length),
});

/** Ask for the answer of the last turn and show it as it comes. */
async function answer(turn) {
  const asked = conversation;
  const view = new TurnView(turn, asked, () => again(turn, view));
  byId("welcome").hidden = true;
  byId("log").append(view.question, view.answer);
  view.foldQuestion();
  view.question.scrollIntoView({ block: "start" });
  view.answer.scrollIntoView({ block: "nearest" }); // below a tall question
  running = new AbortController();
  composer.setBusy(true);
  const main = byId("main");
  const showNow = () => {
    const isAtEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
    view.update();
    if (isAtEnd) main.scrollTop = main.scrollHeight;
  };
  const show = paced(showNow);
  try {
    if (!settings.model) await loadModels();
    for await (const piece of streamChat(await asked.messages(), running.signal)) {
      turn.answer.text += piece.text ?? "";
      turn.answer.boxes = piece.boxes ?? turn.answer.boxes;
      turn.answer.blocks = piece.blocks ?? turn.answer.blocks;
      turn.answer.markdown = piece.markdown ?? turn.answer.markdown;
      turn.answer.finish = piece.finish ?? turn.answer.finish;
      turn.answer.usage = piece.usage ?? turn.answer.usage;
      show();
    }
    if (view.hasLocated() && settings.checkPresence && !isReader(served.kind)) turn.answer.presence = await askPresence(asked, turn, running.signal);
  } catch (error) {
    if (error.name === "AbortError") turn.answer.isStopped = true;
    else turn.answer.error = error.message;
  } finally {
    turn.answer.isDone = true;
    running = null;
    composer.setBusy(false);
    showNow();
    if (turn.answer.error) view.showError();
    composer.updatePlan(); // what is pending may be cut otherwise now
  }
}

/**
 * Ask whether what was located is there at all: a model that was asked for a box gives one. Null where that fails, for
 * the answer stands without it.
 */
async function askPresence(asked, turn, signal) {
  const question = presenceQuestion(turn.query);
  let text = "";
  try {
    const messages = await asked.aside(turn, question);
    for await (const piece of streamChat(messages, signal, { max_tokens: 16, temperature: 0, well_formed_boxes: false })) {
      text += piece.text ?? "";
    }
  } catch {
    return null;
  }
  return { question, says: yesOrNo(text) };
}

/** Ask the same once more, and forget what came after it. */
function again(turn, view) {
  if (running) return;
  conversation.turns.splice(conversation.turns.indexOf(turn));
  while (view.answer.nextSibling) view.answer.nextSibling.remove();
  view.question.remove();
  view.answer.remove();
  answer(conversation.begin(turn));
  byId("question").focus();
}

/** Return a function that runs `run` soon. It rests after each run, so that at most a quarter of the time is spent in it. */
function paced(run) {
  const rest = 3; // times what the last run took
  let isWaiting = false;
  let took = 0;
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    setTimeout(() => {
      requestAnimationFrame(() => {
        isWaiting = false;
        const start = performance.now();
        run();
        byId("main").getBoundingClientRect(); // the layout belongs to it
        took = performance.now() - start;
      });
    }, rest * took);
  };
}

function showExamples() {
  const use = (file, task, question) => composer.fill(file, task, question);
  // The examples are questions about scenes and charts, and a model of the DeepSeek-OCR family reads pages.
  byId("examples").replaceChildren(...(isReader(served.kind) ? [] : exampleButtons(currentLanguage(), use)));
}

async function loadModels() {
  const models = await listModels();
  const before = served.kind;
  offerModels(models);
  composer.limits = models[0].image_limits;
  if (served.kind === before) return;
  composer.showTasks(true);
  showExamples();
}

function showLanguage() {
  byId("language").textContent = currentLanguage() === "zh" ? "English" : "中文";
  byId("language").lang = currentLanguage() === "zh" ? "en" : "zh";
  composer.showTasks();
  showExamples();
}

byId("language").addEventListener("click", () => {
  chooseLanguage(currentLanguage() === "zh" ? "en" : "zh");
  showLanguage();
});
byId("new-chat").addEventListener("click", () => {
  running?.abort();
  conversation = new Conversation();
  byId("log").replaceChildren();
  byId("welcome").hidden = false;
  composer.clear();
  byId("question").focus();
});
const tellModels = () => loadModels().catch((error) => toast(error.message));
connectSettings(tellModels);
showLanguage();
tellModels();
byId("question").focus();
