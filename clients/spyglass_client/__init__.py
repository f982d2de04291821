"""The Python client of Spyglass: `Client` and `AsyncClient` over gRPC, and the `spyglass` command.

from spyglass_client import Client

with Client() as client:
    print(client.generate("Hello!").text)
"""

from spyglass_client.account import ModelInfo, ModelMemory, Pricing, UsageRecord, UsageSum, UsageSummary
from spyglass_client.admin import AdminClient, ApiKey
from spyglass_client.aio import AsyncClient
from spyglass_client.answer import Answer, Choice, FinishReason, TextChunk, TokenLogprobs, TokenProbability, Usage
from spyglass_client.attention import ImageGrid, ImageMap, TokenAttention, average_weights, draw_attention
from spyglass_client.errors import (
    AuthenticationError,
    CancelledByServerError,
    ClientClosedError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    SpyglassError,
    UnavailableError,
)
from spyglass_client.generation import AsyncGeneration
from spyglass_client.messages import ImagePart, ImageSource, Message, assistant, image, system, tool, user
from spyglass_client.request import Options
from spyglass_client.status import CacheStatus, Failure, ServerStatus
from spyglass_client.sync import Client, Generation
from spyglass_client.target import Tls
from spyglass_client.tools import Tool, ToolCall, ToolCallPiece
from spyglass_common.keys import KeyLimits

__all__ = [
    "AdminClient",
    "Answer",
    "ApiKey",
    "AsyncClient",
    "AsyncGeneration",
    "AuthenticationError",
    "CacheStatus",
    "CancelledByServerError",
    "Choice",
    "Client",
    "ClientClosedError",
    "DeadlineError",
    "Failure",
    "FinishReason",
    "Generation",
    "ImageGrid",
    "ImageMap",
    "ImagePart",
    "ImageSource",
    "InternalError",
    "InvalidRequestError",
    "KeyLimits",
    "Message",
    "ModelInfo",
    "ModelMemory",
    "NotFoundError",
    "Options",
    "PermissionDeniedError",
    "Pricing",
    "RateLimitedError",
    "ServerStatus",
    "SpyglassError",
    "TextChunk",
    "Tls",
    "TokenAttention",
    "TokenLogprobs",
    "TokenProbability",
    "Tool",
    "ToolCall",
    "ToolCallPiece",
    "UnavailableError",
    "Usage",
    "UsageRecord",
    "UsageSum",
    "UsageSummary",
    "assistant",
    "average_weights",
    "draw_attention",
    "image",
    "system",
    "tool",
    "user",
]
