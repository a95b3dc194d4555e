"""Token sequences as a radix tree: what they begin with in common stands in it once.

A few-shot header is the beginning of every question of a task, and a question that of each of its
options. The tree has a node for each stretch of tokens that goes on without a branch; a model has
to compute each node once, after its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Tokens = Sequence[int]


@dataclass(eq=False)
class Node:
    """A stretch of tokens after those of its ancestors.

    Attributes:
        start: how many tokens stand before it on the way from the root.
        tokens: its own.
        parent: None for the root, which has no tokens.
        children: in the order of their tokens.
        rows: what is asked of it: (offset of a token in it, the token asked for after that one,
            number of the request).
    """

    start: int
    tokens: Tokens
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of tokens from the root to its last one."""
        return self.start + len(self.tokens)


def build(requests: Sequence[tuple[Tokens, Tokens]]) -> Node:
    """The root of the tree of all requests, their rows in its nodes.

    Args:
        requests: (context, continuation) each, both of at least one token: how likely is each token
            of the continuation, given what stands before it? The last token of the continuation
            predicts nothing and is in no node.
    """
    inputs = [[*context, *continuation[:-1]] for context, continuation in requests]
    root = Node(0, (), None)
    path, last = [root], [root] * len(inputs)
    previous: Tokens = []
    for number in sorted(range(len(inputs)), key=inputs.__getitem__):
        tokens = inputs[number]
        common = _common(previous, tokens)
        while path[-1].end > common:
            node = path.pop()
            if node.start < common:
                path.append(_split(node, common - node.start))
        if len(tokens) > common:
            path.append(Node(common, tokens[common:], path[-1]))
            path[-2].children.append(path[-1])
        last[number] = path[-1]
        previous = tokens
    for number, (context, continuation) in enumerate(requests):
        node = last[number]
        for position in range(len(inputs[number]) - 1, len(context) - 2, -1):
            while position < node.start:
                assert node.parent is not None
                node = node.parent
            target = continuation[position + 1 - len(context)]
            node.rows.append((position - node.start, target, number))
    return root


def _common(a: Tokens, b: Tokens) -> int:
    """How many tokens both begin with."""
    count = min(len(a), len(b))
    if a[:count] == b[:count]:
        return count
    return next(i for i in range(count) if a[i] != b[i])


def _split(node: Node, offset: int) -> Node:
    """Part a node that has no rows yet; returns the new one, with its first tokens."""
    assert node.parent is not None
    upper = Node(node.start, node.tokens[:offset], node.parent, [node])
    node.parent.children[-1] = upper
    node.start, node.tokens, node.parent = node.start + offset, node.tokens[offset:], upper
    return upper
