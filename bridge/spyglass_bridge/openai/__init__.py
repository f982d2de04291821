"""OpenAI's chat completions API: its requests, their way into the protocol, and its answers."""
