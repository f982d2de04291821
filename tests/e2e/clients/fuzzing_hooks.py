"""What schemathesis changes in the requests that it makes up: the model is there, and answers are short."""

import os
from typing import Any

import schemathesis

MODEL = os.environ["SPYGLASS_MODEL"]
MOST_TOKENS = 3


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = MODEL
        if "completions" in context.operation.path:
            _shorten(body, "max_tokens")
            body.pop("max_completion_tokens", None)
        elif "inference" in context.operation.path:
            _shorten(body, "max_new_tokens")
    return body


def _shorten(body: dict[str, Any], name: str) -> None:
    """Leaves what is wrong as it is."""
    given = body.get(name)
    if given is None or (type(given) is int and given > 0):
        body[name] = min(given or MOST_TOKENS, MOST_TOKENS)


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    if path_parameters and len(str(path_parameters.get("model", ""))) % 2:
        path_parameters["model"] = MODEL
    return path_parameters
