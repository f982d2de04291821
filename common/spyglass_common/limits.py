"""Limits of the protocol that more than one part checks or documents; docs/limits.md lists them all.

The server enforces them. The bridge and the client check what they can before they send, so that a request is refused
early and in the words of its own API.
"""

MAX_MESSAGE_BYTES = 4 << 20
"""The largest gRPC message."""
MAX_START_BYTES = MAX_MESSAGE_BYTES - (1 << 10)
"""The largest Start: the message that carries it also has an id and headers of fields."""
MAX_INLINE_IMAGE_BYTES = 1 << 20
"""Images travel inside Start up to this size together; larger ones are announced and follow in chunks."""
MAX_IMAGE_CHUNK_BYTES = 256 << 10

MAX_MESSAGES = 4096
MAX_PARTS = 4096
"""Parts and tool calls of a conversation, each."""
MAX_TOOLS = 128
MAX_TOOL_CHARACTERS = 128 << 10
"""Descriptions and parameters of all tools of a request together."""

MAX_CHOICES = 4
MAX_TOKENS = 16_384
"""Tokens of one choice; a larger max_tokens is capped to this."""
MAX_INT32 = 2**31 - 1
"""The largest max_tokens that is accepted."""
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 16
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
"""Biases are from -MAX_LOGIT_BIAS to MAX_LOGIT_BIAS."""
MAX_TOP_LOGPROBS = 20
MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
"""Presence and frequency penalties are from -MAX_PENALTY to MAX_PENALTY."""
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 5.0
MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
MAX_USAGE_RECORDS = 1000

MAX_ATTENTION_LAYERS = 256
"""Cross-attention layers that a request may choose among."""
MAX_ATTENTION_BYTES = 8 << 20
"""Of all maps of one choice: tokens after that have none."""
