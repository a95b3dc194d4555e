"""Token sequences as a radix tree, in which shared prefixes are stored once.

All questions of a task share the few-shot examples, and all options of a question share the
question. Each node holds the tokens between two branches; it is computed once, after its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Tokens = Sequence[int]


@dataclass(eq=False)
class Node:
    """Consecutive tokens that follow those of the node's ancestors.

    Attributes:
        start: number of tokens on the path from the root to this node.
        tokens: tokens of this node.
        parent: parent node; None for the root, which has no tokens.
        children: child nodes in the order of their tokens.
        rows: requested predictions, each (offset of a token in the node, the token that follows it
            in the request, index of the request).
    """

    start: int
    tokens: Tokens
    parent: Node | None
    children: list[Node] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of tokens from the root to the end of this node."""
        return self.start + len(self.tokens)


def build(requests: Sequence[tuple[Tokens, Tokens]]) -> Node:
    """Build the tree of all requests, with their rows; return its root.

    Args:
        requests: (context, continuation) pairs of at least one token each. Every token of the
            continuation is predicted from the tokens before it; its last token predicts nothing
            and is in no node.
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
    """Length of the common prefix."""
    count = min(len(a), len(b))
    if a[:count] == b[:count]:
        return count
    return next(i for i in range(count) if a[i] != b[i])


def _split(node: Node, offset: int) -> Node:
    """Split a node without rows; return the new node, which takes its first `offset` tokens."""
    assert node.parent is not None
    upper = Node(node.start, node.tokens[:offset], node.parent, [node])
    node.parent.children[-1] = upper
    node.start, node.tokens, node.parent = node.start + offset, node.tokens[offset:], upper
    return upper
