"""Renders conversations with a checkpoint's own chat template.

Owns the sandbox in which the template runs, and the rule that what people write never becomes a
control token. Knows nothing of token ids or pixels.

Tools are given to a template that takes them, except where it would lose what is in the first user message beside text;
else they are told in that message, in Meta's words.

Before rendering, the first characters of all control tokens are replaced in people's text by private
characters that stand nowhere else; after rendering, the text is cut at control tokens, which only the
template can have written, and the pieces get their characters back.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
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


_TOOLS_PREFACE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
    "Do not use variables.\n\n"
)
"""Meta's, of the templates that come with the Llama 3 models."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]
    is_strict: bool = False

    @property
    def definition(self) -> dict[str, Any]:
        """What models are told of it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": told}


class RawJson(str):
    """JSON as the model wrote it, cut off or otherwise not an object; a template's `tojson` writes it as it is."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made."""

    id: str
    name: str
    arguments: dict[str, Any] | RawJson


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
            self._takes_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is wrong: {error}") from error
        self._variables = special_tokens
        self._first_characters = sorted({token[0] for token in control_tokens})

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[str, Callable[[str], str]]:
        """Renders a conversation, ready for the assistant's turn, or to go on with it when the last is hers.

        Returns the text with people's characters still replaced, and the function that puts them back:
        cut the text at control tokens first.

        Raises:
            InvalidRequest: the template refuses the conversation.
        """
        protect, restore, mark = self._protection([*_texts(messages), *(_to_json(tool.definition) for tool in tools)])
        refusals: list[InvalidRequest] = []
        for told, given in self._attempts(messages, tools):
            try:
                return self._render(told, given, protect, mark), restore
            except Exception as error:  # a template can raise anything
                refusals.append(_refusal(restore(str(error))))
        raise refusals[0]

    def _attempts(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> Iterator[tuple[Sequence[Message], Sequence[Tool]]]:
        """The conversation and the tools as the template may take them, what is nearest to it first."""
        first = next((message for message in messages if message.role == "user"), None)
        shows_image = first is not None and None in first.parts
        told = (messages, tools) if self._takes_tools and not shows_image else (_with_tools(messages, tools), ())
        yield told
        if any(len(message.tool_calls) > 1 for message in messages):
            yield _one_call_a_turn(told[0]), told[1]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], protect: Callable[[str], str], mark: str
    ) -> str:
        turns = [_turn(message, protect) for message in messages]
        continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
        if continued:
            turns[-1]["content"] += mark
        variables: dict[str, Any] = dict(self._variables)
        if tools:
            variables["tools"] = [_map_strings(tool.definition, protect) for tool in tools]
        text = self._template.render(messages=turns, add_generation_prompt=not continued, **variables)
        if continued:
            text, found, _ = text.partition(mark)  # what the template puts after it would end the turn
            if not found:
                raise ValueError("it leaves out the message to go on with")
        return text

    def _protection(self, texts: Iterable[str]) -> tuple[Callable[[str], str], Callable[[str], str], str]:
        """How to replace characters, how to put them back, and one more character that stands in no text."""
        used = {c for text in texts for c in text if ord(c) in _PRIVATE}
        mark, *free = [chr(code) for code in _PRIVATE if chr(code) not in used] or [""]
        if len(free) < len(self._first_characters):
            raise InvalidRequest("the text uses too many private characters", field="chat.messages")
        there = dict(zip(self._first_characters, free, strict=False))
        forth = str.maketrans(there)
        back = str.maketrans({private: character for character, private in there.items()})
        return lambda text: text.translate(forth), lambda text: text.translate(back), mark


def _texts(messages: Iterable[Message]) -> Iterable[str]:
    for message in messages:
        yield from (part for part in message.parts if part is not None)
        yield message.tool_call_id
        for call in message.tool_calls:
            yield from (call.id, call.name, json.dumps(call.arguments, ensure_ascii=False))


def _with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> Sequence[Message]:
    """The conversation with the tools told in the first user message, before its first text."""
    if not tools:
        return messages
    definitions = (_to_json(tool.definition, indent=4) for tool in tools)
    told = _TOOLS_PREFACE + "\n\n".join(definitions) + "\n\n"
    at = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if at is None:  # nobody has asked anything yet
        at = sum(message.role == "system" for message in messages)
        return [*messages[:at], Message("user", (told.rstrip(),)), *messages[at:]]
    parts = messages[at].parts
    first_text = next((i for i, part in enumerate(parts) if part is not None), len(parts))
    changed = replace(messages[at], parts=(*parts[:first_text], told, *parts[first_text:]))
    return [*messages[:at], changed, *messages[at + 1 :]]


def _one_call_a_turn(messages: Sequence[Message]) -> Sequence[Message]:
    """The conversation with each call in a turn of its own, followed by its result."""
    result: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            result.append(message)
            continue
        for number, call in enumerate(message.tool_calls):
            result.append(replace(message, parts=() if number else message.parts, tool_calls=(call,)))
            answers = [m for m in rest if m.role == "tool" and m.tool_call_id == call.id][:1]
            for answer in answers:
                result.append(answer)
                rest.remove(answer)
    return result


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
        case RawJson():
            return RawJson(change(value))
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
    raw: dict[str, RawJson] = {}

    def set_aside(text: str) -> str:
        if not isinstance(text, RawJson):
            return text
        raw[key := secrets.token_hex(16)] = text
        return key

    written = json.dumps(_map_strings(value, set_aside), ensure_ascii=False, indent=indent)
    for key, text in raw.items():
        written = written.replace(f'"{key}"', text)
    return written


def _raise(message: str) -> None:
    raise jinja2.TemplateError(re.sub(r"\s+", " ", message))
