"""The settings of `spyglass serve`: the server's and the bridge's in one table."""

from collections.abc import Sequence

from spyglass_bridge import settings as bridge
from spyglass_common.settings import Setting
from spyglass_server import settings as server


def merge(first: Sequence[Setting], second: Sequence[Setting]) -> tuple[Setting, ...]:
    """Joins two tables; a setting that only `second` has is placed before the next one that both have."""
    merged = list(first)
    place = len(merged)
    for setting in reversed(second):
        if setting in merged:
            place = merged.index(setting)
        else:
            merged.insert(place, setting)
    return tuple(merged)


SETTINGS = merge(server.SETTINGS, bridge.SETTINGS)
