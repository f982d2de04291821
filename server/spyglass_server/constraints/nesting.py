"""How deep definitions that refer to each other can be nested.

The grammar's library follows references by recursion, and a stack that overflows ends the process: what is nested too
deep must not reach it.
"""

from collections.abc import Mapping, Set

MAX_NESTING = 500
"""At least twice as much fits into a thread's stack of 8 MiB."""


def nesting(references: Mapping[str, Set[str]], depths: Mapping[str, int]) -> int:
    """The depth that following references can reach, at most.

    `depths` are those of the definitions themselves. Definitions that lead back to each other can all be open at once,
    so such a circle is as deep as all of them together.
    """
    if not any(references.values()):
        return max(depths.values())
    import networkx as nx  # takes half a second, and few schemas have references

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(references)
    graph.add_edges_from((name, one) for name, called in references.items() for one in called)
    circles = nx.condensation(graph)
    reached: dict[int, int] = {}
    for circle in nx.topological_sort(circles):
        before = max((reached[caller] for caller in circles.predecessors(circle)), default=0)
        reached[circle] = before + sum(depths[name] for name in circles.nodes[circle]["members"])
    return max(reached.values())
