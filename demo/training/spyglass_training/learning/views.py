"""How the tokens of a batch look at pictures while the model learns.

Owns attention to pictures, and how far it is from where it should be. Knows nothing of texts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spyglass_training.learning.labels import WHOLE

NO_IMAGE = -1
_WATCHED_GROUPS = 2
"""Of three groups of heads: the first should look at things, the second rather at the picture as a whole where that
tells what is asked. The last may look anywhere."""


class PictureViews:
    """Which flat tokens see which picture, and attention to it."""

    def __init__(self, images: Tensor, states: Tensor) -> None:
        self._states = states
        self.index = (images != NO_IMAGE).nonzero()[:, 0]
        of = images[self.index]
        order = of.argsort(stable=True)
        rank = torch.empty_like(order)
        counts = torch.bincount(of, minlength=states.shape[3])
        starts = counts.cumsum(0) - counts
        rank[order] = torch.arange(len(order)) - starts[of[order]]
        self._longest = int(counts.max())
        self._slots = of * self._longest + rank
        self._of = of
        self._watched: tuple[Tensor, Tensor] | None = None  # which tokens, and where they should look
        self.misses: list[Tensor] = []

    def watch(self, looks: Tensor, owners: Tensor) -> None:
        """Watches the tokens that should look at certain things."""
        bits = torch.where(owners >= 0, 1 << owners.clamp(min=0), 0)
        whole = 1 << WHOLE
        wanted = looks[self.index]
        who = wanted.nonzero()[:, 0]
        wanted = wanted[who, None]
        things = torch.where(wanted == whole, whole, wanted & ~whole)
        second = torch.where(wanted & whole > 0, whole, things)
        there = (bits[self._of[who], None] & torch.stack((things, second), dim=1)) > 0
        shown = there.any(-1).all(-1)  # very small things cover no patch
        if shown.any():
            self._watched = who[shown], there[shown]

    def _miss(self, who: Tensor, there: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """How far watched heads are from looking `there` [watched, groups, keys], in nats."""
        near = q.index_select(0, who).view(len(who), k.shape[1], -1, q.shape[2])[:, :_WATCHED_GROUPS]
        keys = k[:, :_WATCHED_GROUPS].index_select(0, self._of[who])
        scores = torch.einsum("rghd,rgtd->rght", near, keys).float() * k.shape[-1] ** -0.5
        logs = scores.log_softmax(-1).masked_fill(~there[:, :, None], -torch.inf)
        return torch.logsumexp(logs, -1).mean().neg()

    def select(self, x: Tensor) -> Tensor:
        """Of the states of all tokens, those of the seeing ones."""
        return x.index_select(0, self.index)

    def merge(self, x: Tensor, seeing: Tensor) -> Tensor:
        """The states of all tokens, with those of the seeing ones in their places."""
        return x.index_copy(0, self.index, seeing)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of q [seeing tokens, heads, head_dim] to the states of each one's picture."""
        k, v = self._states[layer].transpose(1, 2)  # each [images, kv_heads, tokens, head_dim]
        if self._watched is not None:
            self.misses.append(self._miss(*self._watched, q, k))
        images = k.shape[0]
        padded = q.new_zeros(images * self._longest, *q.shape[1:]).index_copy(0, self._slots, q)
        return attention(padded.view(images, self._longest, *q.shape[1:]), k, v).index_select(0, self._slots)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Grouped-query attention, flat: [rows * tokens, heads * size].

    q is [rows, tokens, heads, size]; k and v are [rows, kv_heads, keys, size]. The mask is added to the scores
    [rows, 1, heads a group * tokens, keys].
    """
    rows, tokens, heads, size = q.shape
    groups = q.view(rows, tokens, k.shape[1], -1, size).permute(0, 2, 3, 1, 4)
    out = F.scaled_dot_product_attention(groups.reshape(rows, k.shape[1], -1, size), k, v, mask)
    return out.view(rows, k.shape[1], -1, tokens, size).permute(0, 3, 1, 2, 4).reshape(-1, heads * size)
