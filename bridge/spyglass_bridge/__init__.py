"""The HTTP bridge of Spyglass: OpenAI-style JSON and SSE in front, one gRPC stream behind.

It needs only a server that speaks spyglass.v1, and neither torch nor the model.
"""
