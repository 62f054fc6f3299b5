"""The minimum spanning arborescence: the cheapest way to give every model one parent or none.

Source: Chu and Liu 1965; Edmonds 1967. Costs are non-negative; what may not be is left out.
"""

from collections.abc import Mapping

Edge = tuple[int, int]


def arborescence(roots: Mapping[int, float], costs: Mapping[Edge, float]) -> dict[int, int | None]:
    """The parent of every node, None of a root.

    Args:
        roots: what it costs that a node has no parent, of all nodes.
        costs: of (parent, child).

    >>> arborescence({0: 10, 1: 10, 2: 10}, {(0, 1): 1, (1, 0): 1, (1, 2): 2, (0, 2): 3})
    {0: None, 1: 0, 2: 1}
    """
    top = -1
    edges = {(top, node): cost for node, cost in roots.items()}
    edges |= {edge: cost for edge, cost in costs.items() if edge[0] != edge[1]}
    found = _cheapest(sorted(roots), edges, top)
    return {node: None if found[node] == top else found[node] for node in sorted(roots)}


def _cheapest(nodes: list[int], edges: Mapping[Edge, float], top: int) -> dict[int, int]:
    """The parents of all nodes but the top."""
    best: dict[int, int] = {}
    for node in nodes:
        into = [(cost, parent) for (parent, child), cost in edges.items() if child == node]
        best[node] = min(into)[1]
    loop = _loop(best, top)
    if not loop:
        return best
    # The loop becomes one node; to enter it at a node costs what that changes.
    knot = max(nodes) + 1
    smaller: dict[Edge, float] = {}
    stands_for: dict[Edge, Edge] = {}
    for (parent, child), cost in edges.items():
        if parent in loop and child in loop:
            continue
        edge = knot if parent in loop else parent, knot if child in loop else child
        changed = cost - edges[best[child], child] if child in loop else cost
        if changed < smaller.get(edge, float("inf")):
            smaller[edge], stands_for[edge] = changed, (parent, child)
    outside = [node for node in nodes if node not in loop] + [knot]
    found = {node: best[node] for node in loop}
    for child, parent in _cheapest(outside, smaller, top).items():
        own_parent, own_child = stands_for[parent, child]
        found[own_child] = own_parent
    return found


def _loop(best: Mapping[int, int], top: int) -> set[int]:
    """The nodes of a loop of parents; none where all lead to the top."""
    for start in best:
        path = []
        node = start
        while node != top and node not in path:
            path.append(node)
            node = best[node]
        if node != top:
            return set(path[path.index(node) :])
    return set()
