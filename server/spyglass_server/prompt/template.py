"""Renders conversations with a checkpoint's own chat template, in a sandbox.

The template is tried with the conversation and the tools as they are. If it raises, or its rendering lacks an image or
a tool, it is tried with other forms of the same input: one tool call per turn, and the tools written into the first
user message in Meta's words.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spyglass_server.errors import InvalidRequest
from spyglass_server.prompt.conversation import Message, RawJson, Tool
from spyglass_server.prompt.protection import Protection, protect

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
"""Meta's ChatFormat, for checkpoints without a template."""


_TOOLS_PREFACE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    "answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
    "Do not use variables.\n\n"
)
"""Meta's text, from the templates that come with the Llama 3 models."""


class _GenerationTag(Extension):
    """`{% generation %}`, which marks answers for training and renders nothing."""

    tags = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class ChatTemplate:
    """A compiled template."""

    def __init__(
        self, source: str, special_tokens: dict[str, str], control_tokens: Iterable[str], image_token: str | None
    ) -> None:
        """`special_tokens` are variables of the template, such as bos_token; `image_token` stands for each image.

        Raises:
            ValueError: the template does not compile.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template is wrong: {error}") from error
        self._variables = special_tokens
        self._image_token = image_token
        self._first_characters = {token[0] for token in control_tokens}

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[str, Callable[[str], str]]:
        """Renders a conversation, ready for the assistant's turn or for continuing a trailing assistant message.

        Returns the text with the caller's characters still replaced, and the function that restores them; cut the text
        at control tokens first.

        Raises:
            InvalidRequest: the template refuses the conversation, or drops a part of it, in every form.
        """
        texts = [*_texts(messages), *(_to_json(tool.definition) for tool in tools)]
        protection = protect(texts, self._first_characters)
        refusals: list[InvalidRequest] = []
        for form in _forms(messages, tools):
            try:
                text = self._render(*form(messages, tools), protection)
                self._check(text, form, messages, tools, protection)
            except Exception as error:  # a template can raise anything
                refusals.append(_refusal(protection.restore(str(error))))
            else:
                return text, protection.restore
        raise refusals[0]

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], protection: Protection) -> str:
        turns = [_turn(message, protection.hide) for message in messages]
        continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
        if continued:
            turns[-1]["content"] += protection.end
        text = self._template.render(
            messages=turns,
            tools=[_map_strings(tool.definition, protection.hide) for tool in tools] or None,
            documents=None,
            add_generation_prompt=not continued,
            **self._variables,
        )
        if continued:
            text, found, _ = text.partition(protection.end)  # what the template adds after it would end the turn
            if not found:
                raise ValueError("it leaves out the message to go on with")
        return text

    def _check(
        self, text: str, form: "_Form", messages: Sequence[Message], tools: Sequence[Tool], protection: Protection
    ) -> None:
        """Raises ValueError for a rendering that lacks an image or a tool.

        A tool's name may occur in the text for other reasons, so the same form is rendered again with a number in place
        of each name, which can only come from the tool itself.
        """
        num_images = sum(message.parts.count(None) for message in messages)
        if self._image_token and (num_shown := text.count(self._image_token)) != num_images:
            raise ValueError(f"it shows {num_shown} of the conversation's {num_images} images")
        if tools:
            numbered = [replace(tool, name=protection.number(i)) for i, tool in enumerate(tools)]
            text = self._render(*form(messages, numbered), protection)
            for i, tool in enumerate(tools):
                if not protection.has_number(text, i):
                    raise ValueError(f"it leaves out the tool {tool.name}")


def _texts(messages: Iterable[Message]) -> Iterable[str]:
    for message in messages:
        yield from (part for part in message.parts if part is not None)
        yield message.tool_call_id
        for call in message.tool_calls:
            yield from (call.id, call.name, json.dumps(call.arguments, ensure_ascii=False))


_Form = Callable[[Sequence[Message], Sequence[Tool]], tuple[Sequence[Message], Sequence[Tool]]]
"""Converts messages and tools into a form that a template may accept; the template must show the returned tools."""


def _forms(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[_Form]:
    """Yields forms to try, those that change the least first."""
    has_parallel_calls = any(len(message.tool_calls) > 1 for message in messages)
    yield lambda messages, tools: (messages, tools)
    if has_parallel_calls:
        yield lambda messages, tools: (_one_call_a_turn(messages), tools)
    if tools:
        yield lambda messages, tools: (_with_tools(messages, tools), ())
    if tools and has_parallel_calls:
        yield lambda messages, tools: (_one_call_a_turn(_with_tools(messages, tools)), ())


def _with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> Sequence[Message]:
    """Returns the conversation with the tools written into the first user message, before its first text."""
    definitions = (_to_json(tool.definition, indent=4) for tool in tools)
    text = _TOOLS_PREFACE + "\n\n".join(definitions) + "\n\n"
    at = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    if at is None:  # there is no user message yet
        at = sum(message.role == "system" for message in messages)
        return [*messages[:at], Message("user", (text.rstrip(),)), *messages[at:]]
    parts = messages[at].parts
    first_text = next((i for i, part in enumerate(parts) if part is not None), len(parts))
    changed = replace(messages[at], parts=(*parts[:first_text], text, *parts[first_text:]))
    return [*messages[:at], changed, *messages[at + 1 :]]


def _one_call_a_turn(messages: Sequence[Message]) -> Sequence[Message]:
    """Returns the conversation with each call in a separate turn, followed by its result."""
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


def _turn(message: Message, hide: Callable[[str], str]) -> dict[str, Any]:
    """Returns a message in the form that templates expect; its content is a string if there are no images."""
    content: Any = [
        {"type": "image"} if part is None else {"type": "text", "text": hide(part)} for part in message.parts
    ]
    if None not in message.parts:
        content = "".join(part["text"] for part in content)
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": hide(call.id),
                "type": "function",
                "function": {"name": hide(call.name), "arguments": _map_strings(call.arguments, hide)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = hide(message.tool_call_id)
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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    raw: dict[str, RawJson] = {}

    def set_aside(text: str) -> str:
        if not isinstance(text, RawJson):
            return text
        raw[key := secrets.token_hex(16)] = text
        return key

    written = json.dumps(
        _map_strings(value, set_aside),
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    for key, text in raw.items():
        written = written.replace(f'"{key}"', text)
    return written


def _raise(message: str) -> None:
    raise jinja2.TemplateError(re.sub(r"\s+", " ", message))
