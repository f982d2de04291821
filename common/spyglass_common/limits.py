"""Protocol limits that more than one part checks or documents; docs/limits.md lists them all.

The server enforces them. The bridge and the client check what they can before sending, so that a request is refused
early and in the terms of its own API.
"""

MAX_MESSAGE_BYTES = 4 << 20
"""The largest gRPC message."""
MAX_START_BYTES = MAX_MESSAGE_BYTES - (1 << 10)
"""The largest Start: the message that carries it also has an id and field headers."""
MAX_INLINE_IMAGE_BYTES = 1 << 20
"""Maximum total size of images inside a Start; further ones are announced and follow in chunks."""
MAX_IMAGE_CHUNK_BYTES = 256 << 10

MAX_MESSAGES = 4096
MAX_PARTS = 4096
"""Maximum parts and tool calls of a conversation, together."""
MAX_TOOLS = 128
MAX_TOOL_CHARACTERS = 128 << 10
"""Maximum size of the descriptions and parameters of all tools of a request together."""

MAX_CHOICES = 4
MAX_TOKENS = 16_384
"""Maximum tokens of a choice; a larger max_tokens is capped to this."""
MAX_INT32 = 2**31 - 1
"""The largest accepted max_tokens."""
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 16
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
"""Biases range from -MAX_LOGIT_BIAS to MAX_LOGIT_BIAS."""
MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
"""Presence and frequency penalties range from -MAX_PENALTY to MAX_PENALTY."""
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 5.0
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
MAX_USAGE_RECORDS = 1000

MAX_ATTENTION_LAYERS = 256
"""Maximum cross-attention layers that a request may list."""
MAX_ATTENTION_BYTES = 8 << 20
"""Maximum size of all maps of one choice; later tokens have none."""
