#!/bin/sh
# Asks about a small picture by hand: image.sh [FILE]
set -eu
picture=${1:-"$(dirname "$0")/../pictures/red_circle.png"}

grpcurl -plaintext -H "authorization: Bearer $SPYGLASS_API_KEY" -d @ \
  "${SPYGLASS_GRPC:-127.0.0.1:50051}" spyglass.v1.InferenceService/Generate <<JSON
{
  "id": "1",
  "start": {
    "model": "${SPYGLASS_CHAT_MODEL:-}",
    "chat": {
      "messages": [
        {"role": "ROLE_USER", "parts": [
          {"image": {"data": "$(base64 <"$picture" | tr -d '\n')"}},
          {"text": "What is in the picture?"}
        ]}
      ]
    },
    "stopping": {"max_tokens": 64},
    "sampling": {"temperature": 0}
  }
}
JSON
