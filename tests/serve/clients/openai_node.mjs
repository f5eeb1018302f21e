import { scenario, API, PICTURE, TOOL, versionOf } from "./_shared.mjs";
import OpenAI from "openai";

console.log("openai-node", versionOf("openai"));
const client = new OpenAI({ baseURL: API, apiKey: "none", maxRetries: 0 });
const messages = [
  { role: "system", content: "Answer briefly." },
  { role: "user", content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url: PICTURE } }] },
];
const ask = async (fields) => (await client.chat.completions.create({ model: "nano", messages, max_tokens: 6, ...fields })).choices[0].message.content;

await scenario("a picture", () => ask({}));
await scenario("a stream", async () => {
  const stream = await client.chat.completions.create({ model: "nano", messages, max_tokens: 6, stream: true, stream_options: { include_usage: true } });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
});
await scenario("runTools", async () => {
  const runner = client.chat.completions.runTools({ model: "nano", messages,
    tools: [{ ...TOOL, function: { ...TOOL.function, function: () => "22 degrees", parse: JSON.parse } }] });
  return runner.finalContent();
});
await scenario("responses", async () => (await client.responses.create({ model: "nano", input: "Hello", max_output_tokens: 6 })).output_text);
