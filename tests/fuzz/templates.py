"""Chat templates: what people write, anywhere in a conversation, is never a control token and arrives as it is."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from checkpoints import CHAT_TEMPLATE, IMAGE_TOKEN, SPECIAL_TOKENS, byte_tokenizer, write_prompt_files
from fuzz.target import property_target
from spyglass_server.errors import InvalidRequest
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message, RawJson, Tool, ToolCall
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot
from spyglass_server.prompt.template import LLAMA3_TEMPLATE

_CONTROL = (*SPECIAL_TOKENS, IMAGE_TOKEN)
_ESCAPES = "".join(
    (
        "{%- for message in messages -%}<|start_header_id|>{{ message.role }}<|end_header_id|>",
        "{%- if message.content is string -%}{{ message.content | tojson(ensure_ascii=True) }}",
        "{%- else -%}{%- for part in message.content -%}",
        "{{ '<|image|>' if part.type == 'image' else part | tojson(ensure_ascii=True) }}{%- endfor -%}{%- endif -%}",
        "{%- for call in message.tool_calls or [] -%}{{ call | tojson(indent=2) }}{{ call | string }}{%- endfor -%}",
        "<|eot_id|>{%- endfor -%}{%- if tools -%}{{ tools | tojson(ensure_ascii=True) }}{{ tools }}{%- endif -%}",
        "{%- if add_generation_prompt -%}<|start_header_id|>assistant<|end_header_id|>{%- endif -%}",
    )
)
"""Writes everything as JSON with escapes, and as Python writes it."""
_TEMPLATES = {"tests": CHAT_TEMPLATE, "built in": LLAMA3_TEMPLATE, "with escapes": _ESCAPES}

_PIECES = (
    *_CONTROL,
    *(
        "<",
        "|",
        "<|",
        "|>",
        "<|eot",
        "_id|>",
        "<|<|eot_id|>eot_id|>",
        "&lt;|eot_id|&gt;",
        "\\u003c|eot_id|>",
        "\\x3c|eot_id|>",
    ),
    *(
        "\ue000",
        "\ue001",
        "\ue002",
        "\\ue000",
        "\\ue001",
        "\\ue002|eot_id|>",
        "\\\\ue000",
        "\\u",
        "\\",
        '"',
        "\\ue00",
        "\uf8fe",
    ),
    *("{{ bos_token }}", "{% raw %}", "{#", "\x00", "\n", " ", "a", "é", "\u202e", "\ufeff", "\U000f0000", "ｅ"),
)
_texts = (
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=8).map("".join) | st.text(min_size=1, max_size=12)
).map(lambda text: text.replace("\ud800", ""))
_json = st.recursive(
    _texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_texts, inner, max_size=2),
    max_leaves=4,
)
_objects = st.dictionaries(_texts, _json, max_size=2)


@dataclass(frozen=True)
class _Case:
    template: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]


_calls = st.builds(ToolCall, _texts, st.sampled_from(["f", "g"]) | _texts, _objects | _texts.map(RawJson))
_messages = st.one_of(
    st.builds(lambda text: Message("system", (text,)), _texts),
    st.builds(lambda parts: Message("user", tuple(parts)), st.lists(_texts | st.none(), min_size=1, max_size=3)),
    st.builds(
        lambda text, calls: Message("assistant", (text,), tool_calls=tuple(calls)), _texts, st.lists(_calls, max_size=2)
    ),
    st.builds(lambda text, call: Message("tool", (text,), tool_call_id=call), _texts, _texts),
)
_tools = st.builds(
    lambda name, description, properties: Tool(name, description, {"type": "object", "properties": properties}),
    st.sampled_from(["f", "g-1", "h.x_"]),
    _texts,
    _objects,
)
_cases = st.builds(
    _Case,
    st.sampled_from(sorted(_TEMPLATES)),
    st.lists(_messages, min_size=1, max_size=4).map(tuple),
    st.lists(_tools, max_size=2, unique_by=lambda tool: tool.name).map(tuple),
)


def _innocent(case: _Case) -> _Case:
    """The same conversation, in which people have written nothing but x."""
    messages = [
        replace(
            message,
            parts=tuple(None if part is None else "x" for part in message.parts),
            tool_calls=tuple(
                ToolCall("x", "x", RawJson("x") if isinstance(call.arguments, RawJson) else _plain(call.arguments))
                for call in message.tool_calls
            ),
            tool_call_id="x" if message.tool_call_id else "",
        )
        for message in case.messages
    ]
    tools = [replace(tool, description="x", parameters=_plain(tool.parameters)) for tool in case.tools]
    return _Case(case.template, tuple(messages), tuple(tools))


def _plain(value: Any) -> Any:
    match value:
        case str():
            return "x"
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {f"x{number}": _plain(item) for number, item in enumerate(value.values())}
        case _:
            return value


@contextmanager
def _opened() -> Iterator[Callable[[_Case], str]]:
    with tempfile.TemporaryDirectory() as folder:
        makers = {}
        for number, (name, source) in enumerate(_TEMPLATES.items()):
            files = write_prompt_files(Path(folder) / str(number), byte_tokenizer(), chat_template=source)
            makers[name] = PromptMaker(files, max_image_pixels=10**6)

        def check(case: _Case) -> str:
            return _check(makers[case.template], case)

        yield check


def _tokens(prompts: PromptMaker, case: _Case) -> tuple[int, ...]:
    num_images = sum(message.parts.count(None) for message in case.messages)
    slots = tuple(ImageSlot(f"image {number}") for number in range(num_images))
    return prompts.write(ChatInput(case.messages, slots, case.tools)).tokens


def _check(prompts: PromptMaker, case: _Case) -> str:
    control = set(prompts.tokenizer.special_tokens.values())
    try:
        tokens = _tokens(prompts, case)
    except InvalidRequest as refusal:
        return refusal.message[:40]
    expected = _tokens(prompts, _innocent(case))
    assert [token for token in tokens if token in control] == [token for token in expected if token in control]
    if case.template != "with escapes":
        spelled = b"".join(map(prompts.tokenizer.token_bytes, tokens)).decode()
        for message in case.messages:
            for part in message.parts:
                assert part is None or part in spelled, "a text has not arrived as it is"
    return f"{case.template}{' with tools' if case.tools else ''}"


TEMPLATES = property_target("templates", _cases, _opened, batch_size=1500, smoke_size=150)
