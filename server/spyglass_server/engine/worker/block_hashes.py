"""Block hashes, which identify the content of full KV cache pages.

A page depends on its own tokens and images and on all before it, so two pages with the same hash hold the same keys and
values.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from spyglass_server.engine.messages import EngineRequest

_DIGEST_SIZE = 16


def block_hashes(request: EngineRequest, tokens: Sequence[int], page_size: int, known: Sequence[bytes]) -> list[bytes]:
    """Returns the keys of all full pages of `tokens`, which begin with the request's; extends the `known` first keys.

    Each key is a digest of the previous key, the page's tokens and the images whose tokens it contains; the image
    tokens up to a position determine what it sees. The chain starts with the tenant's digest, so that fast answers
    never reveal to one tenant what others have asked.
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
