// The library that LibreChat's server answers with: LibreChat itself needs MongoDB and a browser.
import { scenario, API, PICTURE, versionOf } from "./_shared.mjs";
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { Providers, Run } from "@librechat/agents";
import { z } from "zod";

console.log("librechat-agents", versionOf("@librechat/agents"));
const weather = tool(async () => "22 degrees", { name: "get_weather", description: "Tell the weather of a city.", schema: z.object({ city: z.string() }) });
const look = new HumanMessage({ content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url: PICTURE, detail: "auto" } }] });

async function run(messages, fields = {}) {
  const made = await Run.create({
    runId: crypto.randomUUID(),
    graphConfig: {
      type: "standard",
      instructions: "Answer briefly.",
      llmConfig: { provider: Providers.OPENAI, model: "nano", apiKey: "none", streaming: true, streamUsage: true, maxTokens: 8, maxRetries: 0, configuration: { baseURL: API }, ...fields.llm },
      ...fields.graph,
    },
    returnContent: true,
  });
  const config = { runId: crypto.randomUUID(), streamMode: "values", version: "v2", configurable: { thread_id: "t" } };
  const content = await made.processStream({ messages }, config);
  return { made, content };
}

await scenario("a picture", async () => (await run([look])).content);
await scenario("tools", async () => (await run([look], { graph: { tools: [weather] } })).content);
await scenario("a history with tools", async () => (await run([
  new HumanMessage("How is the weather in Paris?"),
  new AIMessage({ content: "", tool_calls: [{ name: "get_weather", args: { city: "Paris" }, id: "call_1", type: "tool_call" }] }),
  new ToolMessage({ content: "22 degrees", tool_call_id: "call_1", name: "get_weather" }),
  new AIMessage("It is warm."),
  new HumanMessage("And in Rome?"),
], { graph: { tools: [weather] } })).content);
await scenario("a title", async () => {
  const { made, content } = await run([new HumanMessage("Hello")]);
  return made.generateTitle({ provider: Providers.OPENAI, inputText: "Hello", titleMethod: "completion", contentParts: content,
    clientOptions: { model: "nano", apiKey: "none", maxTokens: 8, configuration: { baseURL: API } }, chainOptions: {} });
});
