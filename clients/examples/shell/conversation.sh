#!/bin/sh
# Continues a conversation of several turns over HTTP.
set -eu

curl --fail-with-body --silent --show-error \
  "http://${SPYGLASS_HTTP:-127.0.0.1:8000}/v1/openai/chat/completions" \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer $SPYGLASS_API_KEY" \
  -d '{
    "model": "'"${SPYGLASS_CHAT_MODEL:-spyglass-demo}"'",
    "messages": [
      {"role": "system", "content": "Respond like a michelin starred chef."},
      {"role": "user", "content": "Can you name at least two different techniques to cook lamb?"},
      {"role": "assistant", "content": "Bonjour! Two of my favourites are roasting it slowly with rosemary, and searing it before a gentle braise in red wine."},
      {"role": "user", "content": "Tell me more about the second method."}
    ],
    "max_tokens": 128, "temperature": 0
  }'
echo
