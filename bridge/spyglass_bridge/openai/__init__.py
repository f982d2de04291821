"""OpenAI's chat completions API: its requests, their translation into the protocol, and its answers."""
