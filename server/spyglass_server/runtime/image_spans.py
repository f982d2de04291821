"""Which position of a prompt sees which images.

    tokens     a  I0  b  c  I1 I2  d  e …      I = image token
    sees       -  0   0  0  1  12  12 12 …

An image is seen from its token until the next image's token. Adjacent image tokens form a group that is seen together;
the last group is seen to the end, by generated tokens too.

Source: create_vision_mask in Meta's llama3/chat_format.py.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """Positions start … end - 1 see the images first … last - 1."""

    start: int
    end: int
    first: int
    last: int


def image_spans(image_positions: Sequence[int], start: int, end: int) -> list[ImageSpan]:
    """Splits the positions start … end - 1 by the images that they see.

    `image_positions` are those of the image tokens in the whole sequence, ascending. Positions before the first image
    see nothing and are in no span.
    """
    spans = []
    position = start
    while position < end:
        last = bisect_right(image_positions, position)  # images whose token is at or before here
        until = min(image_positions[last], end) if last < len(image_positions) else end
        if last:
            spans.append(ImageSpan(start=position, end=until, first=_group_start(image_positions, last - 1), last=last))
        position = until
    return spans


def _group_start(image_positions: Sequence[int], image: int) -> int:
    """Returns the first image of the group that contains `image`."""
    while image and image_positions[image - 1] == image_positions[image] - 1:
        image -= 1
    return image
