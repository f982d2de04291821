"""The requests of the completions APIs: supported parameters, their ranges, and which exclude each other."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from spyglass_bridge.errors import invalid
from spyglass_bridge.openai.parts import (
    CountedMessage,
    Format,
    Message,
    Object,
    Prediction,
    Stop,
    StopString,
    StreamOptions,
    Tool,
    ToolChoice,
)
from spyglass_common import limits

_MAX_PROMPTS = 32
_MAX_TOKEN_IDS = 131_072
_MAX_TOLD = 65_536
"""Maximum prompt tokens or characters returned with logprobs: each takes up to two kilobytes of an answer."""

_ModelName = Annotated[str, Field(min_length=1, max_length=256)]
_Penalty = Annotated[float, Field(ge=-limits.MAX_PENALTY, le=limits.MAX_PENALTY)]
_RepetitionPenalty = Annotated[float, Field(ge=limits.MIN_REPETITION_PENALTY, le=limits.MAX_REPETITION_PENALTY)]
# The server caps it to what fits: many clients send 100,000, or the whole context.
_MaxTokens = Annotated[int, Field(ge=1, le=limits.MAX_INT32)]


def _token_id(name: Any) -> int:
    """Parses a token id from a key of a JSON object: decimal digits."""
    if not isinstance(name, str) or not re.fullmatch(_TOKEN_ID, name) or int(name) >= 2**32:
        raise ValueError("a bias is named by the id of a token")
    return int(name)


_TOKEN_ID = "^(0|[1-9][0-9]{0,9})$"
_TokenId = Annotated[int, BeforeValidator(_token_id, json_schema_input_type=Annotated[str, Field(pattern=_TOKEN_ID)])]


class _Sampling(Object):
    """Sampling and output format, common to all forms of request. None means the default."""

    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=limits.MAX_TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=999)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: _RepetitionPenalty | None = None
    response_format: Format | None = None


class _Request(_Sampling):
    """Fields that chat completions and completions have in common."""

    model: _ModelName
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = None
    logit_bias: (
        Annotated[
            dict[_TokenId, Annotated[float, Field(ge=-limits.MAX_LOGIT_BIAS, le=limits.MAX_LOGIT_BIAS)]],
            Field(max_length=limits.MAX_LOGIT_BIASES),
        ]
        | None
    ) = None
    min_tokens: Annotated[int, Field(ge=0, le=limits.MAX_TOKENS)] | None = None
    max_tokens: _MaxTokens | None = None
    stop: Stop | None = None

    @property
    def include_usage(self) -> bool | None:
        return self.stream_options.include_usage if self.stream_options else None

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def top_probabilities(self) -> int | None:
        """How many alternatives are returned with each token's logprob; None without logprobs."""
        return None


class ChatRequest(_Request):
    """A request for a chat completion."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    include: list[Literal["image_attention", "timings"]] | None = None
    prediction: Prediction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=limits.MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: _MaxTokens | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def top_probabilities(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens and max_completion_tokens differ.", "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs is only for logprobs.", "top_logprobs")
        return self


_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1, fail_fast=True)]


def _kind_of_prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if not isinstance(value, list) or not value:
        return None
    if isinstance(value[0], str):
        return "<strings>"
    return "<lists>" if isinstance(value[0], list) else "<tokens>"


_Prompt = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[_Tokens, Tag("<tokens>")]
    | Annotated[list[str], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("<strings>")]
    | Annotated[list[_Tokens], Field(max_length=_MAX_PROMPTS, fail_fast=True), Tag("<lists>")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="unknown_prompt",
        custom_error_message=f"The prompt must be a string, tokens, or a list of up to {_MAX_PROMPTS} of these",
    ),
]


class CompletionRequest(_Request):
    """A request for completions of one or several ready prompts."""

    prompt: _Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.echo and self.logprobs is not None:
            if (self.n or 1) > 1:
                raise invalid("With echo and logprobs there is one choice of each prompt.", "n")
            if sum(map(len, self.prompts)) > _MAX_TOLD:
                raise invalid(f"With echo and logprobs the prompts are at most {_MAX_TOLD} long in all.", "prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def top_probabilities(self) -> int | None:
        return self.logprobs


class NativeRequest(_Sampling):
    """A ready prompt to continue, in DeepInfra's own form."""

    input: str
    max_new_tokens: _MaxTokens | None = None
    stop: Annotated[list[StopString], Field(max_length=limits.MAX_STOP_STRINGS, fail_fast=True)] | None = None
    num_responses: Annotated[int, Field(ge=1, le=limits.MAX_CHOICES)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream and (self.num_responses or 1) > 1:
            raise invalid("A stream has one response.", "num_responses")
        return self

    def as_completion(self, model: str) -> CompletionRequest:
        """Returns the same request in OpenAI's form; a stream's events include the logprob of each token."""
        same = {name: value for name, value in self if name in CompletionRequest.model_fields}
        return CompletionRequest.model_construct(
            **same,
            model=model,
            prompt=self.input,
            max_tokens=self.max_new_tokens,
            n=self.num_responses,
            logprobs=0 if self.stream else None,
            stream_options=None,
        )


class TokenizeRequest(Object):
    """What to tokenize: a ready prompt, or a conversation with its tools. For images, their sizes suffice."""

    model: _ModelName
    prompt: str | None = None
    messages: Annotated[list[CountedMessage], Field(min_length=1, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=limits.MAX_TOOLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("One of prompt and messages is needed.", "prompt")
        if self.tools and self.messages is None:
            raise invalid("tools go with messages.", "tools")
        return self

    def as_completion(self) -> ChatRequest | CompletionRequest:
        """Returns the request whose prompt is to be tokenized."""
        if self.messages is None:
            return CompletionRequest.model_validate({"model": self.model, "prompt": self.prompt})
        return ChatRequest.model_construct(model=self.model, messages=self.messages, tools=self.tools)


class DetokenizeRequest(Object):
    """The tokens to decode to text."""

    model: _ModelName
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(max_length=_MAX_TOKEN_IDS, fail_fast=True)]
