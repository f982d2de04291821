"""A plan: what a model needs from each GPU, what else fits, how fast it is, what it costs, and what to change."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from spyglass_server.planning.costs import Precision, step_bytes
from spyglass_server.planning.hardware import GPUS, Gpu, Rates, rates_of
from spyglass_server.planning.memory import CacheSizes, CacheUnits, CacheWishes, divide, gigabytes
from spyglass_server.planning.sizes import ITEMSIZES, ModelSizes
from spyglass_server.planning.times import Clock, Load, Speed

DRAFT_ROWS = {"cpu": 16}
"""Up to this many answer tokens, drafts included, a step costs little more than with one. Not measured on GPUs."""
STEP_TOKENS, CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}, {"cpu": 64, "cuda": 512}
"""The engine's defaults for `--max-step-tokens` and `--max-chunk-tokens`."""
SLICE_OPERATIONS = {"cpu": 4e9, "cuda": 1e12}
"""Operations of picture encoding per step: about 30 ms on two cores, a few milliseconds on GPUs."""
HELD_BYTES = 500_000_000
"""GPU memory that the driver holds for a process."""
_NUM_GPUS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to plan. `dtype` and `quantization` are how the weights are kept, `name` is the model's."""

    name: str
    model: ModelSizes
    gpu: Gpu
    num_gpus: int
    dtype: str
    quantization: str
    load: Load
    max_batch: int
    utilization: float
    max_step_tokens: int
    max_chunk_tokens: int
    slice_operations: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of each GPU. `budget` is what may be used, `caches` is None if they do not fit."""

    budget: int
    weights: int
    step: int
    units: CacheUnits
    caches: CacheSizes | None
    requests: int
    """How many requests fit the caches at once; there may be more than a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """US dollars per million tokens, when as many requests as possible run at once."""

    input: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer. If the model does not fit, there are no speeds and costs but `advice`: options that would fit."""

    question: Question
    memory: Memory
    speeds: tuple[Speed, ...]
    costs: Costs | None
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a request can be served at all."""
        return self.costs is not None


def make_plan(question: Question, at_once: int | None = None) -> Plan:
    """Plans one request alone, and `at_once` of them: None for as many as fit.

    Raises:
        ValueError: the model cannot be divided among the GPUs, or the load is longer than it was made for.
    """
    longest = question.model.text.max_position
    if question.load.tokens > longest:
        raise ValueError(f"{question.load.tokens} tokens are more than the {longest} that the model was made for")
    memory = memory_of(question)
    most = min(memory.requests, question.max_batch)
    if not most:
        return Plan(question=question, memory=memory, speeds=(), costs=None, advice=tuple(_advice(question)))
    if at_once is not None and at_once > most:
        limit = "--max-batch allows" if memory.requests > question.max_batch else "the caches allow"
        raise ValueError(f"--at-once is {at_once}, but {limit} {most}")
    clock = clock_of(question, rates_of(question.gpu, question.dtype, question.quantization))
    speeds = tuple(clock.speed(question.load, count) for count in sorted({1, at_once or most}))
    return Plan(question=question, memory=memory, speeds=speeds, costs=_costs(question, speeds[-1]), advice=())


def memory_of(question: Question) -> Memory:
    """Divides the memory of each GPU as the engine does. Raises ValueError if the model cannot be divided."""
    model, itemsize = question.model.of_rank(question.num_gpus), ITEMSIZES[question.dtype]
    units = model.cache_units(itemsize)
    weights = model.count().nbytes(itemsize, question.quantization)
    step = step_bytes(model, itemsize, question.max_step_tokens, question.max_batch)
    budget = int(question.gpu.memory_gb * 1e9 * question.utilization) - HELD_BYTES
    wishes = CacheWishes(
        cache_bytes=None,
        image_cache_bytes=None,
        max_model_len=question.load.tokens,
        max_images=question.max_batch,
    )
    left = budget - weights - step
    caches = divide(left, wishes, units) if left >= wishes.least(units) else None
    requests = _num_requests(question.load, caches, units) if caches else 0
    return Memory(budget=budget, weights=weights, step=step, units=units, caches=caches, requests=requests)


def clock_of(question: Question, rates: Rates) -> Clock:
    """The clock of one rank on hardware that reaches `rates`."""
    return Clock(
        model=question.model.of_rank(question.num_gpus),
        precision=Precision.of(ITEMSIZES[question.dtype], question.quantization),
        rates=rates,
        num_ranks=question.num_gpus,
        max_step_tokens=question.max_step_tokens,
        max_chunk_tokens=question.max_chunk_tokens,
        slice_operations=question.slice_operations,
    )


def _num_requests(load: Load, caches: CacheSizes, units: CacheUnits) -> int:
    by_text = caches.num_pages // -(-load.tokens // units.page_size)
    return min(by_text, caches.num_tiles // (load.images * load.tiles)) if load.images else by_text


def _costs(question: Question, speed: Speed) -> Costs:
    """Divides a request's time on the GPUs between prompt and answer, by the time that each would take alone."""
    request = question.gpu.price * question.num_gpus / 3600 * speed.request.seconds / speed.at_once
    prompt, answer = speed.prompt.seconds, question.load.answer * speed.between_tokens.seconds / speed.at_once
    share = prompt / (prompt + answer)
    return Costs(
        input=1e6 * request * share / question.load.prompt, output=1e6 * request * (1 - share) / question.load.answer
    )


def _advice(question: Question) -> Iterator[str]:
    """Options that make it fit: weights in 8 bits, more GPUs, larger GPUs; the latter also with 8 bits, if these alone
    are not enough."""
    numbers = [number for number in _NUM_GPUS if number > question.num_gpus]
    larger = sorted(
        (gpu for gpu in GPUS.values() if gpu.memory_gb > question.gpu.memory_gb), key=lambda gpu: gpu.memory_gb
    )
    small = replace(question, quantization="fp8")
    forms = [question] if question.quantization == "fp8" or _fits(small) else [question, small]
    ways = [[small]]
    ways += [[replace(form, num_gpus=number) for number in numbers] for form in forms]
    ways += [[replace(form, gpu=gpu) for gpu in larger] for form in forms]
    for changes in ways:
        if change := next(filter(_fits, changes), None):
            weights = gigabytes(memory_of(change).weights)
            yield f"{_options(question, change)}: weights of {weights} on each GPU"
    yield from _shorter(question)


def _options(question: Question, change: Question) -> str:
    options = [f"--quantization {change.quantization}"] if change.quantization != question.quantization else []
    if change.num_gpus != question.num_gpus:
        options.append(f"--tensor-parallel-size {change.num_gpus}")
    if change.gpu is not question.gpu:
        options.append("--gpu " + next(name for name, gpu in GPUS.items() if gpu is change.gpu))
    return " ".join(options)


def _shorter(question: Question) -> Iterator[str]:
    """Shorter requests or fewer pictures, if the weights fit."""
    memory = memory_of(question)
    left = memory.budget - memory.weights - memory.step
    room = (left - memory.units.image_bytes) // memory.units.page_bytes * memory.units.page_size
    if room > 0 and room < question.load.tokens:
        yield f"prompt and answer of at most {room:,} tokens together"
    elif memory.caches and question.load.images:
        need = question.load.images * question.load.tiles * memory.units.tile_bytes
        yield f"--image-cache-bytes {need} for the pictures of a request, or fewer of them"


def _fits(question: Question) -> bool:
    try:
        return memory_of(question).requests > 0
    except ValueError:
        return False
