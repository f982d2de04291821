"""Parses and validates request bodies, and words the errors.

The tables here list the parameters of OpenAI's API that this server does not support; each is refused by name unless
its value changes nothing.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from spyglass_bridge.errors import ApiError, invalid, unsupported
from spyglass_bridge.openai.parts import Object

# Parameters not supported yet, each with its neutral values: those that change nothing.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "reasoning_effort": (None, "none"),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
# Labels by which callers sort their own requests at OpenAI. Clients send them as a matter of course; they affect
# answers neither there nor here.
LABELS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})
# Fields of a message that have no place in a prompt, by the key that contains them: clients send their own message
# objects back as history, with what they parsed and counted, participants' names and cache hints.
MESSAGE_LABELS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({"name", "parsed", "provider_specific_fields"}),
    "content": frozenset({"cache_control"}),
    "tool_calls": frozenset({"index"}),
    "function": frozenset({"parsed_arguments"}),
}

# Fields of a message that would change the prompt, each with its neutral values.
NEUTRAL_MESSAGE_VALUES: Mapping[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "reasoning_content": (None, ""),
    "refusal": (None, ""),
}
NEUTRAL_STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (None, False)}

_MAX_FIELDS = 100
_MAX_MESSAGES = 4096
_MAX_VALUES = 200_000
"""Maximum JSON values in a body: more than any context has room for, and few enough to parse quickly."""

_Given = TypeVar("_Given", bound=Object)


def parse(body: bytes, kind: type[_Given]) -> _Given:
    """Parses the JSON of a request; the last of duplicate keys wins. Raises ApiError 400."""
    if sum(map(body.count, (b",", b"{", b"["))) > _MAX_VALUES:
        raise invalid("The body holds too many values.")
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.")
    try:
        return kind.model_validate(_without_neutral(value, kind.model_fields))
    except ValidationError as error:
        raise _refusal(error) from None


def _without_neutral(body: dict[str, Any], honoured: Collection[str]) -> dict[str, Any]:
    """Removes what changes nothing from the request, its messages and its stream options."""
    neutral_values = {key: values for key, values in NEUTRAL_VALUES.items() if key not in honoured}
    result = {key: value for key, value in _checked(body, neutral_values, "").items() if key not in LABELS}
    if isinstance(messages := result.get("messages"), list):
        if len(messages) > _MAX_MESSAGES:
            raise invalid(f"A conversation has at most {_MAX_MESSAGES} messages.", "messages")
        result["messages"] = [_message(message, f"messages[{index}].") for index, message in enumerate(messages)]
    if "stream_options" in result:
        result["stream_options"] = _checked(result["stream_options"], NEUTRAL_STREAM_OPTIONS, "stream_options.")
    return result


def _message(value: Any, prefix: str) -> Any:
    return _checked(_without_labels(value), NEUTRAL_MESSAGE_VALUES, prefix)


def _without_labels(value: Any, key: str = "messages") -> Any:
    """Removes from part of a message what cannot change the prompt: nulls, and the labels of its place."""
    match value:
        case list():
            return [_without_labels(item, key) for item in value]
        case dict():
            labels = MESSAGE_LABELS.get(key, frozenset())
            return {
                name: _without_labels(item, name)
                for name, item in value.items()
                if item is not None and name not in labels
            }
        case _:
            return value


def _checked(value: Any, neutral_values: Mapping[str, tuple[Any, ...]], prefix: str) -> Any:
    """Removes a table's fields from an object; refuses a field whose value is not neutral."""
    if not isinstance(value, dict):
        return value
    if len(value) > _MAX_FIELDS:
        raise invalid(f"An object of a request may have at most {_MAX_FIELDS} fields.", prefix.rstrip(".") or None)
    for key in value.keys() & neutral_values.keys():
        if not any(_same(value[key], neutral) for neutral in neutral_values[key]):
            raise unsupported(prefix + key)
    return {key: item for key, item in value.items() if key not in neutral_values}


def _same(value: Any, neutral: Any) -> bool:
    """Compares values as JSON does: 0 equals 0.0, but false is not 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = first["loc"]
    if first["type"] == "extra_forbidden":
        # The caller chose this name, so it may look like a tag.
        param = _path((*_without_tags(location[:-1]), location[-1]))
        return ApiError(400, f"Unknown parameter: {param}.", code="unknown_parameter", param=param)
    param = _path(_without_tags(location))
    if first["type"] == "missing":
        return invalid(f"Missing parameter: {param}.", param)
    return invalid(f"{param}: {first['msg'].removeprefix('Value error, ')}.", param)


def _without_tags(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return tuple(step for step in location if isinstance(step, int) or not (step.startswith("<") or step == "[key]"))


def _path(location: tuple[int | str, ...]) -> str:
    """Returns `messages[0].content` for ("messages", 0, "content")."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.removeprefix(".")[:256]
