"""How deep definitions that refer to each other can be nested.

The grammar's library follows references by recursion, and a stack that overflows ends the process: what is nested too
deep must not reach it. Knows nothing of schemas or grammars.
"""

from collections.abc import Iterator, Mapping, Set

MAX_NESTING = 500
"""At least twice as much fits into a thread's stack of 8 MiB."""


def nesting(references: Mapping[str, Set[str]], depths: Mapping[str, int]) -> int:
    """The depth that following references can reach, at most.

    `depths` are those of the definitions themselves. Definitions that lead back to each other can all be open at once,
    so such a circle is as deep as all of them together.
    """
    callers: dict[str, set[str]] = {name: set() for name in references}
    for name, called in references.items():
        for one in called:
            callers[one].add(name)
    reached: dict[str, int] = {}
    for name in reversed(list(_callees_first(references))):
        if name not in reached:  # Kosaraju's algorithm: what leads here and was not reached before leads back, too
            circle = _closure(name, callers, reached.keys())
            before = max((reached[caller] for one in circle for caller in callers[one] - circle), default=0)
            reached.update(dict.fromkeys(circle, before + sum(depths[one] for one in circle)))
    return max(reached.values(), default=0)


def _callees_first(references: Mapping[str, Set[str]]) -> Iterator[str]:
    seen: set[str] = set()
    for start in references:
        waiting = [(start, iter(references[start]))] if start not in seen else []
        seen.add(start)
        while waiting:
            name, called = waiting[-1]
            following = next((one for one in called if one not in seen), None)
            if following is None:
                waiting.pop()
                yield name
            else:
                seen.add(following)
                waiting.append((following, iter(references[following])))


def _closure(start: str, leads_to: Mapping[str, Set[str]], without: Set[str]) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        new = {name for name in leads_to[waiting.pop()] if name not in found and name not in without}
        found |= new
        waiting += new
    return found
