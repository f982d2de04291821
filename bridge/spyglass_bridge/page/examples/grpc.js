/** A request in OpenAI's form as the Start of the gRPC protocol, in protobuf's JSON. */

const ROLES = { system: "ROLE_SYSTEM", user: "ROLE_USER", assistant: "ROLE_ASSISTANT", tool: "ROLE_TOOL" };
const DETAILS = { low: "IMAGE_DETAIL_LOW", high: "IMAGE_DETAIL_HIGH" };
const MODES = { auto: "TOOL_CHOICE_MODE_AUTO", none: "TOOL_CHOICE_MODE_NONE", required: "TOOL_CHOICE_MODE_REQUIRED" };

/** @param {any} body of a chat completion @returns {object} */
export function grpcStart(body) {
  const chat = { messages: body.messages.map(message) };
  if (body.tools) {
    chat.tools = body.tools.map(({ function: one }) => ({
      name: one.name,
      ...(one.description ? { description: one.description } : {}),
      parametersJson: JSON.stringify(one.parameters ?? { type: "object" }),
      ...(one.strict ? { strict: true } : {}),
    }));
  }
  if (body.tool_choice) {
    chat.toolChoice = { mode: MODES[body.tool_choice] };
  }
  const schema = body.response_format?.json_schema;
  return {
    model: body.model,
    chat,
    ...(schema ? { format: { jsonSchema: { name: schema.name, schemaJson: JSON.stringify(schema.schema) } } } : {}),
    ...some("sampling", { temperature: body.temperature, topP: body.top_p, seed: body.seed?.toString() }),
    ...some("stopping", { maxTokens: body.max_tokens, strings: body.stop }),
  };
}

function some(name, fields) {
  const given = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
  return Object.keys(given).length ? { [name]: given } : {};
}

function message({ role, content, tool_calls: calls, tool_call_id: callId }) {
  const parts = typeof content === "string" ? [{ text: content }] : (content ?? []).map(part);
  return {
    role: ROLES[role],
    ...(parts.length ? { parts } : {}),
    ...(calls ? { toolCalls: calls.map(({ id, function: one }) => ({ id, name: one.name, argumentsJson: one.arguments })) } : {}),
    ...(callId ? { toolCallId: callId } : {}),
  };
}

/** The protocol has no addresses of pictures: whoever calls reads them. */
function part(one) {
  if (one.type === "text") {
    return { text: one.text };
  }
  const { url, detail } = one.image_url;
  return { image: { data: url, ...(detail in DETAILS ? { detail: DETAILS[detail] } : {}) } };
}
