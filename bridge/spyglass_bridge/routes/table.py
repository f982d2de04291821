"""All routes of the bridge in one table, from which the application and the API's description are built."""

from functools import partial

from spyglass_bridge.openai import requests, responses
from spyglass_bridge.openapi import Route
from spyglass_bridge.routes import chat, completions, health, models, native, page, reference, tokens, usage
from spyglass_common.limits import MAX_USAGE_RECORDS


def _both(path: str) -> tuple[str, ...]:
    """Returns the path under OpenAI's prefix and under DeepInfra's."""
    return f"/v1{path}", f"/v1/openai{path}"


_DESCRIBED = (
    Route(
        "post",
        _both("/chat/completions"),
        chat.create_chat_completion,
        summary="Answers a conversation with text and images.",
        answer=responses.ChatCompletion,
        body=requests.ChatRequest,
        event=responses.ChatCompletionChunk,
    ),
    Route(
        "post",
        _both("/completions"),
        completions.create_completion,
        summary="Continues ready prompts.",
        answer=responses.Completion,
        body=requests.CompletionRequest,
        event=responses.Completion,
    ),
    Route(
        "post",
        ("/v1/inference/{model}",),
        native.infer,
        summary="Continues a ready prompt, in DeepInfra's own form.",
        answer=responses.Inference,
        body=requests.NativeRequest,
        event=responses.InferenceEvent,
    ),
    Route("get", _both("/models"), models.list_models, summary="Lists the models.", answer=responses.ModelList),
    Route(
        "get", _both("/models/{model}"), models.get_model, summary="Describes one model.", answer=responses.ModelObject
    ),
    Route(
        "get",
        ("/models/{model}/schema/{variant}",),
        reference.get_schema,
        summary="Returns the JSON schema of a chat completion's input, output or streaming form.",
        answer=responses.Schema,
    ),
    Route(
        "post",
        ("/tokenize",),
        tokens.tokenize,
        summary="Tokenizes a prompt.",
        answer=responses.Tokens,
        body=requests.TokenizeRequest,
    ),
    Route(
        "post",
        ("/detokenize",),
        tokens.detokenize,
        summary="Decodes token ids to text.",
        answer=responses.TokenizedText,
        body=requests.DetokenizeRequest,
    ),
    Route(
        "get",
        _both("/usage"),
        usage.get_usage,
        summary="Sums up what your key has used.",
        answer=responses.UsageReport,
        query={
            "since": {"type": "string", "description": "Generations that began at this day or time (UTC) or later."},
            "until": {"type": "string", "description": "Generations that began before this day or time (UTC)."},
            "model": {"type": "string", "description": "Only those of this model."},
            "group_by": {"type": "string", "description": "A sum for each: model, day, or both with a comma."},
            "records": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_USAGE_RECORDS,
                "description": "How many to list.",
            },
        },
    ),
    Route(
        "get",
        _both("/status"),
        health.status,
        summary="How the server is, and how much it has to do.",
        answer=responses.ServerStatus,
        is_logged=False,
    ),
    Route(
        "get",
        ("/health",),
        health.health,
        summary="Whether the bridge is alive, and how the server is.",
        answer=responses.Health,
        needs_key=False,
        is_logged=False,
    ),
    Route(
        "get",
        ("/ready",),
        health.ready,
        summary="Whether generations can be served.",
        answer=responses.Readiness,
        needs_key=False,
        is_logged=False,
        statuses=(200, 503),
    ),
)

ROUTES = (
    *_DESCRIBED,
    Route("get", ("/openapi.json",), partial(reference.get_openapi, _DESCRIBED), needs_key=False),
    Route("get", ("/docs",), partial(reference.get_reference, _DESCRIBED), needs_key=False),
    Route("get", ("/page/{file}",), page.get_file, needs_key=False, is_logged=False),
)
PAGE_ROUTES = (
    Route("get", ("/",), page.get_page, needs_key=False),
    Route("get", ("/page/about.json",), page.get_about, needs_key=False, is_logged=False),
)
"""Served only with a model page."""
OPEN_PATHS = frozenset(path for route in (*PAGE_ROUTES, *ROUTES) if not route.needs_key for path in route.paths)
UNLOGGED_PATHS = frozenset(path for route in (*PAGE_ROUTES, *ROUTES) if not route.is_logged for path in route.paths)
