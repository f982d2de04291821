"""Prompts: control tokens stay the template's own, and images stand where they belong."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from checkpoints import IMAGE_TOKEN, SPECIAL_TOKENS
from pictures import encoded, noise
from spyglass_server.errors import ContextTooLong, InvalidRequest
from spyglass_server.prompt import PromptMaker
from spyglass_server.prompt.conversation import Message, RawJson, Tool, ToolCall
from spyglass_server.prompt.prompt_maker import ChatInput, ImageSlot, TextInput, TokensInput
from spyglass_server.prompt.template import LLAMA3_TEMPLATE, ChatTemplate

CONTROL = [*SPECIAL_TOKENS, IMAGE_TOKEN]


@pytest.fixture(scope="module")
def prompts(tiny_checkpoint: Path) -> PromptMaker:
    return PromptMaker(tiny_checkpoint, max_image_pixels=10**6)


def conversation(*parts: str | None) -> ChatInput:
    images = tuple(ImageSlot(f"image {i}") for i, part in enumerate(parts) if part is None)
    return ChatInput((Message("user", parts),), images)


def control_ids(prompts: PromptMaker, tokens: tuple[int, ...]) -> list[int]:
    control = set(prompts.tokenizer.special_tokens.values())
    return [token for token in tokens if token in control]


writing = st.lists(st.sampled_from([*CONTROL, "<", "|", "<|", "|>", " ", "a", "é", "\ue000", "\n"])).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writing, writing, writing)
def test_what_people_write_is_never_a_control_token(prompts: PromptMaker, a: str, b: str, c: str) -> None:
    calls = (ToolCall("1", a, {"argument": b}), ToolCall("2", a, RawJson(c)))
    given_chat = ChatInput(
        (Message("system", (a,)), Message("assistant", (b,), tool_calls=calls), Message("user", (b, c)))
    )
    innocent = ChatInput(
        (Message("system", ("x",)), Message("assistant", ("x",), tool_calls=calls), Message("user", ("x",)))
    )
    tokens = prompts.prepare(given_chat).tokens
    assert control_ids(prompts, tokens) == control_ids(prompts, prompts.prepare(innocent).tokens)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writing)
def test_what_people_write_arrives_unchanged(prompts: PromptMaker, text: str) -> None:
    tokens = prompts.prepare(conversation(text)).tokens
    spelled = b"".join(prompts.tokenizer.token_bytes(token) for token in tokens).decode()
    assert spelled == f"user\n\n{text}assistant\n\n"


def test_a_begin_token_stands_just_once(prompts: PromptMaker) -> None:
    begin = prompts.tokenizer.special_tokens["<|begin_of_text|>"]
    for given_input in (conversation("hi"), TextInput("hi"), TextInput("<|begin_of_text|>hi")):
        tokens = prompts.prepare(given_input).tokens
        assert tokens.count(begin) == 1
        assert tokens[0] == begin


def test_a_ready_prompt_may_hold_control_tokens_but_no_image(prompts: PromptMaker) -> None:
    end = prompts.tokenizer.special_tokens["<|eot_id|>"]
    assert prompts.prepare(TextInput("a<|eot_id|>")).tokens[-1] == end
    image = prompts.tokenizer.special_tokens[IMAGE_TOKEN]
    for bad in (TextInput(f"a{IMAGE_TOKEN}"), TokensInput((1, image)), TokensInput((10**6,)), TokensInput(())):
        with pytest.raises(InvalidRequest):
            prompts.prepare(bad)


def test_an_image_token_stands_for_each_image_and_literal_ones_are_text(prompts: PromptMaker, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    prompt = prompts.prepare(conversation("one", None, IMAGE_TOKEN, None, "two"), [path.read_bytes()] * 2)
    image = prompts.tokenizer.special_tokens[IMAGE_TOKEN]
    assert [prompt.tokens[position] for position in prompt.image_positions] == [image, image]
    assert prompt.tokens.count(image) == 2
    assert len(prompt.images) == 2


@pytest.mark.parametrize("text", ["Once upon a ", "t", "id", "|>", " ", "", "<|eot_id|>"])
def test_the_last_message_of_the_assistant_is_continued(prompts: PromptMaker, text: str) -> None:
    asked = Message("user", ("hi",))
    header = prompts.prepare(ChatInput((asked,))).tokens
    tokens = prompts.prepare(ChatInput((asked, Message("assistant", (text,))))).tokens
    assert list(tokens) == [*header, *prompts.tokenizer.encode_text(text)]


def test_a_text_far_beyond_the_context_is_refused_and_one_within_is_not(prompts: PromptMaker) -> None:
    for given_input in (conversation("ab " * 100_000), TextInput("ab " * 100_000)):
        with pytest.raises(ContextTooLong):
            prompts.prepare(given_input, max_tokens=4000)
        assert len(prompts.prepare(given_input, max_tokens=400_000).tokens) > 300_000


def test_a_template_that_loses_images_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content[0].text }}{% endfor %}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    prompts = PromptMaker(tiny_checkpoint, 10**6, tmp_path / "t.jinja")
    with pytest.raises(InvalidRequest, match=r"0 of the conversation's 1 images.*--chat-template"):
        prompts.prepare(conversation("look", None), [(tmp_path / "a.png").read_bytes()])


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system') }}",
        "{{ messages[0].content.foo.bar }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('x' * 10000) }}",
    ],
)
def test_a_template_that_refuses_is_named_in_the_error(tiny_checkpoint: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "t.jinja").write_text(source)
    prompts = PromptMaker(tiny_checkpoint, 10**6, tmp_path / "t.jinja")
    with pytest.raises(InvalidRequest, match="--chat-template"):
        prompts.prepare(conversation("hi"))


def test_a_template_that_does_not_compile_is_the_operators_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for %}")
    with pytest.raises(ValueError, match="chat template"):
        PromptMaker(tiny_checkpoint, 10**6, tmp_path / "t.jinja")


def test_the_builtin_template_says_what_the_reference_says() -> None:
    template = ChatTemplate(LLAMA3_TEMPLATE, {"bos_token": "<|begin_of_text|>"}, CONTROL, IMAGE_TOKEN)
    call = ToolCall("1", "f", {"a": "b"})
    text, restore = template.render(
        [
            Message("system", (" s ",)),
            Message("user", ("u", None)),
            Message("assistant", (), tool_calls=(call,)),
            Message("tool", ("r",), tool_call_id="1"),
        ]
    )
    assert restore(text) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n s <|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nu<|image|><|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"type": "function", "name": "f", "parameters": {"a": "b"}}'
        "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\nr<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_templates_are_found_where_checkpoints_keep_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    settings_file = tmp_path / "tokenizer_config.json"
    plain = {key: value for key, value in json.loads(settings_file.read_text()).items() if key != "chat_template"}

    def rendered() -> str:
        maker = PromptMaker(tmp_path, 10**6)
        return b"".join(map(maker.tokenizer.token_bytes, maker.prepare(conversation("x")).tokens)).decode()

    settings_file.write_text(json.dumps(plain | {"chat_template": [{"name": "default", "template": "list"}]}))
    assert rendered() == "list"
    settings_file.write_text(json.dumps(plain | {"chat_template": "string"}))
    assert rendered() == "string"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert rendered() == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert rendered() == "jinja"


def test_a_single_tile_does_for_a_low_detail(prompts: PromptMaker) -> None:
    message = Message("user", (None, None, "which?"))
    wide = encoded(noise((200, 60)))
    slots = (ImageSlot("a"), ImageSlot("b", is_low=True))
    found = prompts.prepare(ChatInput((message,), slots), [wide, wide]).images
    assert [len(image.pixels) for image in found] == [4, 1]
    assert found[0].digest != found[1].digest


def test_a_tool_may_show_an_image(prompts: PromptMaker) -> None:
    turns = (Message("user", ("look",)), Message("tool", ("seen: ", None), tool_call_id="1"))
    prompt = prompts.prepare(ChatInput(turns, (ImageSlot("a"),)), [encoded(noise((20, 20)))])
    assert len(prompt.images) == len(prompt.image_positions) == 1


WEATHER = Tool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
TAKES_TOOLS = """\
{%- if tools -%}
    {{- 'tools:' -}}
    {%- for tool in tools -%}{{- tool | tojson -}}{%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.tool_calls and message.tool_calls | length > 1 -%}
        {{- raise_exception('only one call at once') -}}
    {%- endif -%}
    {{- '<|eot_id|>' + message.role + ':' -}}
    {%- if message.tool_calls -%}{{- message.tool_calls[0].function.name -}}
    {%- elif tools or message.content is string -%}{{- message.content | string -}}
    {%- else -%}
        {%- for part in message.content -%}{{- '<|image|>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
{%- endfor -%}
"""
"""As Meta's, it loses images where it is given tools."""


def rendered(source: str, messages: list[Message], *tools: Tool) -> str:
    text, restore = ChatTemplate(source, {}, CONTROL, IMAGE_TOKEN).render(messages, tools)
    return restore(text)


def test_a_template_that_takes_tools_gets_them() -> None:
    text = rendered(TAKES_TOOLS, [Message("user", ("hi",))], WEATHER)
    assert text.startswith("tools:" + json.dumps(WEATHER.definition))
    assert "user:hi" in text


@pytest.mark.parametrize("source", [TAKES_TOOLS, LLAMA3_TEMPLATE])
def test_tools_are_told_beside_an_image_and_a_system_message(source: str) -> None:
    messages = [Message("system", ("Be brief.",)), Message("user", (None, "hi")), Message("user", ("more",))]
    text = rendered(source, messages, WEATHER)
    assert "tools:" not in text
    assert text.count('"name": "weather"') == 1
    assert "Be brief." in text
    assert text.index("Be brief.") < text.index('"name": "weather"') < text.index("hi")
    if source == LLAMA3_TEMPLATE:
        assert text.index("<|image|>") < text.index("Given the following functions") < text.index("hi")


@pytest.mark.parametrize(
    "source",
    [
        LLAMA3_TEMPLATE,
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}"
        "{% endfor %}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{% if c.function.arguments is string %}"
        "{{ c.function.arguments }}{% endif %}{% endfor %}{% endfor %}",
    ],
)
def test_arguments_that_were_cut_off_stand_in_the_prompt_as_far_as_they_came(source: str) -> None:
    written = '{"city": "Par\\n <|eot_id|>'
    called = (ToolCall("1", "f", RawJson(written)),)
    messages = [Message("assistant", (), tool_calls=called), Message("user", ("and?",))]
    text, restore = ChatTemplate(source, {"bos_token": ""}, CONTROL, IMAGE_TOKEN).render(messages)
    assert written not in text  # no control token yet
    assert restore(text).count(written) == 1
    assert f'"{written}' not in restore(text)


def test_several_calls_of_a_turn_become_turns_where_a_template_takes_one() -> None:
    called = (ToolCall("1", "f", {}), ToolCall("2", "g", {}))
    messages = [
        Message("user", ("hi",)),
        Message("assistant", (), tool_calls=called),
        Message("tool", ("second",), tool_call_id="2"),
        Message("tool", ("first",), tool_call_id="1"),
        Message("user", ("and?",)),
    ]
    text = rendered(TAKES_TOOLS, messages)
    assert text.split("<|eot_id|>")[1:] == [
        "user:hi",
        "assistant:f",
        "tool:first",
        "assistant:g",
        "tool:second",
        "user:and?",
    ]


@given(writing, writing)
def test_what_stands_in_a_tool_is_never_a_control_token(a: str, b: str) -> None:
    tool = Tool("f", a, {"type": "object", "properties": {b: {"description": b}}})
    for source in (TAKES_TOOLS, LLAMA3_TEMPLATE):
        template = ChatTemplate(source, {"bos_token": ""}, CONTROL, IMAGE_TOKEN)
        plain = Tool("f", "x", {"type": "object", "properties": {"x": {"description": "x"}}})
        (text, _), (expected, _) = (template.render([Message("user", ("hi",))], [one]) for one in (tool, plain))
        for token in CONTROL:
            assert text.count(token) == expected.count(token)
