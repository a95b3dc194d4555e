from hypothesis import given
from hypothesis import strategies as st

from llama_fast.eval.trie import Node, build

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def nodes(root: Node) -> list[Node]:
    return [root, *(node for child in root.children for node in nodes(child))]


def path(node: Node) -> list[int]:
    return [*(path(node.parent) if node.parent else []), *node.tokens]


@given(st.lists(st.tuples(tokens, tokens), max_size=12))
def test_every_token_asked_for_is_after_what_stands_before_it(requests):
    asked: list[tuple[int, tuple[int, ...], int]] = []
    for node in nodes(build(requests)):
        for offset, target, number in node.rows:
            seen = path(node)[: node.start + offset + 1]
            asked.append((number, tuple(seen), target))
    expected = []
    for number, (context, continuation) in enumerate(requests):
        for i, target in enumerate(continuation):
            expected.append((number, (*context, *continuation[:i]), target))
    assert sorted(asked) == sorted(expected)


@given(st.lists(st.tuples(tokens, tokens), max_size=12))
def test_no_beginning_stands_twice(requests):
    root = build(requests)
    found = nodes(root)
    stretches = [
        tuple(path(node)[: node.start + i + 1]) for node in found for i in range(len(node.tokens))
    ]
    assert len(set(stretches)) == len(stretches)
    inputs = [[*context, *continuation[:-1]] for context, continuation in requests]
    expected = {tuple(one[: i + 1]) for one in inputs for i in range(len(one))}
    assert set(stretches) == expected
    for node in found[1:]:
        assert node.tokens and node.parent is not None and node in node.parent.children
        assert len(node.children) != 1 or ends_here(node, inputs)


def ends_here(node: Node, inputs: list[list[int]]) -> bool:
    """A stretch is parted without a branch only where a request ends."""
    return path(node) in inputs
