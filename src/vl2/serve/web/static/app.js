// The page: a conversation, what is asked next, and the server between them.

import { listModels, streamChat } from "./api.js";
import { ChatList } from "./chat_list.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { byId } from "./dom.js";
import { placeQuestions, responseFormat } from "./extraction.js";
import { exampleButtons } from "./examples.js";
import { readAnswer } from "./grounding.js";
import { chooseLanguage, currentLanguage, initialLanguage, setLanguage } from "./i18n.js";
import { isReader, makeQuestion, presenceQuestion, promptOf, yesOrNo } from "./prompts.js";
import { connectSettings, offerModels, served, settings } from "./settings.js";
import { connectTheme } from "./theme.js";
import { hasLocated, TurnView } from "./turn_view.js";

let conversation = new Conversation();
let running = null; // the AbortController of the answer that is coming
const views = []; // of the turns that are shown

connectTheme();
setLanguage(initialLanguage());

const composer = new Composer({
  send: (question) => answer(question),
  stop: () => running?.abort(),
  sizes: (pictures) => conversation.sizes(pictures),
  hasPicture: () => conversation.answered().some(({ pictures }) => pictures.length),
});
const chats = new ChatList({
  open: showChat,
  renamed: (id, title) => {
    if (conversation.id === id) conversation.title = title;
  },
  removed: (id) => {
    if (conversation.id === id) newChat();
  },
});

/** Ask a question, after the last turn or as a variant of `instead`, and show the answer as it comes. */
async function answer(question, instead = null) {
  const asked = conversation;
  const turn = asked.begin(question, instead);
  render();
  const view = viewOf(turn);
  view.question.scrollIntoView({ block: "start" });
  view.answer.scrollIntoView({ block: "nearest" }); // below a tall question
  const controller = new AbortController();
  running = controller;
  composer.setBusy(true);
  chats.select(asked.id);
  chats.keep(asked);
  const main = byId("main");
  const showNow = () => {
    const isAtEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
    viewOf(turn)?.update();
    if (isAtEnd && asked === conversation) main.scrollTop = main.scrollHeight;
  };
  const show = paced(showNow);
  try {
    if (!settings.model) await loadModels();
    const options = turn.schema ? { response_format: responseFormat(turn.schema), well_formed_boxes: false } : {};
    for await (const piece of streamChat(await asked.messages(turn), controller.signal, options)) {
      turn.answer.text += piece.text ?? "";
      turn.answer.boxes = piece.boxes ?? turn.answer.boxes;
      turn.answer.blocks = piece.blocks ?? turn.answer.blocks;
      turn.answer.markdown = piece.markdown ?? turn.answer.markdown;
      turn.answer.finish = piece.finish ?? turn.answer.finish;
      turn.answer.usage = piece.usage ?? turn.answer.usage;
      show();
    }
    if (turn.schema) await findPlaces(asked, turn, controller.signal, show);
    if (hasLocated(turn) && settings.checkPresence && !turn.answer.hasBlocks) {
      turn.answer.presence = await askPresence(asked, turn, controller.signal);
    }
  } catch (error) {
    if (error.name === "AbortError") turn.answer.isStopped = true;
    else turn.answer.error = error.message;
  } finally {
    turn.answer.isDone = true;
    if (running === controller) {
      running = null;
      composer.setBusy(false);
    }
    showNow();
    if (turn.answer.error) viewOf(turn)?.showError();
    chats.keep(asked);
    composer.updatePlan(); // the tiles of pending pictures may depend on this turn
  }
}

/** Ask where the values of an extraction stand, one after the other. Where that fails, they have no boxes. */
async function findPlaces(asked, turn, signal, show) {
  const questions = placeQuestions(turn.answer.text, asked.picturesOf(turn, turn.pictures.length || 1).length);
  turn.answer.places = [];
  for (const [index, { path, page, query }] of questions.entries()) {
    if (turn.answer.places.some((place) => place.path === path)) continue; // found on an earlier page
    turn.answer.placing = { done: index, of: questions.length };
    show();
    let text = "";
    try {
      const messages = await asked.aside(turn, promptOf("locate", query, served.kind), page);
      const options = { max_tokens: 96, temperature: 0, well_formed_boxes: true };
      for await (const piece of streamChat(messages, signal, options)) text += piece.text ?? "";
    } catch (error) {
      if (error.name === "AbortError") throw error;
      continue;
    }
    const [box] = readAnswer(text).mentions.flatMap(({ boxes }) => boxes);
    if (box) turn.answer.places.push({ path, page, box });
  }
  turn.answer.placing = undefined;
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

/** Ask the same once more. The new answer is a variant of the old one, or takes its place if that is empty. */
function again(turn) {
  running?.abort();
  const isEmpty = !turn.answer.text && !conversation.all.some(({ parent }) => parent === turn.id);
  answer(turn, turn);
  if (isEmpty) conversation.drop(turn);
  byId("question").focus();
}

/** Ask with other words, as a variant of a question. */
function edit(turn, words) {
  running?.abort();
  answer(makeQuestion(turn.task, words, turn.pictures, served.kind), turn);
  byId("question").focus();
}

/** Show a variant of a turn, with what followed it. `arrow` is the text of the button that was pressed, for the focus. */
function choose(turn, arrow) {
  conversation.choose(turn);
  render();
  chats.keep(conversation);
  composer.updatePlan();
  const steps = [...viewOf(turn).answer.querySelectorAll(".step:not(:disabled)")];
  (steps.find(({ textContent }) => textContent === arrow) ?? steps[0])?.focus();
}

/** Show the turns of the chat. Those that are shown already stay the elements they are. */
function render() {
  const { turns } = conversation;
  const firstNew = turns.findIndex((turn, index) => views[index]?.turn !== turn);
  const same = firstNew < 0 ? turns.length : firstNew;
  for (const view of views.splice(same)) view.remove();
  for (const turn of turns.slice(same)) {
    const view = new TurnView(turn, conversation, { again, edit, choose });
    views.push(view);
    byId("log").append(view.question, view.answer);
    view.foldQuestion();
  }
  byId("welcome").hidden = turns.length > 0;
}

const viewOf = (turn) => views.find((view) => view.turn === turn);

/** Show a chat, and end the answer that is coming in another one. */
function showChat(shown) {
  running?.abort();
  running = null;
  composer.setBusy(false);
  for (const { url } of conversation.pictures) URL.revokeObjectURL(url);
  conversation = shown;
  render();
  byId("main").scrollTop = byId("main").scrollHeight;
  composer.clear();
  byId("question").focus();
}

function newChat() {
  chats.select(null);
  showChat(new Conversation());
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
  byId("model-note").hidden = models[0].root !== "nano"; // the built-in model
  if (served.kind === before) return;
  composer.showTasks(true);
  showExamples();
}

function showLanguage() {
  byId("language").textContent = currentLanguage() === "zh" ? "English" : "中文";
  byId("language").lang = currentLanguage() === "zh" ? "en" : "zh";
  composer.showTasks();
  showExamples();
  chats.refresh();
}

byId("language").addEventListener("click", () => {
  chooseLanguage(currentLanguage() === "zh" ? "en" : "zh");
  showLanguage();
});
byId("new-chat").addEventListener("click", newChat);
for (const button of document.querySelectorAll(".close-dialog")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
const tellModels = async () => {
  composer.tell("");
  try {
    await loadModels();
  } catch (error) {
    const openSettings = { words: "settings", run: () => byId("open-settings").click() };
    composer.tell(error.message, error.needsKey ? openSettings : { words: "again", run: tellModels });
  }
};
connectSettings(tellModels);
showLanguage();
tellModels();
byId("question").focus();
chats.start();
