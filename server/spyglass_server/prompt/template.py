"""Renders conversations with a checkpoint's own chat template.

Owns the sandbox in which the template runs, and the rule that what people write never becomes a
control token. Knows nothing of token ids or pixels.

Before rendering, the first characters of all control tokens are replaced in people's text by private
characters that stand nowhere else; after rendering, the text is cut at control tokens, which only the
template can have written, and the pieces get their characters back.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spyglass_server.errors import InvalidRequest

_PRIVATE = range(0xE000, 0xF8FF)
_MAX_REASON_CHARACTERS = 300

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) + '<|end_header_id|>\\n\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content or [] %}
            {{- '<|image|>' if part.type == 'image' else part.text }}
        {%- endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- {'type': 'function', 'name': call.function.name, 'parameters': call.function.arguments} | tojson }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
"""Meta's ChatFormat, for a checkpoint that brings no template."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made; `arguments` is a JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A turn; a part is text, or None where an image stands."""

    role: str
    parts: tuple[str | None, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class ChatTemplate:
    """A compiled template."""

    def __init__(self, source: str, special_tokens: dict[str, str], control_tokens: Iterable[str]) -> None:
        """`special_tokens` are variables of the template, such as bos_token.

        Raises:
            ValueError: the template does not compile.
        """
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is wrong: {error}") from error
        self._variables = special_tokens
        self._first_characters = sorted({token[0] for token in control_tokens})

    def render(self, messages: Sequence[Message]) -> tuple[str, Callable[[str], str]]:
        """Renders a conversation, ready for the assistant's turn, or to go on with it when the last is hers.

        Returns the text with people's characters still replaced, and the function that puts them back:
        cut the text at control tokens first.

        Raises:
            InvalidRequest: the template refuses the conversation.
        """
        protect, restore, mark = self._protection(messages)
        turns = [_turn(message, protect) for message in messages]
        continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
        if continued:
            turns[-1]["content"] += mark
        try:
            text = self._template.render(messages=turns, add_generation_prompt=not continued, **self._variables)
        except Exception as error:  # a template can raise anything
            raise _refusal(restore(str(error))) from error
        if continued:
            text, found, _ = text.partition(mark)  # what the template puts after it would end the turn
            if not found:
                raise _refusal("it leaves out the message to go on with")
        return text, restore

    def _protection(self, messages: Sequence[Message]) -> tuple[Callable[[str], str], Callable[[str], str], str]:
        """How to replace characters, how to put them back, and one more character that stands nowhere."""
        used = {c for message in messages for text in _texts(message) for c in text if ord(c) in _PRIVATE}
        mark, *free = [chr(code) for code in _PRIVATE if chr(code) not in used] or [""]
        if len(free) < len(self._first_characters):
            raise InvalidRequest("the text uses too many private characters", field="chat.messages")
        there = dict(zip(self._first_characters, free, strict=False))
        forth = str.maketrans(there)
        back = str.maketrans({private: character for character, private in there.items()})
        return lambda text: text.translate(forth), lambda text: text.translate(back), mark


def _texts(message: Message) -> Iterable[str]:
    yield from (part for part in message.parts if part is not None)
    yield message.tool_call_id
    for call in message.tool_calls:
        yield from (call.id, call.name, json.dumps(call.arguments, ensure_ascii=False))


def _turn(message: Message, protect: Callable[[str], str]) -> dict[str, Any]:
    """A message in the form that templates expect: a string where there are no images."""
    content: Any = [
        {"type": "image"} if part is None else {"type": "text", "text": protect(part)} for part in message.parts
    ]
    if None not in message.parts:
        content = "".join(part["text"] for part in content)
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": protect(call.id),
                "type": "function",
                "function": {"name": protect(call.name), "arguments": _map_strings(call.arguments, protect)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = protect(message.tool_call_id)
    return turn


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_map_strings(item, change) for item in value]
        case dict():
            return {change(key): _map_strings(item, change) for key, item in value.items()}
        case _:
            return value


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model's chat template refuses this conversation ({reason[:_MAX_REASON_CHARACTERS]}); "
        "the operator can choose another with --chat-template",
        field="chat.messages",
    )


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(re.sub(r"\s+", " ", message))
