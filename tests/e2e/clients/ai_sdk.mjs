// Vercel's AI SDK, with the provider that the argument names: a required tool in a stream, objects by a schema,
// a loop of tools, a cut-off call.
import assert from "node:assert";
import { createRequire } from "node:module";

const require = createRequire(process.env.SPYGLASS_NODE + "/package.json");
const { generateObject, generateText, isStepCount, streamText, tool } = require("ai");
const { createOpenAI } = require("@ai-sdk/openai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { z } = require("zod");

globalThis.AI_SDK_LOG_WARNINGS = false;
const options = { baseURL: process.env.SPYGLASS_URL, apiKey: process.env.SPYGLASS_KEY };
const compatible = createOpenAICompatible({ name: "here", ...options, supportsStructuredOutputs: true });
const models = {
  compatible: compatible.chatModel(process.env.SPYGLASS_MODEL),
  openai: createOpenAI(options).chat(process.env.SPYGLASS_MODEL),
};
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => ({ city, sky: "clear" }),
});
const prompt = "How is the weather in Paris?";

const model = models[process.argv[2]];
assert(model, "the argument names no provider");
const ask = { model, temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const forced = { ...ask, tools: { weather }, toolChoice: "required" };

const parts = [];
for await (const part of streamText({ ...forced, prompt, includeRawChunks: true }).fullStream) {
  if (part.type === "error") throw part.error;
  parts.push(part);
}
const pick = (type) => parts.filter((part) => part.type === type);
const [result] = pick("tool-result");
assert.equal(result.toolName, "weather");
assert.deepEqual(Object.keys(result.input), ["city"]);
assert.deepEqual(JSON.parse(pick("tool-input-delta").map((part) => part.delta).join("")), result.input);
for (const { rawValue } of pick("raw")) {
  const indexes = rawValue.choices.flatMap((choice) => choice.delta.tool_calls ?? []).map((call) => call.index);
  assert.equal(new Set(indexes).size, indexes.length, `entries of one index: ${JSON.stringify(rawValue)}`);
}

const schema = z.record(z.string(), z.number());
const { object } = await generateObject({ ...ask, schema, prompt: "Bob is 5, Ann is 7. Tell their ages as JSON." });
assert(Object.values(object).every((age) => typeof age === "number"));

const steps = { stopWhen: isStepCount(3), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber < 2 ? "required" : "none" }) };
const loop = await generateText({ ...forced, ...steps, maxOutputTokens: 30, prompt });
assert.deepEqual(loop.steps.map((step) => step.toolResults.length > 0), [true, true, false]);
assert(loop.text);

for (const maxOutputTokens of [5, 12]) {
  let cut;
  try {
    cut = await generateText({ ...forced, maxOutputTokens, prompt });
  } catch (error) {
    // how it says that the limit left neither text nor a call
    assert.equal(error.name, "AI_ToolChoiceViolationError", error);
    assert.deepEqual([error.finishReason, error.content], ["length", []]);
    continue;
  }
  assert.equal(cut.finishReason, "length");
  assert.equal(cut.text, "");
  const messages = [{ role: "user", content: prompt }, ...cut.response.messages, { role: "user", content: prompt }];
  await generateText({ ...ask, tools: { weather }, maxOutputTokens: 1, messages });
}
