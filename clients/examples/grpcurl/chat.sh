#!/bin/sh
# Continues a conversation by hand: one message starts a generation, the end of input ends the stream.
set -eu

grpcurl -plaintext -H "authorization: Bearer $SPYGLASS_API_KEY" -d @ \
  "${SPYGLASS_GRPC:-127.0.0.1:50051}" spyglass.v1.InferenceService/Generate <<JSON
{
  "id": "1",
  "start": {
    "model": "${SPYGLASS_CHAT_MODEL:-}",
    "chat": {
      "messages": [
        {"role": "ROLE_SYSTEM", "parts": [{"text": "Respond like a michelin starred chef."}]},
        {"role": "ROLE_USER", "parts": [{"text": "Name two ways to cook lamb."}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": "Roast it slowly, or braise it in red wine."}]},
        {"role": "ROLE_USER", "parts": [{"text": "Tell me more about the second."}]}
      ]
    },
    "sampling": {"temperature": 0},
    "stopping": {"max_tokens": 64}
  }
}
JSON
