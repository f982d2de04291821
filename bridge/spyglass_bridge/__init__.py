"""The HTTP bridge of Spyglass: OpenAI-style JSON and SSE in front, one gRPC stream behind.

Knows neither torch nor the model: it needs only a server that speaks spyglass.v1.
"""
