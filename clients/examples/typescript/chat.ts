// Asks a question over gRPC and writes the answer as it comes:
//
//   npm install && npm run generate && npm start "What is the capital of France?"

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { Role } from "./gen/typescript/spyglass/v1/chat_pb.js";
import { GenerateRequestSchema, InferenceService } from "./gen/typescript/spyglass/v1/inference_pb.js";

const server = process.env.SPYGLASS_GRPC ?? "127.0.0.1:50051";
const key = process.env.SPYGLASS_API_KEY ?? "";
const question = process.argv[2] ?? "Hello! Who are you?";

const start: MessageInitShape<typeof GenerateRequestSchema> = {
  id: 1n,
  kind: {
    case: "start",
    value: {
      model: process.env.SPYGLASS_CHAT_MODEL ?? "",
      input: {
        case: "chat",
        value: { messages: [{ role: Role.USER, parts: [{ kind: { case: "text", value: question } }] }] },
      },
      sampling: { temperature: 0 },
    },
  },
};

// One stream carries as many generations as are sent on it. When no more are, those that run are finished.
async function* requests() {
  yield create(GenerateRequestSchema, start);
}

const client = createClient(InferenceService, createGrpcTransport({ baseUrl: `http://${server}` }));
const responses = client.generate(requests(), { headers: { authorization: `Bearer ${key}` } });
for await (const { events } of responses) {
  for (const { kind } of events) {
    if (kind.case === "delta") {
      process.stdout.write(kind.value.text);
    } else if (kind.case === "finished") {
      const { error, usage } = kind.value;
      if (error) throw new Error(error.message);
      console.log(`\n[${usage?.promptTokens} + ${usage?.completionTokens} tokens]`);
    }
  }
}
