/**
 * The settings of a conversation as the side panel holds them, and the requests that they make.
 *
 * @typedef {{system: string, temperature: string, topP: string, maxTokens: string, seed: string, stop: string,
 *   schema: string, tools: string, detail: "auto"|"low"|"high", attention: boolean}} Settings
 */

/** @returns {Settings} */
export function defaultSettings() {
  return {
    system: "",
    temperature: "0.7",
    topP: "1",
    maxTokens: "512",
    seed: "",
    stop: "",
    schema: "",
    tools: "",
    detail: "auto",
    attention: false,
  };
}

const NUMBERS = {
  temperature: ["temperature", 0, 2, false],
  topP: ["top_p", 0, 1, false],
  maxTokens: ["max_tokens", 1, 2 ** 31 - 1, true],
  seed: ["seed", 0, Number.MAX_SAFE_INTEGER, true],
};

/**
 * Reads the settings as parameters of a request, and says what is wrong with which.
 * @param {Settings} settings
 * @returns {{parameters: Record<string, unknown>, problems: Partial<Record<keyof Settings, string>>}}
 */
export function readSettings(settings) {
  const parameters = {};
  const problems = {};
  for (const [field, [name, least, most, isWhole]] of Object.entries(NUMBERS)) {
    const text = settings[field].trim();
    if (text === "") {
      continue;
    }
    const value = Number(text);
    if (!Number.isFinite(value) || value < least || value > most || (isWhole && !Number.isInteger(value))) {
      problems[field] = `${isWhole ? "A whole number" : "A number"} from ${least} to ${most}`;
    } else if (field === "topP" && value === 0) {
      problems[field] = "A number above 0, at most 1";
    } else if (!(field === "topP" && value === 1)) {
      parameters[name] = value;
    }
  }
  const stops = settings.stop.split("\n").filter((line) => line !== "");
  if (stops.length > 16) {
    problems.stop = "At most 16 lines";
  } else if (stops.length) {
    parameters.stop = stops;
  }
  readSchema(settings.schema, parameters, problems);
  readTools(settings.tools, parameters, problems);
  if (parameters.response_format && parameters.tools) {
    problems.tools = "Tools and a JSON schema do not go together";
  }
  return { parameters, problems };
}

function readSchema(text, parameters, problems) {
  if (!text.trim()) {
    return;
  }
  const schema = parseJson(text);
  if (!isObject(schema)) {
    problems.schema = "This is not a JSON object";
  } else if (isObject(schema.schema) && typeof schema.name === "string") {
    parameters.response_format = { type: "json_schema", json_schema: schema };
  } else {
    parameters.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
}

function readTools(text, parameters, problems) {
  if (!text.trim()) {
    return;
  }
  const given = parseJson(text);
  const tools = (Array.isArray(given) ? given : [given]).map((tool) => (isObject(tool) && "name" in tool ? { type: "function", function: tool } : tool));
  if (tools.length === 0 || !tools.every((tool) => isObject(tool) && isObject(tool.function) && typeof tool.function.name === "string")) {
    problems.tools = "This is not a JSON list of functions, each with a name";
  } else {
    parameters.tools = tools;
  }
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The messages of a request.
 * @param {Settings} settings
 * @param {import("./tree.js").Turn[]} turns
 * @param {(picture: import("./tree.js").Picture, detail: string) => object} [imageUrl] what stands for a picture
 */
export function messagesOf(settings, turns, imageUrl = sentImage) {
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    if (turn.role === "user") {
      const images = (turn.pictures ?? []).map((picture) => ({
        type: "image_url",
        image_url: imageUrl(picture, settings.detail),
      }));
      const text = turn.text || !images.length ? [{ type: "text", text: turn.text }] : [];
      messages.push({ role: "user", content: images.length ? [...images, ...text] : turn.text });
    } else if (turn.role === "tool") {
      messages.push({ role: "tool", tool_call_id: turn.callId, content: turn.text });
    } else if (turn.calls?.length) {
      const calls = turn.calls.map(({ id, name, arguments: written }) => ({
        id,
        type: "function",
        function: { name, arguments: written },
      }));
      messages.push({ role: "assistant", content: turn.text || null, tool_calls: calls });
    } else if (turn.text) {
      messages.push({ role: "assistant", content: turn.text });
    }
  }
  return messages;
}

function sentImage(picture, detail) {
  return { url: picture.url ?? picture.data, ...(detail === "auto" ? {} : { detail }) };
}

/** The body of a request for the answer to these turns. */
export function requestBody(model, settings, turns, imageUrl) {
  return { model, messages: messagesOf(settings, turns, imageUrl), ...readSettings(settings).parameters };
}
