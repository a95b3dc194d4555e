"""Which pages of a prompt another prompt has too.

A tree of pages: a path from the root is the beginning of a prompt, an edge the tokens of one full
page (the radix tree of Zheng et al. 2024, "SGLang", arXiv:2312.07104, at the grain of a page). A
node is there while some request wants it, so that a page leaves the cache with the last request
that can use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .paged_cache import PagedCache


class Node:
    """One full page of tokens after those of its parents.

    Attributes:
        page: where its keys and values are, or None.
        pending: a sequence is about to compute them.
        wanted: number of requests whose prompt begins so.
    """

    __slots__ = ("children", "key", "page", "parent", "pending", "wanted")

    def __init__(self, parent: Node | None, key: bytes) -> None:
        self.parent, self.key = parent, key
        self.children: dict[bytes, Node] = {}
        self.page: int | None = None
        self.pending = False
        self.wanted = 0


class PrefixTree:
    """Pages of prompts that are waiting or under way. It is one user of each page it knows."""

    def __init__(self, cache: PagedCache) -> None:
        self.cache = cache
        self._root = Node(None, b"")

    def want(self, tokens: Sequence[int]) -> list[Node]:
        """The path of a prompt's full pages, wanted once more."""
        size = self.cache.page
        ids = np.asarray(tokens, dtype=np.int64)
        node, path = self._root, []
        for start in range(0, len(ids) - size + 1, size):
            key = ids[start : start + size].tobytes()
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key)
            child.wanted += 1
            path.append(child)
            node = child
        return path

    def unwant(self, path: Sequence[Node]) -> None:
        """Take back one :meth:`want`."""
        for node in reversed(path):
            node.wanted -= 1
            if node.wanted == 0:
                self._forget(node)
                assert node.parent is not None
                del node.parent.children[node.key]

    def keep(self, node: Node, page: int) -> None:
        """The node's keys and values are complete in `page`."""
        node.pending = False
        if node.page is None:
            node.page = page
            self.cache.share([page])

    def make_room(self, count: int) -> None:
        """Forget pages that no sequence reads now, until `count` can be had or none is left.

        Those that the fewest requests want go first; the deeper of two goes before the other.
        """
        if self.cache.free >= count:
            return
        idle = [n for n in self._nodes() if n.page is not None and self.cache.uses(n.page) == 1]
        idle.reverse()  # children before their parents
        for node in sorted(idle, key=lambda n: n.wanted):  # stable, and no child is wanted more
            if self.cache.free >= count:
                return
            self._forget(node)

    def _nodes(self) -> Iterator[Node]:
        """All, parents before their children."""
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def _forget(self, node: Node) -> None:
        if node.page is not None:
            self.cache.release([node.page])
            node.page = None
