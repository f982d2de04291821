"""Types of all answers, for the API's description. Tests check real answers against them; building them is slow."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptTokensDetails(_Answer):
    cached_tokens: int


class CompletionTokensDetails(_Answer):
    """Correct and wrong guesses of the next tokens; guessing is not billed."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(_Answer):
    """The metered usage; `estimated_cost` is in US dollars."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    estimated_cost: float
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TokenProbability(_Answer):
    """`bytes` are exact even if the token does not form whole characters."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenProbability):
    top_logprobs: list[TokenProbability]


class ChatLogprobs(_Answer):
    content: list[TokenLogprobs]
    refusal: None


class Function(_Answer):
    """`arguments` is JSON, unless max_tokens truncated it."""

    name: str
    arguments: str


class AnsweredCall(_Answer):
    id: str
    type: Literal["function"]
    function: Function


class ImageGrid(_Answer):
    """The patches of an image: the picture fills the covered ones, from the top left; the rest is padding."""

    rows: int
    columns: int
    covered_rows: float
    covered_columns: float


class ImageMap(_Answer):
    """Attention to each patch, row by row: one byte each, in base64, times `scale` / 255."""

    scale: float
    data: str


class TokenAttention(_Answer):
    """A map for each image; null for one that the token does not see. There are none after the first 8 MiB of maps."""

    token: str
    maps: list[ImageMap | None]


class ImageAttention(_Answer):
    """Where the model looked for each token, averaged over heads and layers."""

    images: list[ImageGrid]
    tokens: list[TokenAttention]


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
    image_attention: ImageAttention | None = None


class Timings(_Answer):
    """Where the time went: the phases in order, then the times to the first token and to the end.

    A phase that the answer did not need, such as `encode` if all images were cached, is null.
    """

    admission_ms: float | None
    upload_ms: float | None
    prepare_ms: float | None
    queue_ms: float | None
    encode_ms: float | None
    prefill_ms: float | None
    decode_ms: float | None
    first_token_ms: float | None
    total_ms: float | None
    tokens_per_second: float | None
    cached_tokens: int


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = None


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
    image_attention: ImageAttention | None = None


class ChatCompletionChunk(_Answer):
    """`usage` is in the last chunk that has a finish_reason or, if include_usage is set, in a separate chunk.

    With continuous_usage_stats, every chunk with more of the answer has the usage so far; the last has `timings`.
    """

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None


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
    """US dollars per million tokens."""

    input_tokens: float
    output_tokens: float
    cached_input_tokens: float


class ModelMetadata(_Answer):
    """`dtype` is the compute precision, `quantization` the format of the weights if that differs."""

    description: str
    context_length: int
    max_tokens: int
    pricing: Pricing
    dtype: str
    quantization: str | None
    max_images: int
    max_image_bytes: int
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


class ImageLayout(_Answer):
    """How the model sees an image: scaled to the picture's size, at the top left of a canvas of square tiles."""

    tile_size: int
    rows: int
    columns: int
    picture_width: int
    picture_height: int


class Tokens(_Answer):
    """`estimated_cost` is the cost of the prompt, in US dollars."""

    count: int
    max_model_len: int
    tokens: list[int]
    images: list[ImageLayout]
    estimated_cost: float


class TokenizedText(_Answer):
    prompt: str


class UsageGroup(_Answer):
    """The usage of a model's or a day's generations, in tokens and US dollars."""

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
    """A key's usage: in total, by group, and in its latest generations."""

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


class Readiness(_Answer):
    """The ages of the engine's last step and of the last answer token are present while there is work."""

    status: Literal["ready", "busy", "loading", "stalled", "draining", "waiting for the model server"]
    last_step_age_s: float | None = None
    last_token_age_s: float | None = None


class CacheStatus(_Answer):
    """The fractions of the caches that running generations hold, and their hit rates."""

    kv_cache_usage: float
    image_cache_usage: float
    prefix_hit_rate: float | None
    image_hit_rate: float | None
    preemptions: int


class Failure(_Answer):
    """A generation that the server failed to serve, without any of its content."""

    time: int
    code: str
    reason: str


class ServerStatus(Readiness):
    """The numbers of running and waiting generations, and the answer tokens per second over the last ten seconds.

    `models` are the names of the one model; `device`, `dtype` and `quantization` are empty during the first load.
    """

    object: Literal["status"]
    running: int
    waiting: int
    max_pending: int
    output_tokens_per_second: float
    started: int
    models: list[str]
    device: str
    dtype: str
    quantization: str
    cache: CacheStatus
    engine_restarts: int
    latest_failures: list[Failure]


class Health(_Answer):
    status: Literal["ok"]
    server: Readiness


class Error(_Answer):
    """`param` is the path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    error: Error
