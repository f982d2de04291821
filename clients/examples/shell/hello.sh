#!/bin/sh
# Asks one question over HTTP.
set -eu

curl --fail-with-body --silent --show-error \
  "http://${SPYGLASS_HTTP:-127.0.0.1:8000}/v1/openai/chat/completions" \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $SPYGLASS_API_KEY" \
  -d '{
    "model": "'"${SPYGLASS_CHAT_MODEL:-spyglass-demo}"'",
    "messages": [
      {"role": "user", "content": "Hello!"}
    ],
    "max_tokens": 64, "temperature": 0
  }'
echo
