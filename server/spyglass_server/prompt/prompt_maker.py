"""Makes prompts: turns a request's input into token ids and tiles, using template, tokenizer and image processing.

Blocking; call it in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from spyglass_common.limits import MAX_TOKENS
from spyglass_server.errors import ContextTooLong, InvalidImage, InvalidRequest
from spyglass_server.images import ImageError, ImageSpec, ImageTiles, check_size, decode_tiles
from spyglass_server.prompt.conversation import Message, Tool
from spyglass_server.prompt.files import read_prompt_files
from spyglass_server.prompt.template import LLAMA3_TEMPLATE, ChatTemplate
from spyglass_server.prompt.tokenizer import TextTokenizer

_CHARACTERS_A_TOKEN = 8
"""More characters than tokens of ordinary text have, so that only a text that is much too long is cut for a check."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of an image in a request, and whether a single tile of it is enough."""

    field: str
    is_low: bool = False


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation, its images in reading order, and the tools that the model may call."""

    field: ClassVar[str] = "chat.messages"
    messages: tuple[Message, ...]
    images: tuple[ImageSlot, ...] = ()
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class TextInput:
    """A ready prompt, in which control tokens are parsed."""

    field: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class TokensInput:
    """A ready prompt as token ids."""

    field: ClassVar[str] = "tokens.ids"
    ids: tuple[int, ...]


Input = ChatInput | TextInput | TokensInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Token ids, the positions of image tokens among them, and the images' tiles."""

    tokens: tuple[int, ...]
    image_positions: tuple[int, ...] = ()
    images: tuple[ImageTiles, ...] = ()
    prediction: tuple[int, ...] = ()
    """Tokens of the expected answer."""

    def without_images(self) -> "Prompt":
        """Returns the prompt without the tiles."""
        return replace(self, images=())


class PromptMaker:
    """Makes prompts for one checkpoint. Safe to use from several threads."""

    def __init__(self, folder: Path, max_image_pixels: int, chat_template: Path | None = None) -> None:
        """Reads a checkpoint folder's tokenizer and templates; `chat_template` replaces its own.

        Raises:
            ValueError, OSError: a file is missing or wrong; the text is for the operator.
        """
        files = read_prompt_files(folder)
        self.tokenizer = TextTokenizer(files.tokenizer_path)
        self.stop_token_ids = files.stop_token_ids
        self.vocab_size = files.vocab_size
        self.tool_tag_id = self.tokenizer.special_tokens.get("<|python_tag|>")
        """The control token after which the model calls tools, if it has one."""
        self._image_token_id = files.image_token_id
        self._image_spec = files.image_spec
        self._max_image_pixels = max_image_pixels
        source = chat_template.read_text("utf-8") if chat_template else files.chat_template or LLAMA3_TEMPLATE
        special = self.tokenizer.special_tokens
        image_token = next((token for token, token_id in special.items() if token_id == files.image_token_id), None)
        self._template = ChatTemplate(source, files.special_tokens, special, image_token)

    @property
    def largest_token_id(self) -> int:
        """The largest token id that a prompt may contain."""
        return max(self.vocab_size - 1, self._image_token_id)

    def prepare(self, given: Input, images: Sequence[bytes] = (), max_tokens: int = 1 << 30) -> Prompt:
        """Makes the prompt of a request. `images` are encoded pictures, in reading order.

        Raises:
            InvalidImage: an image cannot be used.
            InvalidRequest, ContextTooLong: as in `write`.
        """
        slots = given.images if isinstance(given, ChatInput) else ()
        tiles = [self._tile(data, slot) for data, slot in zip(images, slots, strict=True)]
        return replace(self.write(given, max_tokens), images=tuple(tiles))

    def write(self, given: Input, max_tokens: int = 1 << 30) -> Prompt:
        """Makes the prompt of a request, without its images' tiles.

        Raises:
            InvalidRequest: the input cannot be a prompt of this model.
            ContextTooLong: the prompt is far longer than `max_tokens`; a slightly longer one is returned.
        """
        num_images = 0
        match given:
            case ChatInput(messages, slots, tools):
                tokens, num_images = self._render(messages, tools, max_tokens), len(slots)
            case TextInput(text):
                self._check_length(text, max_tokens, given.field)
                tokens = self.tokenizer.encode_prompt(text)
            case TokensInput(ids):
                tokens = list(ids)
        positions = tuple(i for i, token in enumerate(tokens) if token == self._image_token_id)
        self._check(given, tokens, positions, num_images)
        return Prompt(tokens=tuple(tokens), image_positions=positions)

    def expect(self, prediction: str) -> tuple[int, ...]:
        """Returns the tokens of an expected answer, at most as many as any answer may have."""
        part = prediction[: MAX_TOKENS * _CHARACTERS_A_TOKEN]
        return tuple(self.tokenizer.encode_text(part)[:MAX_TOKENS]) if part else ()

    def image_spec(self, slot: ImageSlot) -> ImageSpec:
        """Returns the model's requirements for an image."""
        return replace(self._image_spec, max_tiles=1) if slot.is_low else self._image_spec

    def check_size(self, width: int, height: int, slot: ImageSlot) -> None:
        """Raises InvalidImage if an image of this size has too many pixels."""
        try:
            check_size(width, height, self._max_image_pixels)
        except ImageError as error:
            raise InvalidImage(str(error), field=slot.field) from error

    def _tile(self, data: bytes, slot: ImageSlot) -> ImageTiles:
        try:
            return decode_tiles(data, self._max_image_pixels, self.image_spec(slot))
        except ImageError as error:
            raise InvalidImage(str(error), field=slot.field) from error

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], max_tokens: int) -> list[int]:
        text, restore = self._template.render(messages, tools)
        self._check_length(text, max_tokens, ChatInput.field)
        tokens: list[int] = []
        for piece, control in self.tokenizer.split_control(text):
            tokens += self.tokenizer.encode_text(restore(piece)) if control is None else [control]
        return tokens

    def _check_length(self, text: str, max_tokens: int, field: str) -> None:
        """Refuses a text if a part of it is already too long, at a fraction of the cost of tokenizing it all."""
        part = text[: max_tokens * _CHARACTERS_A_TOKEN]
        if len(part) < len(text) and len(self.tokenizer.encode_text(part)) > max_tokens + 1:
            raise ContextTooLong(max_tokens, "many more", field)

    def _check(self, given: Input, tokens: list[int], positions: tuple[int, ...], num_images: int) -> None:
        field = given.field
        if not tokens:
            raise InvalidRequest("the prompt is empty", field=field)
        if isinstance(given, ChatInput):
            if len(positions) != num_images:
                raise InvalidRequest(
                    f"the model's chat template shows {len(positions)} of the conversation's {num_images} images; "
                    "the operator can choose another with --chat-template",
                    field=field,
                )
        elif positions:
            raise InvalidRequest("the image token can stand only in chat messages, with an image", field=field)
        if max(tokens) >= self.vocab_size and any(t >= self.vocab_size and t != self._image_token_id for t in tokens):
            raise InvalidRequest(f"the model has no token {max(tokens)}", field=field)
