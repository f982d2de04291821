/** The examples in each language. Keys stand in none of them: all read SPYGLASS_API_KEY from the environment. */

import { hereText, json, python } from "./literals.js";
import { grpcStart } from "./grpc.js";

/** @typedef {{origin: string, grpc: string|null, isSecure: boolean}} Place where the server is, from outside */

const PATH = "/v1/chat/completions";
/** Parameters that OpenAI's own client knows; it sends others when they are in extra_body. */
const KNOWN = new Set(
  ["model", "messages", "stream", "temperature", "top_p", "max_tokens", "seed", "stop", "response_format", "tools"].concat(["tool_choice"]),
);

/** @type {{id: string, name: string, highlight: string, write: (example: import("./requests.js").Example, place: Place) => string}[]} */
export const LANGUAGES = [
  { id: "curl", name: "curl", highlight: "bash", write: curl },
  { id: "openai", name: "Python · openai", highlight: "python", write: pythonOpenai },
  { id: "spyglass", name: "Python · spyglass_client", highlight: "python", write: pythonSpyglass },
  { id: "javascript", name: "JavaScript", highlight: "javascript", write: javascript },
  { id: "grpcurl", name: "grpcurl", highlight: "bash", write: grpcurl },
];

function curl({ body, pictures }, { origin }) {
  const flags = body.stream ? "-sSN" : "-sS";
  const head = [
    `curl ${flags} --fail-with-body ${origin}${PATH} \\`,
    '  -H "Authorization: Bearer $SPYGLASS_API_KEY" \\',
    '  -H "Content-Type: application/json" \\',
  ];
  return [...shellPictures(pictures, origin), ...head, `  -d @- ${hereDocument(body, pictures, (_, index) => `data:${pictures[index].type};base64,`)}`].join("\n");
}

/** A body as a here-document; one with pictures has variables in it. */
function hereDocument(body, pictures, prefix) {
  if (!pictures.length) {
    return `<<'JSON'\n${JSON.stringify(body, null, 2)}\nJSON`;
  }
  const text = hereText(JSON.stringify(body, null, 2)).replace(/"\\\\u0001picture (\d+)\\\\u0001"/g, (found, index) => `"${prefix(found, Number(index))}$PICTURE_${Number(index) + 1}"`);
  return `<<JSON\n${text}\nJSON`;
}

function shellPictures(pictures, origin) {
  return pictures.map(({ file, address }, index) => {
    const read = address ? `curl -sS ${origin}${address} | base64 | tr -d '\\n'` : `base64 < ${file} | tr -d '\\n'`;
    return `PICTURE_${index + 1}=$(${read})`;
  });
}

function pythonOpenai({ body, pictures }, { origin }) {
  const picture = (index) => `picture_${index + 1}`;
  const known = Object.entries(body).filter(([name]) => KNOWN.has(name));
  const others = Object.entries(body).filter(([name]) => !KNOWN.has(name));
  const given = others.length ? [...known, ["extra_body", Object.fromEntries(others)]] : known;
  const lines = [
    ...(pictures.length ? ["import base64"] : []),
    "import os",
    ...(pictures.some((one) => one.address) ? ["import urllib.request"] : []),
    ...(pictures.some((one) => !one.address) ? ["from pathlib import Path"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1/openai", api_key=os.environ["SPYGLASS_API_KEY"])`,
    ...pictures.map(
      (one, index) => `${picture(index)} = "data:${one.type};base64," + base64.b64encode(${pythonBytes(one, origin)}).decode()`,
    ),
    "",
    `${body.stream ? "stream" : "completion"} = client.chat.completions.create(`,
    ...given.map(([name, value]) => `    ${name}=${python(value, picture, "    ")},`),
    ")",
  ];
  if (body.stream) {
    lines.push("for chunk in stream:", "    if chunk.choices:", '        print(chunk.choices[0].delta.content or "", end="", flush=True)', "print()");
  } else if (body.tools) {
    lines.push("for call in completion.choices[0].message.tool_calls or []:", "    print(call.function.name, call.function.arguments)");
  } else {
    lines.push("print(completion.choices[0].message.content)");
  }
  return lines.join("\n");
}

function pythonBytes({ file, address }, origin) {
  return address ? `urllib.request.urlopen("${origin}${address}").read()` : `Path("${file}").read_bytes()`;
}

function pythonSpyglass({ body, pictures }, { origin, grpc, isSecure }) {
  const calls = new Set();
  const write = (text) => python(text, () => "");
  const parts = (content) =>
    (typeof content === "string" ? [{ type: "text", text: content }] : content).map((part) => {
      if (part.type === "text") {
        return write(part.text);
      }
      calls.add("image");
      const index = /^\u0001picture (\d+)\u0001$/.exec(part.image_url.url)?.[1];
      return index === undefined
        ? `image(urllib.request.urlopen(${write(part.image_url.url)}).read())`
        : `image(picture_${Number(index) + 1})`;
    });
  const messages = body.messages.map((message) => {
    calls.add(message.role);
    if (message.role === "tool") {
      return `tool(${[write(message.tool_call_id), ...parts(message.content)].join(", ")})`;
    }
    const made = (message.tool_calls ?? []).map(({ id, function: called }) => {
      calls.add("ToolCall");
      return `ToolCall(${write(id)}, ${write(called.name)}, ${write(called.arguments)})`;
    });
    const inner = [...parts(message.content ?? ""), ...(made.length ? [`[${made.join(", ")}]`] : [])];
    return `${message.role}(${inner.join(", ")})`;
  });
  const tools = (body.tools ?? []).map(({ function: one }) => {
    calls.add("Tool");
    return `Tool(${write(one.name)}, ${write(one.description ?? "")}, ${python(one.parameters ?? { type: "object" }, () => "", "        ")}${one.strict ? ", strict=True" : ""})`;
  });
  const options = ["model", "temperature", "top_p", "max_tokens", "seed", "stop", "tool_choice"]
    .filter((name) => body[name] !== undefined)
    .map((name) => `${name}=${write(body[name])}`);
  if (body.response_format) {
    options.push(`json_schema=${python(body.response_format.json_schema.schema, () => "", "        ")}`);
  }
  if (tools.length) {
    options.push(`tools=[${tools.join(", ")}]`);
  }
  if (isSecure) {
    calls.add("Tls");
  }
  const names = [...calls].sort((one, other) => (isUpper(one) === isUpper(other) ? one.localeCompare(other) : isUpper(one) ? -1 : 1));
  const hasAddress = pictures.some((one) => one.address) || messages.some((text) => text.includes("urllib.request"));
  const lines = [
    "import os",
    ...(hasAddress ? ["import urllib.request"] : []),
    "",
    `from spyglass_client import ${["Client", ...names].sort((one, other) => (isUpper(one) === isUpper(other) ? (one < other ? -1 : 1) : isUpper(one) ? -1 : 1)).join(", ")}`,
    "",
    ...pictures.map((one, index) => `picture_${index + 1} = ${one.address ? pythonBytes(one, origin) : `"${one.file}"`}`),
    `with Client(${write(grpc ?? "HOST:PORT")}, api_key=os.environ["SPYGLASS_API_KEY"]${isSecure ? ", tls=Tls()" : ""}) as client:`,
    "    messages = [",
    ...messages.map((message) => `        ${message},`),
    "    ]",
  ];
  const arguments_ = ["messages", ...options].map((one) => `        ${one},`);
  if (body.stream) {
    lines.push("    generation = client.stream_chat(", ...arguments_, "    )", "    for chunk in generation:", '        print(chunk.text, end="", flush=True)', "print()");
  } else {
    lines.push("    answer = client.chat(", ...arguments_, "    )");
    lines.push(...(tools.length ? ["for call in answer.tool_calls:", "    print(call.name, call.arguments)"] : ["print(answer.text)"]));
  }
  return lines.join("\n");
}

function isUpper(name) {
  return /^[A-Z]/.test(name);
}

function javascript({ body, pictures }, { origin }) {
  const picture = (index) => `picture${index + 1}`;
  const files = pictures.some((one) => !one.address) ? ['import { readFile } from "node:fs/promises";', ""] : [];
  const reads = pictures.map((one, index) => {
    const bytes = one.address ? `Buffer.from(await (await fetch("${origin}${one.address}")).arrayBuffer())` : `(await readFile("${one.file}"))`;
    return `const ${picture(index)} = "data:${one.type};base64," + ${bytes}.toString("base64");`;
  });
  const lines = [
    ...files,
    ...reads,
    `const response = await fetch("${origin}${PATH}", {`,
    '  method: "POST",',
    "  headers: {",
    '    "Authorization": `Bearer ${process.env.SPYGLASS_API_KEY}`,',
    '    "Content-Type": "application/json",',
    "  },",
    `  body: JSON.stringify(${json(body, picture).replaceAll("\n", "\n  ")}),`,
    "});",
    "if (!response.ok) {",
    "  throw new Error(await response.text());",
    "}",
  ];
  if (body.stream) {
    lines.push(
      'let rest = "";',
      "for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {",
      '  const lines = (rest + piece).split("\\n");',
      "  rest = lines.pop();",
      "  for (const line of lines) {",
      '    if (line.startsWith("data: ") && line !== "data: [DONE]") {',
      '      process.stdout.write(JSON.parse(line.slice(6)).choices[0]?.delta.content ?? "");',
      "    }",
      "  }",
      "}",
      "console.log();",
    );
  } else {
    lines.push("const completion = await response.json();", "const { message } = completion.choices[0];");
    lines.push(body.tools ? "console.log(message.tool_calls.map((call) => call.function));" : "console.log(message.content);");
  }
  return lines.join("\n");
}

function grpcurl({ body, pictures }, { origin, grpc, isSecure }) {
  const start = { id: "1", start: grpcStart(body) };
  const lines = [
    ...shellPictures(pictures, origin),
    `grpcurl${isSecure ? "" : " -plaintext"} -H "authorization: Bearer $SPYGLASS_API_KEY" -d @ \\`,
    `  ${grpc ?? "HOST:PORT"} spyglass.v1.InferenceService/Generate ${hereDocument(start, pictures, () => "")}`,
  ];
  return lines.join("\n");
}
