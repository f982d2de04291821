#!/bin/sh
# Asks about a picture over HTTP: image.sh [FILE.png]
set -eu
picture=${1:-"$(dirname "$0")/../pictures/red_circle.png"}

curl --fail-with-body --silent --show-error \
  "http://${SPYGLASS_HTTP:-127.0.0.1:8000}/v1/openai/chat/completions" \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $SPYGLASS_API_KEY" \
  -d @- <<JSON
{
  "model": "${SPYGLASS_CHAT_MODEL:-spyglass-demo}",
  "messages": [
    {"role": "user", "content": [
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,$(base64 <"$picture" | tr -d '\n')"}},
      {"type": "text", "text": "What is in the picture?"}
    ]}
  ],
  "max_tokens": 64, "temperature": 0
}
JSON
echo
