// Chats as files: all that is known of them as JSON, which can be read again, and what was said as Markdown.

import { newId } from "./dom.js";
import { plainText } from "./grounding.js";
import { say } from "./i18n.js";
import { blobOf, blobUrl } from "./pictures.js";

const FORMAT = "vl2-chats";
const VERSION = 1;
const MAX_FILE_BYTES = 256 * 2 ** 20; // a JSON text is read as a whole
const MAX_TEXT = 2_000_000; // characters
const MAX_ITEMS = 10_000; // of any list
const DATA_URL = /^data:image\/(?:png|jpeg|webp|gif|bmp);base64,[A-Za-z0-9+/]*={0,2}$/;

/** Return a JSON file of chats. `load(id)` gives {record, pictures}; one chat at a time is in memory as text. */
export async function toJsonFile(ids, load) {
  const parts = [`{"format": "${FORMAT}", "version": ${VERSION}, "chats": [`];
  for (const [index, id] of ids.entries()) {
    const { record, pictures } = await load(id);
    const told = [];
    for (const { id, name, width, height, mark, blob } of pictures) {
      told.push({ id, name, width, height, mark, data: await blobUrl(blob) });
    }
    parts.push(new Blob([index ? ",\n" : "\n", JSON.stringify({ ...record, pictures: told })]));
  }
  return new Blob([...parts, "\n]}\n"], { type: "application/json" });
}

/** Return a chat as Markdown: the turns that are shown, with the names of their pictures. */
export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  for (const { shown, pictures, answer } of conversation.turns) {
    parts.push(`**${say("you")}**`);
    parts.push(...pictures.map(({ name, width, height }) => `*${name} (${width} × ${height} px)*`));
    if (shown) parts.push(shown);
    parts.push(`**${say("answer")}**${answer.model ? ` (${answer.model})` : ""}`);
    parts.push((answer.markdown ?? plainText(answer.text)).trim() || `*${answer.error ?? say("empty")}*`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Return the chats of a JSON file as [{record, pictures}]. Throw an Error with a sentence if it is not such a file. */
export async function readJsonFile(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error(say("importLarge", file.name, MAX_FILE_BYTES / 2 ** 20));
  let told;
  try {
    told = JSON.parse(await file.text());
    if (told.format !== FORMAT || told.version !== VERSION) throw new TypeError("another format");
    const chats = [];
    for (const chat of listOf(told.chats)) chats.push(await readChat(chat));
    return chats;
  } catch {
    throw new Error(say("importBad", file.name));
  }
}

async function readChat(told) {
  const pictures = [];
  for (const picture of listOf(told.pictures)) pictures.push(await readPicture(picture));
  const known = new Set(pictures.map(({ id }) => id));
  const turns = [];
  const ids = new Set([""]);
  for (const turn of listOf(told.turns)) {
    const read = readTurn(turn, known);
    if (!ids.has(read.parent) || ids.has(read.id)) throw new TypeError("a turn without a parent, or twice");
    ids.add(read.id);
    turns.push(read);
  }
  const chosen = Object.entries(told.chosen).slice(0, MAX_ITEMS).filter((pair) => pair.every((id) => ids.has(id)));
  const record = {
    id: idOf(told.id),
    title: textOf(told.title),
    created: numberOf(told.created),
    updated: numberOf(told.updated),
    turns,
    chosen: Object.fromEntries(chosen),
  };
  return { record, pictures };
}

function readTurn({ id, parent, shown, prompt, task, query, schema, pictures, answer }, known) {
  const { text, boxes, blocks, markdown, places, finish, usage, error, presence, isStopped, model, hasBlocks } = answer;
  return {
    id: idOf(id),
    parent: parent === "" ? "" : idOf(parent),
    shown: textOf(shown),
    prompt: textOf(prompt),
    task: textOf(task),
    query: textOf(query),
    schema: optional(schema, readSchema),
    pictures: listOf(pictures).filter((picture) => known.has(picture)),
    answer: {
      text: textOf(text),
      boxes: listOf(boxes).map(readBox),
      blocks: optional(blocks, (all) => listOf(all).map(readBlock)),
      markdown: optional(markdown, textOf),
      places: optional(places, (all) => listOf(all).map(readPlace)),
      finish: nullable(finish, textOf),
      usage: nullable(usage, readUsage),
      error: nullable(error, textOf),
      presence: nullable(presence, ({ question, says }) => ({ question: textOf(question), says: nullable(says, textOf) })),
      isDone: true,
      isStopped: isStopped === true,
      model: textOf(model),
      hasBlocks: hasBlocks === true,
    },
  };
}

const readBox = ({ label, xyxy_px, xyxy_999, image_index }) => ({
  label: textOf(label),
  xyxy_px: cornersOf(xyxy_px),
  xyxy_999: cornersOf(xyxy_999),
  image_index: numberOf(image_index),
});

const readBlock = ({ type, text, boxes_px, boxes_999, page }) => ({
  type: textOf(type),
  text: textOf(text),
  boxes_px: listOf(boxes_px).map(cornersOf),
  boxes_999: listOf(boxes_999).map(cornersOf),
  page: numberOf(page),
});

const readPlace = ({ path, page, box }) => ({ path: textOf(path), page: numberOf(page), box: cornersOf(box) });

function readSchema(schema) {
  if (typeof schema !== "object" || Array.isArray(schema)) throw new TypeError("not a schema");
  return schema; // it only goes to the server, which checks it
}

const readUsage = ({ prompt_tokens, completion_tokens, prompt_tokens_details }) => ({
  prompt_tokens: numberOf(prompt_tokens),
  completion_tokens: numberOf(completion_tokens),
  prompt_tokens_details: { visual_tokens: numberOf(prompt_tokens_details?.visual_tokens ?? 0) },
});

/** Decode a picture and measure it: what the file says of its size may be wrong. */
async function readPicture({ id, name, mark, data }) {
  if (!DATA_URL.test(data)) throw new TypeError("not a picture");
  const blob = blobOf(data);
  const bitmap = await createImageBitmap(blob);
  const { width, height } = bitmap;
  bitmap.close();
  return { id: idOf(id), name: textOf(name), blob, width, height, mark: nullable(mark, cornersOf) };
}

function textOf(value) {
  if (typeof value !== "string" || value.length > MAX_TEXT) throw new TypeError("not a text");
  return value;
}

function idOf(value) {
  if (!/^[0-9a-f]{24}$/.test(value)) throw new TypeError("not an id");
  return value;
}

function numberOf(value) {
  if (!Number.isFinite(value)) throw new TypeError("not a number");
  return value;
}

function listOf(value) {
  if (!Array.isArray(value) || value.length > MAX_ITEMS) throw new TypeError("not a list");
  return value;
}

function cornersOf(value) {
  if (listOf(value).length !== 4) throw new TypeError("not a box");
  return value.map(numberOf);
}

const nullable = (value, read) => (value === null || value === undefined ? null : read(value));
const optional = (value, read) => (value === null || value === undefined ? undefined : read(value));

/** Return a chat under a new id, for one whose id is taken. */
export const withNewId = ({ record, pictures }) => ({ record: { ...record, id: newId() }, pictures });
