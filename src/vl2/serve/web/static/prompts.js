// What is sent for each task. The wording is that of vl2.infer.prompts; a test compares the two.

import { say } from "./i18n.js";

const TASKS = ["ask", "locate", "describe", "read", "extract", "like"];

const DESCRIBE = "<|grounding|>Can you describe this image in detail?";
const READ = "Transcribe the whole page.";
const LIKE =
  "<|grounding|>In the first image, an object within the red rectangle is marked. Locate the object of the same category in the second image.";

/** Return the tasks of a model. The DeepSeek-OCR family reads pages first of all. */
export const tasksOf = (kind) => (isReader(kind) ? ["read", "ask", "locate", "describe", "extract"] : TASKS);

/** Whether a model is one of the DeepSeek-OCR family, whose answers are blocks of a page. */
export const isReader = (kind) => kind !== "DeepSeek-VL2";

/** Return the text that the model gets. */
export function promptOf(task, question, kind) {
  if (isReader(kind)) {
    return {
      ask: question,
      locate: `Locate <|ref|>${question}<|/ref|> in the image.`,
      describe: "<|grounding|>Describe this image in detail.",
      read: kind === "Unlimited-OCR" ? "document parsing." : "<|grounding|>Convert the document to markdown.",
    }[task];
  }
  return { ask: question, locate: `<|ref|>${question}<|/ref|>.`, describe: DESCRIBE, read: READ, like: LIKE }[task];
}

/** Return a question: what a person sees of it, what the model gets, and what the person chose and typed. */
export function makeQuestion(task, query, pictures, kind) {
  const shown = task === "ask" ? query : say(`said${task[0].toUpperCase()}${task.slice(1)}`, query);
  return { shown, prompt: promptOf(task, query, kind), pictures, task, query };
}

/** Return the question whether what was to be located is there at all, in the language of its words. */
export function presenceQuestion(query) {
  const name = query.replace(/[.。?？!！]+$/u, "");
  if (/\p{Script=Han}/u.test(name)) return `图中有${name}吗？`;
  const bare = name.replace(/^(?:(?:all|any|both|each|every|some|the|an?)\s+)+/i, "");
  const [head] = bare.split(/\s(?:at|behind|by|from|in|near|next|of|on|that|to|under|which|who|with)\s/i);
  if (/[^su]s$/i.test(head)) return `Are there any ${bare} in the image?`;
  return `Is there ${/^[aeiou]/i.test(bare) ? "an" : "a"} ${bare} in the image?`;
}

/** Return "yes", "no", or null for an answer that is neither. */
export function yesOrNo(answer) {
  const words = answer.trim().toLowerCase();
  if (/^(?:no\b|没|沒|不|无|否)/u.test(words)) return "no";
  return /^(?:yes\b|有|是)/u.test(words) ? "yes" : null;
}

/** Whether a task needs words of a person. */
export const needsQuestion = (task) => task === "ask" || task === "locate";
