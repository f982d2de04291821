"""A checkpoint's own chat template: used where it shows everything, else tried with other forms of the same."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from checkpoints import CHAT_TEMPLATE, IMAGE_TOKEN, SPECIAL_TOKENS
from pictures import encoded, noise
from spyglass_server.errors import InvalidRequest
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message, Tool, ToolCall
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot

CONTROL = [*SPECIAL_TOKENS, IMAGE_TOKEN]
PREFACE = "Given the following functions"

PARTS = """\
{%- macro show(content) -%}
    {%- if content is string -%}{{- content -}}
    {%- else -%}
        {%- for part in content -%}{{- '<|image|>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro turn(message) -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>' + show(message.content) -}}
    {%- for call in message.tool_calls or [] -%}
        {{- '[' + call.function.name + ' ' + call.function.arguments | tojson + ']' -}}
    {%- endfor -%}
    {{- '<|eot_id|>' -}}
{%- endmacro -%}
"""
ANSWER = "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>' -}}{%- endif -%}"
TURNS = "{%- for message in messages -%}{{- turn(message) -}}{%- endfor -%}" + ANSWER

META = (
    PARTS
    + """\
{{- bos_token }}
{%- if tools is not none %}
    {%- set first_user_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>Given the following functions, …' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
    {{- first_user_message + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message and not message.tool_calls | length == 1 %}
        {{- raise_exception('This model only supports single tool-calls at once!') }}
    {%- endif %}
    {{- turn(message) }}
{%- endfor %}
"""
    + ANSWER
)
"""In the shape of the one that comes with Llama 3.2 Vision: with tools, the first user message becomes a string."""
BESIDE_IMAGES = (
    PARTS
    + """\
{{- bos_token }}
{%- for message in messages %}
    {%- if loop.first and tools %}
        {{- '<|start_header_id|>user<|end_header_id|>You may call:\\n' }}
        {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
        {{- show(message.content) + '<|eot_id|>' }}
    {%- else %}
        {{- turn(message) }}
    {%- endif %}
{%- endfor %}
"""
    + ANSWER
)
SYSTEM_BLOCK = (
    PARTS
    + """\
{%- if tools -%}
    {{- '<|start_header_id|>system<|end_header_id|>' -}}
    {%- for t in tools -%}{{- t.function.name ~ ': ' ~ t.function.parameters.properties.keys() | list -}}{%- endfor -%}
    {{- '<|eot_id|>' -}}
{%- endif -%}
"""
    + TURNS
)
REPR = PARTS + "{%- if tools is not none %}{{ tools }}{% endif -%}" + TURNS
ASCII = PARTS + "{%- if tools %}{{ tools | tojson(ensure_ascii=true, separators=(',', ':')) }}{% endif -%}" + TURNS
TRAINING = (
    PARTS
    + "{%- for t in tools or [] -%}{%- generation -%}{{- t.function -}}{%- endgeneration -%}{%- endfor -%}"
    + TURNS
)
SHOWING_BOTH = {
    "before the first message": BESIDE_IMAGES,
    "a system block": SYSTEM_BLOCK,
    "Python's repr": REPR,
    "ASCII": ASCII,
    "marked for training": TRAINING,
}

RAISES_WITH_IMAGES = (
    PARTS
    + """\
{%- if tools -%}
    {{- tools | tojson -}}
    {%- for message in messages if message.content is not string -%}{{- raise_exception('no images') -}}{%- endfor -%}
{%- endif -%}
"""
    + TURNS
)
DROPS_IMAGES = (
    PARTS
    + """\
{%- if tools -%}
    {{- tools | tojson -}}
    {%- for message in messages if message.content is not string -%}
        {%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}
    {%- endfor -%}
{%- else -%}
"""
    + TURNS
    + "{%- endif -%}"
)
FIRST_TOOL_ONLY = PARTS + "{%- if tools %}{{ tools[0] | tojson }}{% endif -%}" + TURNS
DESCRIPTIONS_ONLY = PARTS + "{%- for t in tools or [] %}{{ t.function.description }}{% endfor -%}" + TURNS
LOSING = {
    "Meta's": META,
    "ignores tools": CHAT_TEMPLATE,
    "raises with images": RAISES_WITH_IMAGES,
    "drops images": DROPS_IMAGES,
    "first tool only": FIRST_TOOL_ONLY,
    "descriptions only": DESCRIPTIONS_ONLY,
}

WEATHER = Tool("weather", "Get <the> weather – größer.", {"type": "object", "properties": {"city": {"type": "string"}}})
GET = Tool("get", "Get, as weather and get_weather do.", {"type": "object", "properties": {"weather": {}}})
TOOLS = (WEATHER, GET)
IMAGE = encoded(noise((20, 20)))


def prompt_maker(checkpoint: Path, folder: Path, source: str) -> PromptMaker:
    path = folder / "template.jinja"
    path.write_text(source, encoding="utf-8")
    return PromptMaker(checkpoint, 10**6, path)


def conversation(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> ChatInput:
    num_images = sum(message.parts.count(None) for message in messages)
    return ChatInput(tuple(messages), (ImageSlot("image"),) * num_images, tuple(tools))


def token_ids(maker: PromptMaker, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    given_chat = conversation(messages, tools)
    return list(maker.prepare(given_chat, [IMAGE] * len(given_chat.images)).tokens)


def text_of(maker: PromptMaker, ids: Sequence[int]) -> str:
    return maker.tokenizer.written_text(ids)


def reference_ids(checkpoint: Path, source: str, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """The tokens of what jinja renders, as transformers asks it to, for text without control tokens."""
    begin = json.loads((checkpoint / "tokenizer_config.json").read_text())["bos_token"]
    turns: list[dict[str, Any]] = []
    for message in messages:
        content: Any = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in message.parts]
        turns.append({"role": message.role, "content": content if None in message.parts else "".join(message.parts)})  # type: ignore[arg-type]
    [text], _ = render_jinja_template(
        [turns],
        tools=[tool.definition for tool in tools] or None,
        chat_template=source,
        add_generation_prompt=True,
        bos_token=begin,
    )
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


LOOK = [
    Message("user", ("Is <b> the weather?", None, "\\ Look, get_weather!")),
    Message("assistant", ("Yes.",)),
    Message("user", ("Why?", None)),
]


@pytest.mark.parametrize("name", SHOWING_BOTH)
def test_a_template_that_shows_tools_and_images_is_used_as_it_is(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    source = SHOWING_BOTH[name]
    maker = prompt_maker(tiny_checkpoint, tmp_path, source)
    for messages in (LOOK, [Message("user", ("hi",))]):
        for tools in (TOOLS, ()):
            ids = token_ids(maker, messages, tools)
            assert ids == reference_ids(tiny_checkpoint, source, messages, tools)
            assert PREFACE not in text_of(maker, ids)


@pytest.mark.parametrize("name", LOSING)
def test_tools_are_written_for_a_template_that_loses_an_image_or_a_tool(
    tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    maker = prompt_maker(tiny_checkpoint, tmp_path, LOSING[name])
    ids = token_ids(maker, LOOK, TOOLS)
    written = PREFACE + text_of(maker, ids).split(PREFACE)[1].split("Is <b>")[0]
    assert [json.loads(found) for found in re.findall(r"^\{\n.*?^\}", written, re.DOTALL | re.MULTILINE)] == [
        tool.definition for tool in TOOLS
    ]
    told = [Message("user", (written + "Is <b> the weather?", *LOOK[0].parts[1:])), *LOOK[1:]]
    assert ids == reference_ids(tiny_checkpoint, LOSING[name], told)


def test_metas_template_gets_tools_where_only_a_later_message_has_an_image(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    maker = prompt_maker(tiny_checkpoint, tmp_path, META)
    messages = [Message("user", ("hi",)), *LOOK[1:]]
    assert token_ids(maker, messages, TOOLS) == reference_ids(tiny_checkpoint, META, messages, TOOLS)


def test_a_template_may_take_neither_parallel_calls_nor_tools_beside_an_image(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    maker = prompt_maker(tiny_checkpoint, tmp_path, META)
    called = (ToolCall("1", "weather", {"city": "Bern"}), ToolCall("2", "get", {}))
    results = [Message("tool", ("cold",), tool_call_id="1"), Message("tool", ("got",), tool_call_id="2")]
    for first, is_shown_by_the_template in ((LOOK[0], False), (Message("user", ("hi",)), True)):
        text = text_of(maker, token_ids(maker, [first, Message("assistant", (), tool_calls=called), *results], TOOLS))
        assert ("functions, …" in text) is is_shown_by_the_template
        turns = [turn.partition("<|end_header_id|>")[2] for turn in text.split("<|eot_id|>")[1:-1]]
        assert turns == ['[weather {"city": "Bern"}]', "cold", "[get {}]", "got"]
        assert text.count(IMAGE_TOKEN) == first.parts.count(None)


def test_a_template_that_loses_tools_in_every_form_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    maker = prompt_maker(tiny_checkpoint, tmp_path, "weather, get: {{ messages[-1].content }}")
    messages = [Message("user", ("weather",)), Message("assistant", ("?",)), Message("user", ("get",))]
    with pytest.raises(InvalidRequest, match=r"leaves out the tool weather.*--chat-template"):
        maker.prepare(conversation(messages, TOOLS))


writing = st.lists(st.sampled_from([*CONTROL, "<", "|", "<|", "eot_id|>", "\\", "\ue000", r"\ue000", "é"])).map("".join)


@pytest.mark.parametrize("source", [*SHOWING_BOTH.values(), *LOSING.values()])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(writing, writing, writing)
def test_what_people_write_is_no_control_token_in_any_form(
    tiny_checkpoint: Path, tmp_path: Path, source: str, a: str, b: str, c: str
) -> None:
    maker = prompt_maker(tiny_checkpoint, tmp_path, source)
    control = set(maker.tokenizer.special_tokens.values())

    def control_ids(a: str, b: str, c: str) -> list[int]:
        tool = Tool("f", a, {"type": "object", "properties": {b: {"description": c}}})
        messages = [Message("user", (b, None, c)), Message("assistant", (a,)), Message("user", (c,))]
        return [token for token in token_ids(maker, messages, [tool]) if token in control]

    assert control_ids(a, b, c) == control_ids("x", "x", "x")
