"""Block hashes: what a full page of the KV cache contains.

A page depends on its own tokens and images and on all that come before it, so two pages with the same hash hold the
same keys and values.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from spyglass_server.engine.messages import EngineRequest

_DIGEST_SIZE = 16


def block_hashes(request: EngineRequest, tokens: Sequence[int], page_size: int, known: Sequence[bytes]) -> list[bytes]:
    """Keys of the full pages of `tokens`, which begin as the request does, from those of the first ones on.

    Each is a digest of the one before it, the page's tokens and the images whose tokens stand in it; what a
    position sees is settled by the image tokens up to it. The first is that of the tenant: nobody finds
    out by a quick answer what others have asked.
    """
    keys = list(known)
    key = keys[-1] if keys else blake2b(request.tenant.encode(), digest_size=_DIGEST_SIZE).digest()
    for start in range(len(keys) * page_size, len(tokens) - page_size + 1, page_size):
        content = blake2b(key, digest_size=_DIGEST_SIZE)
        content.update(array("I", tokens[start : start + page_size]).tobytes())
        for position, image in zip(request.image_positions, request.images, strict=True):
            if start <= position < start + page_size:
                content.update(position.to_bytes(4) + image.key.digest)
        key = content.digest()
        keys.append(key)
    return keys
