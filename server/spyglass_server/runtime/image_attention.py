"""What tokens attend to in images: the cross-attention of chosen tokens, returned with their outputs.

A token's attention is that of its query to the keys of all images that it sees, as the layer itself computes it,
averaged over all heads and some layers. Tokens whose attention is not requested cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spyglass_server.engine.messages import ImageMap
from spyglass_server.engine.worker.batch import Row
from spyglass_server.runtime.image_spans import ImageSpan, image_spans
from spyglass_server.runtime.model.text import CrossCache, TextModel
from spyglass_server.runtime.slot_cache import SlotCache


def watched_span(row: Row) -> ImageSpan | None:
    """The images that the row's last token sees; None if its attention is not requested."""
    if not row.tells_attention:
        return None
    spans = image_spans(row.request.image_positions, row.end - 1, row.end)
    return spans[0] if spans else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A token whose attention is returned: its place among the tokens that cross-attention layers compute, the slots of
    the images that it sees, int64 [context], and the layers, empty for all."""

    place: int
    slots: Tensor
    layers: tuple[int, ...]


class AttentionSums:
    """Adds up the attention of watched tokens, layer by layer."""

    def __init__(self, watched: Sequence[Watched], model: TextModel) -> None:
        self._watched, self._mesh = watched, model.mesh
        self._own_heads, self._heads = model.own_heads, model.all_heads
        self._num_layers = len(model.cross_layers)
        self._sums: list[Tensor | None] = [None] * len(watched)

    @property
    def is_wanted(self) -> bool:
        """Whether any token is watched."""
        return bool(self._watched)

    def add(self, layer: int, q: Tensor, keys: Tensor) -> None:
        """Adds a layer's attention, from q [tokens, heads, head_dim] and all its keys [slots, kv_heads * head_dim]."""
        for i, one in enumerate(self._watched):
            if one.layers and layer not in one.layers:
                continue
            heads, head_dim = q.shape[1:]
            k = keys.index_select(0, one.slots).view(len(one.slots), -1, head_dim).float()
            own = q[one.place].float().view(k.shape[1], heads // k.shape[1], head_dim) / head_dim**0.5
            weights = torch.einsum("gsd,cgd->gsc", own, k).softmax(dim=-1).flatten(0, 1)
            summed = weights[: self._own_heads].sum(dim=0)  # the others are padding
            before = self._sums[i]
            self._sums[i] = summed if before is None else before + summed

    def averages(self) -> list[Tensor]:
        """Returns the average of each watched token, float32 [context]; all ranks must call this."""
        if not self._watched:
            return []
        sums = [one for one in self._sums if one is not None]
        whole = torch.split(self._mesh.sum(torch.cat(sums)), [len(one) for one in sums])
        return [
            part / (self._heads * (len(set(one.layers)) or self._num_layers))
            for one, part in zip(self._watched, whole, strict=True)
        ]


class WatchedCrossCache:
    """A cross-attention cache that also adds up watched tokens' attention. Implements `CrossCache`."""

    def __init__(self, cache: CrossCache, stored: SlotCache, sums: AttentionSums) -> None:
        self._cache, self._stored, self._sums = cache, stored, sums

    def select(self, x: Tensor) -> Tensor:
        return self._cache.select(x)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        return self._cache.merge(x, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        self._sums.add(layer, q, self._stored.layer(layer)[0])
        return self._cache.attend(layer, q)


def image_maps(row: Row, span: ImageSpan, weights: NDArray[np.float32]) -> tuple[ImageMap | None, ...]:
    """Returns the maps of a row's images, from the attention to all slots of the images that its last token sees.

    The first slot of a tile is its class token, the others are its patches in reading order.
    """
    maps: list[ImageMap | None] = []
    num_tiles = sum(image.num_tiles for image in row.request.images[span.first : span.last])
    tiles = weights.reshape(num_tiles, -1)[:, 1:]
    side = round(tiles.shape[1] ** 0.5)
    for number, image in enumerate(row.request.images):
        if not span.first <= number < span.last:
            maps.append(None)
            continue
        own, tiles = tiles[: image.num_tiles], tiles[image.num_tiles :]
        canvas = own.reshape(image.rows, image.columns, side, side).transpose(0, 2, 1, 3)
        scale = float(canvas.max())
        levels = np.rint(canvas * (255 / scale if scale > 0 else 0.0)).astype(np.uint8)
        maps.append(ImageMap(scale, levels.tobytes()))
    return tuple(maps)
