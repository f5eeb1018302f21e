// Talking to the server. Every failure becomes an ApiError whose message is a sentence for people.

import { say } from "./i18n.js";
import { settings } from "./settings.js";

export class ApiError extends Error {
  needsKey = false;
}

async function call(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (settings.apiKey) headers.Authorization = `Bearer ${settings.apiKey}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(say("offline"));
  }
  if (response.ok) return response;
  if (response.status === 401) throw Object.assign(new ApiError(say("keyNeeded")), { needsKey: true });
  const message = await response.json().then((told) => told.error.message).catch(() => "");
  throw new ApiError(message || say("failed", response.status));
}

/** Return the models that are served, with their limits. */
export async function listModels() {
  return (await (await call("/v1/models")).json()).data;
}

/** Return how images are cut. `messages`: for each message the sizes of its images, as [{width, height}]. */
export async function planTiles(messages, signal) {
  return (await call("/v1/images/tiles", { messages }, signal)).json();
}

/** Return {num_pages, data: [{page, width, height, url}]} of a PDF file in a data URL. Pages may be missing: ask again. */
export async function drawPages(file, pages, options) {
  return (await call("/v1/pdf/pages", { file, pages, ...options })).json();
}

/** Ask, and yield the pieces of the answer: {text}, {boxes, blocks, markdown}, {finish}, {usage}. `options` go before the settings. */
export async function* streamChat(messages, signal, options = {}) {
  const response = await call(
    "/v1/chat/completions",
    {
      model: settings.model,
      messages,
      stream: true,
      stream_options: { include_usage: true },
      max_tokens: settings.maxTokens,
      temperature: settings.temperature,
      well_formed_boxes: settings.wellFormed,
      max_repeats: 8,
      ...options,
    },
    signal,
  );
  for await (const data of serverEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.delta?.boxes) {
      const { boxes, blocks, markdown } = choice.delta;
      yield { boxes, blocks, markdown };
    }
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
  }
  throw new ApiError(say("broken"));
}

/** Yield the data of each server-sent event. */
async function* serverEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      pending += value;
      const events = pending.split(/\r?\n\r?\n/);
      pending = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(say("broken"));
  } finally {
    reader.cancel().catch(() => {});
  }
}
