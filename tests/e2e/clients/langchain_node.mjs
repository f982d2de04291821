// LangChain JS: a required tool, plain and streamed, a cut-off call, a schema, a prompt over the context.
import assert from "node:assert";
import { createRequire } from "node:module";

const require = createRequire(process.env.SPYGLASS_NODE + "/package.json");
const { ContextOverflowError } = require("@langchain/core/errors");
const { HumanMessage } = require("@langchain/core/messages");
const { tool } = require("@langchain/core/tools");
const { ChatOpenAI } = require("@langchain/openai");
const { z } = require("zod");

const make = (maxTokens) =>
  new ChatOpenAI({
    model: process.env.SPYGLASS_MODEL,
    apiKey: process.env.SPYGLASS_KEY,
    configuration: { baseURL: process.env.SPYGLASS_URL },
    temperature: 0,
    maxRetries: 0,
    maxTokens,
  });
const weather = tool(async ({ city }) => `clear in ${city}`, {
  name: "weather",
  description: "The weather of a city.",
  schema: z.object({ city: z.string().max(20) }),
});
const forced = (maxTokens) => make(maxTokens).bindTools([weather], { tool_choice: "required" });
const question = new HumanMessage("How is the weather in Paris?");

const streamed = async (model) => {
  let joined;
  for await (const chunk of await model.stream([question])) joined = joined ? joined.concat(chunk) : chunk;
  return joined;
};
const invoked = (model) => model.invoke([question]);

for (const answer of [invoked, streamed]) {
  const called = await answer(forced(60));
  assert.equal(called.tool_calls.length, 1);
  assert.deepEqual(Object.keys(called.tool_calls[0].args), ["city"]);
  const [wire, ...more] = called.additional_kwargs.tool_calls ?? [];
  assert.deepEqual(more, []);
  if (wire) assert.deepEqual(JSON.parse(wire.function.arguments), called.tool_calls[0].args);
  const result = await weather.invoke(called.tool_calls[0]);
  assert((await make(8).bindTools([weather]).invoke([question, called, result])).content);

  for (const maxTokens of [5, 12]) {
    const cut = await answer(forced(maxTokens));
    assert.equal(cut.content, "");
    await make(1).bindTools([weather]).invoke([question, cut, question]);
  }
}

const ages = z.object({ ages: z.record(z.string(), z.number()) });
const typed = make(60).withStructuredOutput(ages, { method: "jsonSchema" });
assert((await typed.invoke("Bob is 5, Ann is 7. Tell their ages as JSON.")).ages);
await assert.rejects(make(5).invoke("word ".repeat(9000)), (error) => ContextOverflowError.isInstance(error));
