/**
 * The requests that the examples make, in OpenAI's form. A picture in them is a mark, which each language replaces by an
 * expression that reads the picture.
 *
 * @typedef {{body: any, pictures: {file: string, type: string, address: string|null}[]}} Example
 */

const ENDS = "\u0001";
/** The picture of the examples lies beside the page. */
const EXAMPLE_PICTURE = { file: "example.png", type: "image/png", address: "/page/example.png" };

/** @param {number} index @returns {string} what stands for a picture in a body */
export function mark(index) {
  return `${ENDS}picture ${index}${ENDS}`;
}

/** The marks in JSON, where their first and last characters are escaped, with their quotes. */
export const MARK_IN_JSON = /"\\u0001picture (\d+)\\u0001"/g;

export const KINDS = [
  { id: "message", name: "Message" },
  { id: "conversation", name: "Conversation" },
  { id: "streaming", name: "Streaming" },
  { id: "image", name: "Image" },
  { id: "schema", name: "Structured output" },
  { id: "tools", name: "Tools" },
  { id: "playground", name: "This playground" },
];

const SCHEMA = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const WEATHER = {
  name: "get_weather",
  description: "Tells the weather in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

/**
 * @param {string} kind one of KINDS but the playground
 * @param {string} model
 * @returns {Example}
 */
export function exampleOf(kind, model) {
  const ask = (content, more = {}) => ({ model, messages: [{ role: "user", content }], max_tokens: 128, ...more });
  switch (kind) {
    case "conversation": {
      const messages = [
        { role: "system", content: "Respond like a Michelin-starred chef." },
        { role: "user", content: "Name two ways to cook lamb." },
        { role: "assistant", content: "Roast it slowly, or braise it in red wine." },
        { role: "user", content: "Tell me more about the second." },
      ];
      return { body: { model, messages, max_tokens: 128 }, pictures: [] };
    }
    case "streaming":
      return { body: ask("Tell me a short story about a lighthouse.", { stream: true }), pictures: [] };
    case "image": {
      const content = [
        { type: "image_url", image_url: { url: mark(0) } },
        { type: "text", text: "What is in this picture?" },
      ];
      return { body: ask(content, { temperature: 0 }), pictures: [EXAMPLE_PICTURE] };
    }
    case "schema": {
      const format = { type: "json_schema", json_schema: { name: "person", schema: SCHEMA } };
      return { body: ask("Ada is 36 years old. Who is this?", { response_format: format, temperature: 0 }), pictures: [] };
    }
    case "tools": {
      const tools = [{ type: "function", function: WEATHER }];
      return { body: ask("How is the weather in Paris?", { tools, tool_choice: "required", temperature: 0 }), pictures: [] };
    }
    default:
      return { body: ask("Hello!"), pictures: [] };
  }
}

/**
 * What the playground would send now. Its pictures are read from files, since their bytes would fill the screen.
 * @param {import("../chat/chats.js").Chats} chats
 * @returns {Example}
 */
export function exampleOfPlayground(chats) {
  const pictures = [];
  const body = chats.nextRequest((picture, detail) => {
    const more = detail === "auto" ? {} : { detail };
    if (picture.url) {
      return { url: picture.url, ...more };
    }
    const ending = picture.type === "image/jpeg" ? "jpg" : picture.type.replace("image/", "");
    pictures.push({ file: `picture-${pictures.length + 1}.${ending}`, type: picture.type, address: null });
    return { url: mark(pictures.length - 1), ...more };
  });
  if (!body.messages.length) {
    body.messages.push({ role: "user", content: "Hello!" });
  }
  return { body: { ...body, stream: true }, pictures };
}
