// What is sent for each task. The wording is that of vl2.infer.prompts; a test compares the two.

export const TASKS = ["ask", "locate", "describe", "read", "like"];

const DESCRIBE = "<|grounding|>Can you describe this image in detail?";
const READ = "Transcribe the whole page.";
const LIKE =
  "<|grounding|>In the first image, an object within the red rectangle is marked. Locate the object of the same category in the second image.";

/** Return the text that the model gets. */
export function promptOf(task, question) {
  return { ask: question, locate: `<|ref|>${question}<|/ref|>.`, describe: DESCRIBE, read: READ, like: LIKE }[task];
}

/** Whether a task needs words of a person. */
export const needsQuestion = (task) => task === "ask" || task === "locate";
