"""Conversations as tokens: what the text model reads while it learns to look.

Owns how a conversation about pictures is put together, cut into a prefix that many share and the rest,
and laid out as a batch. Knows nothing of drawing, or of what is learned.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from spyglass_training.drawing.scenes import Scene
from spyglass_training.learning.labels import WHOLE
from spyglass_training.learning.precision import suited_attention
from spyglass_training.learning.views import NO_IMAGE, PictureViews, attention
from spyglass_training.served import TextConfig, TextModel, rotary_angles, rotary_frequencies, rotate
from spyglass_training.talk.referents import Referent, referents

IMAGE = "<|image|>"
TURN_END = "<|im_end|>"
_ASK = "<|im_end|>\n<|im_start|>assistant\n"
_AGAIN = "\n<|im_start|>user\n"

_SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
_USER = "<|im_start|>user\n"
_DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PREFIXES = (
    _SYSTEM.format(_DEFAULT) + _USER,
    _SYSTEM.format("You are a helpful assistant.") + _USER,
    _SYSTEM.format("You answer questions about pictures.") + _USER,
    _SYSTEM.format("Answer briefly.") + _USER,
    _SYSTEM.format("You are a friendly teacher who talks with children.") + _USER,
    _SYSTEM.format(_DEFAULT) + _USER + "Hello!" + _ASK + "Hello! How can I help you today?" + TURN_END + _AGAIN,
    _SYSTEM.format(_DEFAULT) + _USER + "I will show you a picture." + _ASK + "Good, I am ready." + TURN_END + _AGAIN,
)
"""What comes before the first picture. It sees none, so its keys and values never change."""
PREFIX_WEIGHTS = (70, 8, 4, 4, 2, 4, 4)
_NOT_ASKED = -100


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; `image` is a picture of the batch that is shown with it, or None."""

    question: str
    answer: str
    image: int | None
    image_first: bool = True
    scene: Scene | None = None
    """What the question is about: where to look is then learned, too."""
    whole: bool = False
    """Whether the picture as a whole tells the answer, too."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A conversation after its prefix: its tokens, which picture each sees, and what is to be learned.

    `targets` has the next token where an answer is being given, else -100. `looks` says at which things of
    its picture one should look there to find what to say next, bit i for thing i and bit WHOLE for the picture
    as a whole; 0 means nowhere in particular.
    """

    prefix: int
    ids: list[int]
    images: list[int]
    targets: list[int]
    looks: list[int]


def text_only(ids: list[int]) -> Tokens:
    """Tokens that see no picture and of which nothing is learned."""
    return Tokens(0, ids, [NO_IMAGE] * len(ids), [_NOT_ASKED] * len(ids), [0] * len(ids))


def tokenize(tokenizer: Tokenizer, prefix: int, turns: Sequence[Turn], ends: bool = True) -> Tokens:
    """The tokens of a conversation. `ends`: whether the last answer is whole, so that its end is learned too."""
    ids: list[int] = []
    images: list[int] = []
    targets: list[int] = []
    looks: list[int] = []
    seen = NO_IMAGE

    def add(text: str, answers: Turn | None = None) -> None:
        """Adds a piece; one that `answers` a turn's question is to be learned."""
        encoded = tokenizer.encode(text, add_special_tokens=False)
        found: list[int] = encoded.ids
        if answers is None or not found:
            targets.extend([_NOT_ASKED] * len(found))
            looks.extend([0] * len(found))
        else:
            # where a token is predicted, one should look at what it will speak of, else at what was asked about
            scene = answers.scene
            asked, spoken = ([] if scene is None else referents(said, scene) for said in (answers.question, text))
            plainest = min(asked, key=lambda referent: len(referent.things), default=None)
            default = _bits(plainest.things) if plainest else int(scene is not None and len(scene.things) == 1)
            whole = answers.whole << WHOLE
            targets[-1:] = found
            targets.append(_NOT_ASKED)
            looks[-1:] = [(_look(spoken, end) or default) | whole for _, end in encoded.offsets]
            looks.append(0)
        ids.extend(found)
        images.extend([seen] * len(found))

    for number, turn in enumerate(turns):
        before = _AGAIN if number else ""
        if turn.image is None:
            add(before + turn.question + _ASK)
        elif turn.image_first:
            if before:
                add(before)
            seen = turn.image
            add(IMAGE + turn.question + _ASK)
        else:
            add(before + turn.question)
            seen = turn.image
            add(IMAGE + _ASK)
        is_open = not ends and number + 1 == len(turns)
        answer = turn.answer.removesuffix(TURN_END) + ("" if is_open else TURN_END)
        add(answer, answers=turn)
    return Tokens(prefix, ids, images, targets, looks)


def _look(spoken: Sequence[Referent], end: int) -> int:
    """The things that the token which ends at a character speaks of."""
    for referent in spoken:
        if referent.start < end <= referent.end:
            return _bits(referent.things)
    return 0


def _bits(things: Sequence[int]) -> int:
    return sum(1 << thing for thing in things)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of the tokens of a prefix, by layer: [layers, 2, kv_heads, tokens, head_dim]."""

    states: Tensor

    @property
    def length(self) -> int:
        return self.states.shape[3]


class Sequences:
    """A batch of conversations, and their keys and values while the text model reads them.

    flat tokens   [ conversation 0: t t t | conversation 1: t t t t t | … ]
    """

    def __init__(self, batch: Sequence[Tokens], prefixes: Sequence[Prefix], config: TextConfig) -> None:
        self._config = config
        lengths = [len(tokens.ids) for tokens in batch]
        before = [prefixes[tokens.prefix].length if prefixes else 0 for tokens in batch]
        self._shape = len(batch), max(lengths)
        self.tokens = torch.tensor([i for tokens in batch for i in tokens.ids])
        self.targets = torch.tensor([t for tokens in batch for t in tokens.targets])
        self.rows = torch.arange(len(batch)).repeat_interleave(torch.tensor(lengths))
        self.positions = torch.cat([torch.arange(b, b + n) for b, n in zip(before, lengths, strict=True)])
        self._slots = torch.cat([torch.arange(n) + row * self._shape[1] for row, n in enumerate(lengths)])
        self._prefixes = self._gather(batch, prefixes, max(before))
        self._mask = self._make_mask(before, max(before))
        self._images = torch.tensor([i for tokens in batch for i in tokens.images])
        self._looks = torch.tensor([things for tokens in batch for things in tokens.looks])
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        frequencies = rotary_frequencies(config.rope, config.head_dim, torch.device("cpu"))
        self._angles = rotary_angles(self.positions, frequencies)

    def hidden(self, model: TextModel, layers: Iterable[nn.Module] | None = None) -> Tensor:
        """Hidden states of all tokens [tokens, hidden], without pictures, after all or the given layers."""
        return self.through(
            model, model.layers if layers is None else layers, model.embedding(self.tokens).float(), None
        )

    def through(self, model: TextModel, layers: Iterable[nn.Module], x: Tensor, views: PictureViews | None) -> Tensor:
        """Takes hidden states of all tokens [tokens, hidden] through some of the text model's layers."""
        with suited_attention(model.head.weight.dtype):
            return model.through(layers, x, self, views)

    def views(self, states: Tensor, owners: Tensor | None = None) -> PictureViews:
        """The tokens' views of pictures, whose keys and values [cross layers, 2, kv_heads, images, tokens, head_dim]
        are.

        `owners` [images, tokens] has the thing that each token of a picture shows, WHOLE, or -1: with it `misses`
        tells how far the looks are off.
        """
        views = PictureViews(self._images, states)
        if owners is not None:
            views.watch(self._looks, owners)
        return views

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Rotates and keeps keys and values of qkv [tokens, (heads + 2 * kv_heads) * head_dim], and lets each token
        attend to its own conversation so far."""
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        qk, v = qkv.view(len(qkv), -1, self._config.head_dim).tensor_split((heads + kv_heads,), dim=1)
        q, k = rotate(qk, *self._angles).tensor_split((heads,), dim=1)
        self._keys[layer] = self._padded(k), self._padded(v)
        k, v = (x.transpose(1, 2) for x in self._keys[layer])  # [rows, kv_heads, longest, head_dim]
        if self._prefixes is not None:
            k, v = (torch.cat((self._prefixes[layer, i], x), dim=2) for i, x in enumerate((k, v)))
        return attention(self._padded(q), k, v, self._mask.to(q.dtype)).index_select(0, self._slots)

    def states(self, layers: int) -> Tensor:
        """The keys and values that were written, of the first conversation: a prefix's states."""
        return torch.stack([torch.stack([x[0].transpose(0, 1) for x in self._keys[layer]]) for layer in range(layers)])

    def _padded(self, x: Tensor) -> Tensor:
        """From flat tokens to [conversations, longest, …]."""
        rows, longest = self._shape
        return x.new_zeros(rows * longest, *x.shape[1:]).index_copy(0, self._slots, x).view(rows, longest, *x.shape[1:])

    def _gather(self, batch: Sequence[Tokens], prefixes: Sequence[Prefix], longest: int) -> Tensor | None:
        """Each conversation's prefix, padded: [layers, 2, conversations, kv_heads, longest, head_dim]."""
        if not prefixes:
            return None
        padded = [F.pad(prefix.states, (0, 0, 0, longest - prefix.length)) for prefix in prefixes]
        return torch.stack(padded, dim=2)[:, :, [tokens.prefix for tokens in batch]]

    def _make_mask(self, before: Sequence[int], longest: int) -> Tensor:
        """Zero where a token sees a key, else minus infinity: [conversations, 1, heads a group * tokens, keys]."""
        rows, tokens = self._shape
        prefix = torch.arange(longest) < torch.tensor(before)[:, None]
        body = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        seen = torch.cat((prefix[:, None].expand(rows, tokens, longest), body.expand(rows, tokens, tokens)), dim=-1)
        mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -torch.inf)
        return mask.repeat(1, self._config.num_heads // self._config.num_kv_heads, 1)[:, None]


class Beginnings:
    """What the text model thinks of conversations before it looks at pictures.

    That never changes, as it is frozen, and texts come again: it is kept.
    """

    def __init__(self, model: TextModel, prefixes: Sequence[Prefix], limit: int) -> None:
        """`limit`: of how many conversations it is kept."""
        self._model, self.prefixes, self._limit = model, prefixes, limit
        self._layers = model.layers[: model.config.cross_layers[0]]
        self._known: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def read(self, batch: Sequence[Tokens]) -> Tensor:
        """Hidden states of all tokens before the first cross-attention layer: flat [tokens, hidden]."""
        keys = [(tokens.prefix, *tokens.ids) for tokens in batch]
        new = {key: tokens for key, tokens in zip(keys, batch, strict=True) if key not in self._known}
        if new:
            some = Sequences(list(new.values()), self.prefixes, self._model.config)
            hidden = some.hidden(self._model, self._layers)
            self._known |= zip(new, torch.split(hidden, [len(tokens.ids) for tokens in new.values()]), strict=True)
        found = torch.cat([self._known[key] for key in keys])
        for key in list(self._known)[: max(0, len(self._known) - self._limit)]:
            del self._known[key]
        return found
