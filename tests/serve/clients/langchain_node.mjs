import { scenario, API, PICTURE, versionOf } from "./_shared.mjs";
import { AIMessage, HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

console.log("langchain-js", versionOf("@langchain/openai"));
const model = (fields = {}) => new ChatOpenAI({ model: "nano", apiKey: "none", maxTokens: 6, maxRetries: 0, configuration: { baseURL: API }, ...fields });
const look = [
  new SystemMessage("Answer briefly."),
  new HumanMessage({ content: [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url: PICTURE } }] }),
];
const weather = tool(async () => "22 degrees", { name: "get_weather", description: "Tell the weather of a city.", schema: z.object({ city: z.string() }) });

await scenario("invoke", async () => (await model({ temperature: 0 }).invoke(look)).content);
await scenario("a stream", async () => { let text = ""; for await (const chunk of await model({ streaming: true }).stream(look)) text += chunk.content; return text; });
await scenario("a history with tools", async () => (await model().bindTools([weather]).invoke([
  new HumanMessage("How is the weather in Paris?"),
  new AIMessage({ content: "", tool_calls: [{ name: "get_weather", args: { city: "Paris" }, id: "call_1", type: "tool_call" }] }),
  new ToolMessage({ content: "22 degrees", tool_call_id: "call_1" }),
])).content);
await scenario("the responses api", async () => (await model({ useResponsesApi: true }).invoke(look)).content);
