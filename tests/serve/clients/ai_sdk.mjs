import { scenario, API, PICTURE_DATA, versionOf } from "./_shared.mjs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";

console.log("vercel-ai", versionOf("ai"));
const { generateText, streamText, tool } = ai;
const compatible = createOpenAICompatible({ name: "vl2", baseURL: API, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL: API, apiKey: "none" });
const system = "Answer briefly.";
const picture = [{ role: "user", content: [{ type: "text", text: "What is this?" }, { type: "file", mediaType: "image/png", data: PICTURE_DATA }] }];
const tools = { get_weather: tool({ description: "Tell the weather of a city.", inputSchema: z.object({ city: z.string() }), execute: async () => "22 degrees" }) };
const shared = { system, maxOutputTokens: 16, maxRetries: 0 };
const history = [
  { role: "user", content: "How is the weather in Paris?" },
  { role: "assistant", content: [{ type: "tool-call", toolCallId: "call_1", toolName: "get_weather", input: { city: "Paris" } }] },
  { role: "tool", content: [{ type: "tool-result", toolCallId: "call_1", toolName: "get_weather", output: { type: "text", value: "22 degrees" } }] },
];
const read = async (result) => { let text = ""; for await (const piece of result.textStream) text += piece; return text; };

for (const [name, model] of [["openai-compatible", compatible("nano")], ["openai chat", openai.chat("nano")], ["openai responses", openai("nano")]]) {
  await scenario(`${name}: generateText`, async () => (await generateText({ ...shared, model, messages: picture, temperature: 0 })).text);
  await scenario(`${name}: streamText`, () => read(streamText({ ...shared, model, messages: picture })));
  await scenario(`${name}: tools`, async () => (await generateText({ ...shared, model, messages: history, tools })).text);
  await scenario(`${name}: an object`, async () => (await generateText({ ...shared, maxOutputTokens: 40, model, prompt: "Is a cherry red?",
    output: ai.Output.object({ schema: z.object({ isRed: z.boolean() }) }) })).output);
}
await scenario("openai completion", async () => (await generateText({ model: openai.completion("nano"), prompt: "The sky is", maxOutputTokens: 4, maxRetries: 0 })).text);
