// openai for Node: chat, stream, a tool, parsing, models.
import assert from "node:assert";
import { createRequire } from "node:module";

const OpenAI = createRequire(process.env.SPYGLASS_NODE + "/package.json")("openai").default;
const model = process.env.SPYGLASS_MODEL;
const client = new OpenAI({ baseURL: process.env.SPYGLASS_URL, apiKey: process.env.SPYGLASS_KEY, maxRetries: 0 });
const ask = { model, temperature: 0, max_tokens: 40 };
const messages = [{ role: "user", content: "Hello!" }];

const plain = await client.chat.completions.create({ ...ask, messages });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...ask, messages, stream: true })) {
  streamed += chunk.choices[0].delta.content ?? "";
}
assert.equal(streamed, plain.choices[0].message.content);

const add = {
  name: "add",
  parameters: { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } }, required: ["a", "b"] },
};
const question = [{ role: "user", content: "What is 1 + 2?" }];
const tools = [{ type: "function", function: add }];
const called = await client.chat.completions.create({ ...ask, messages: question, tools, tool_choice: "required" });
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.deepEqual(Object.keys(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments)), ["a", "b"]);

const schema = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
const format = { type: "json_schema", json_schema: { name: "city", schema } };
const shaped = await client.chat.completions.create({ ...ask, messages, response_format: format });
assert.deepEqual(Object.keys(JSON.parse(shaped.choices[0].message.content)), ["city"]);

const text = await client.completions.create({ ...ask, prompt: "Once upon a time" });
assert(text.choices[0].text);
assert((await client.models.list()).data.some((one) => one.id === model));
