"""Computes how deep definitions that refer to each other can nest.

The grammar library follows references recursively, and a stack overflow ends the process, so schemas that nest too deep
must not reach it.
"""

from collections.abc import Mapping, Set

MAX_NESTING = 500
"""Maximum depth; a thread's stack of 8 MiB allows at least twice as much."""


def nesting(references: Mapping[str, Set[str]], depths: Mapping[str, int]) -> int:
    """Returns the maximum depth that following references can reach.

    `depths` are those of the definitions alone. Definitions in a cycle can all be open at once, so a cycle is as deep
    as all of them together.
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
