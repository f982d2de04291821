// Asks two questions over HTTP, the second one streaming. Plain Node 20 or newer: node chat.mjs

const url = `http://${process.env.SPYGLASS_HTTP ?? "127.0.0.1:8000"}/v1/openai/chat/completions`;
const model = process.env.SPYGLASS_CHAT_MODEL ?? "spyglass-demo";

async function ask(content, options) {
  const response = await fetch(url, {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      Authorization: `Bearer ${process.env.SPYGLASS_API_KEY}`,
    },
    body: JSON.stringify({ model, messages: [{ role: "user", content }], max_tokens: 64, temperature: 0, ...options }),
  });
  if (!response.ok) {
    throw new Error(`${response.status}: ${(await response.json()).error.message}`);
  }
  return response;
}

// Yields the JSON of each `data:` line; a line may arrive in several pieces.
async function* events(response) {
  let rest = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") {
        yield JSON.parse(line.slice("data: ".length));
      }
    }
  }
}

const completion = await (await ask("Hello!")).json();
console.log(completion.choices[0].message.content);
console.log(`${completion.usage.total_tokens} tokens, $${completion.usage.estimated_cost}\n`);

for await (const event of events(await ask("Tell me a short story about a lighthouse.", { stream: true }))) {
  if (event.error) {
    throw new Error(event.error.message);
  }
  process.stdout.write(event.choices[0]?.delta.content ?? "");
}
console.log();
