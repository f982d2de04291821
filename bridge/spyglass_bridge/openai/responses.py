"""Types of all answers, for the API's description. Tests hold real answers to them; to build these would be slow."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Answer):
    cached_tokens: int


class Usage(_Answer):
    """What was metered; `estimated_cost` is in US dollars."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    estimated_cost: float
    prompt_tokens_details: PromptTokensDetails


class TokenProbability(_Answer):
    """`bytes` are whole where a token is no whole character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenProbability):
    top_logprobs: list[TokenProbability]


class ChatLogprobs(_Answer):
    content: list[TokenLogprobs]
    refusal: None


class Function(_Answer):
    """`arguments` is JSON, unless max_tokens cut it short."""

    name: str
    arguments: str


class AnsweredCall(_Answer):
    id: str
    type: Literal["function"]
    function: Function


class AnswerMessage(_Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = []


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(_Answer):
    index: int
    message: AnswerMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionPiece(_Answer):
    name: str = ""
    arguments: str


class CallPiece(_Answer):
    """`id`, `type` and the name come with the first piece of a call."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionPiece


class ChatDelta(_Answer):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[CallPiece] = []


class ChatChunkChoice(_Answer):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None


class ChatCompletionChunk(_Answer):
    """`usage` stands in the last chunk that has a finish_reason, or where include_usage is set in one of its own.

    With continuous_usage_stats every chunk with more of the answer has what was used so far.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Answer):
    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None
    logprobs: TextLogprobs | None


class Completion(_Answer):
    """A completion, or a chunk of one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Pricing(_Answer):
    """US dollars for a million tokens."""

    input_tokens: float
    output_tokens: float
    cached_input_tokens: float


class ModelMetadata(_Answer):
    description: str
    context_length: int
    max_tokens: int
    pricing: Pricing
    tags: list[str]


class ModelObject(_Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    metadata: ModelMetadata


class ModelList(_Answer):
    object: Literal["list"]
    data: list[ModelObject]


class InferenceStatus(_Answer):
    """`cost` is in US dollars."""

    status: Literal["succeeded"]
    runtime_ms: int
    cost: float
    tokens_input: int
    tokens_generated: int


class GeneratedText(_Answer):
    generated_text: str


class Inference(_Answer):
    request_id: str
    inference_status: InferenceStatus
    results: list[GeneratedText]
    num_tokens: int
    num_input_tokens: int


class InferredToken(_Answer):
    id: int
    text: str
    logprob: float
    special: bool


class InferenceEvent(_Answer):
    """A token, or at the end the whole text with details."""

    token: InferredToken | None
    generated_text: str | None
    details: dict[str, Any] | None


class Tokens(_Answer):
    count: int
    max_model_len: int
    tokens: list[int]


class TokenizedText(_Answer):
    prompt: str


class UsageGroup(_Answer):
    """What the generations of a model or a day have used, in tokens and US dollars."""

    model: str | None
    day: str | None
    generations: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    estimated_cost: float


class UsageRecord(_Answer):
    """One generation. `finished` is null and `outcome` empty while it runs."""

    request_id: str
    model: str
    started: str
    finished: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    estimated_cost: float
    outcome: str


class UsageReport(_Answer):
    """What a key has used: in all, by group, and in its latest generations."""

    object: Literal["usage"]
    key_id: str
    tenant: str
    generations: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    estimated_cost: float
    data: list[UsageGroup]
    records: list[UsageRecord]


class Schema(BaseModel):
    """A JSON schema."""


class Status(_Answer):
    status: str


class Error(_Answer):
    """`param` is the path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    error: Error
