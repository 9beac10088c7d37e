"""Float graph to a float graph that computes the same and costs less, in the form ``compile`` can turn into integers.

1. A batch-norm whose input is a convolution with no other user is folded into it.
2. ``maxpool(relu(x)) = relu(maxpool(x))`` and ``avgpool(conv1x1(x)) = conv1x1(avgpool(x))``: pool first.
3. Where a value is needed in a form it does not have (an add of differently scaled values, a maximum of a
   batch-norm, a final average), a convolution by 1 per channel gives it a scale of its own.

A value is *pure* when its integers are its real numbers times a positive scale; a batch-norm that is not folded
makes it impure (the compiler keeps slope and shift aside). It is *wide* when it exists only in the wide ring.
All decisions depend on structure only, never on weights: the integer network's structure is public.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mpcd.daemon.model.nodes import Graph, Node


def rewrite(graph: Graph) -> Graph:
    for step in (_fold_norms, _pool_before_relu, _pool_before_conv, _rescale_where_needed):
        graph = step(graph)
    return graph


def purity(graph: Graph) -> list[tuple[bool, bool]]:
    """(pure, wide) of every node."""
    result: list[tuple[bool, bool]] = []
    for node in graph.nodes:
        result.append(_purity(node, result))
    return result


def _purity(node: Node, known: list[tuple[bool, bool]]) -> tuple[bool, bool]:
    if node.kind == "input" or node.kind == "avg_pool":
        return False, True
    if node.kind in ("conv", "add"):
        return True, False
    if node.kind == "norm":
        return False, known[node.inputs[0]][1]
    return all(known[i][0] for i in node.inputs), any(known[i][1] for i in node.inputs)


def _fold_norms(graph: Graph) -> Graph:
    users = graph.users()
    nodes = list(graph.nodes)
    same: dict[int, int] = {}
    for index, node in enumerate(nodes):
        source = same.get(node.inputs[0], node.inputs[0]) if node.inputs else -1
        if node.kind != "norm" or nodes[source].kind != "conv" or len(users[node.inputs[0]]) != 1:
            continue
        (weight, bias), (scale, shift) = nodes[source].numbers, node.numbers
        nodes[source] = dataclasses.replace(
            nodes[source], weight=weight * scale[:, None, None, None], bias=bias * scale + shift
        )
        same[index] = source
    return _without(nodes, same)


def _pool_before_relu(graph: Graph) -> Graph:
    users = graph.users()
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if node.kind != "max_pool" or nodes[node.inputs[0]].kind != "relu":
            continue
        at = node.inputs[0]
        relu = nodes[at]
        if len(users[at]) == 1 and nodes[relu.inputs[0]].kind in ("conv", "add"):
            nodes[at] = dataclasses.replace(node, inputs=relu.inputs)
            nodes[index] = dataclasses.replace(relu, inputs=(at,), shape=node.shape)
    return Graph(tuple(nodes))


def _pool_before_conv(graph: Graph) -> Graph:
    users = graph.users()
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if node.kind != "avg_pool":
            continue
        at = node.inputs[0]
        conv = nodes[at]
        if conv.kind != "conv" or len(users[at]) != 1 or conv.groups != 1:
            continue
        if (conv.kernel, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0)):
            channels = nodes[conv.inputs[0]].shape[0]
            nodes[at] = dataclasses.replace(node, inputs=conv.inputs, shape=(channels, *node.shape[1:]))
            nodes[index] = dataclasses.replace(conv, inputs=(at,), shape=node.shape)
    return Graph(tuple(nodes))


def _rescale_where_needed(graph: Graph) -> Graph:
    users = graph.users()
    known: list[tuple[bool, bool]] = []
    nodes: list[Node] = []
    renamed: list[int] = []  # old index -> new
    rescaled: dict[int, int] = {}

    def append(node: Node) -> int:
        nodes.append(node)
        known.append(_purity(node, known))
        return len(nodes) - 1

    def rescale(i: int) -> int:
        if i not in rescaled:
            channels = nodes[i].shape[0]
            rescaled[i] = append(
                Node(
                    "conv", (i,), nodes[i].shape, f"{nodes[i].place}, rescaled", groups=channels,
                    weight=np.ones((channels, 1, 1, 1)), bias=np.zeros(channels),
                )
            )  # fmt: skip
        return rescaled[i]

    for node in graph.nodes:
        inputs = [renamed[i] for i in node.inputs]
        for position, i in enumerate(inputs):
            pure, wide = known[i]
            if (node.kind in ("add", "max_pool") and not pure) or (node.kind in ("relu", "concat") and wide):
                inputs[position] = rescale(i)
        renamed.append(append(dataclasses.replace(node, inputs=tuple(inputs))))
    last = graph.nodes[-1]
    # Revealed logits share one scale: a convolution that nothing else uses can have it.
    if last.kind != "conv" or users[-1]:
        rescale(renamed[-1])
    return Graph(tuple(nodes))


def _without(nodes: list[Node], same: dict[int, int]) -> Graph:
    """The graph less the nodes in ``same``, each replaced by the node it maps to."""
    kept = [i for i in range(len(nodes)) if i not in same]
    renamed = {old: new for new, old in enumerate(kept)}
    renamed.update({old: renamed[to] for old, to in same.items()})
    return Graph(tuple(dataclasses.replace(nodes[i], inputs=tuple(renamed[j] for j in nodes[i].inputs)) for i in kept))
