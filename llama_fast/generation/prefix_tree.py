"""Pages that several prompts share.

In the tree, a path from the root is a prefix of a prompt, and each edge holds the tokens of one
full page (the radix tree of Zheng et al. 2024, "SGLang", arXiv:2312.07104, with whole pages as
units). A node exists as long as a request has its prefix, so a page is released with the last
request that can use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .paged_cache import PagedCache


class PrefixNode:
    """One full page of tokens, after those of its parents.

    Attributes:
        page: number of the page that holds its keys and values, or None.
        pending: whether a sequence is computing these keys and values.
        num_requests: number of requests whose prompt has this prefix.
    """

    __slots__ = ("children", "key", "num_requests", "page", "parent", "pending")

    def __init__(self, parent: PrefixNode | None, key: bytes) -> None:
        self.parent, self.key = parent, key
        self.children: dict[bytes, PrefixNode] = {}
        self.page: int | None = None
        self.pending = False
        self.num_requests = 0


class PrefixTree:
    """The pages of waiting and live prompts. The tree has a reference to each page it knows."""

    def __init__(self, cache: PagedCache) -> None:
        self.cache = cache
        self._root = PrefixNode(None, b"")

    def acquire(self, tokens: Sequence[int]) -> list[PrefixNode]:
        """Return the nodes of a prompt's full pages, and count one more request for each."""
        size = self.cache.page_size
        ids = np.asarray(tokens, dtype=np.int64)
        node, path = self._root, []
        for start in range(0, len(ids) - size + 1, size):
            key = ids[start : start + size].tobytes()
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = PrefixNode(node, key)
            child.num_requests += 1
            path.append(child)
            node = child
        return path

    def release(self, path: Sequence[PrefixNode]) -> None:
        """Undo one :meth:`acquire`."""
        for node in reversed(path):
            node.num_requests -= 1
            if node.num_requests == 0:
                self._evict(node)
                assert node.parent is not None
                del node.parent.children[node.key]

    def keep(self, node: PrefixNode, page: int) -> None:
        """Record that the node's keys and values are complete in `page`."""
        node.pending = False
        if node.page is None:
            node.page = page
            self.cache.share([page])

    def make_room(self, count: int) -> None:
        """Evict pages that no live sequence reads until `count` are free or none is left.

        Pages of the fewest requests go first, and children before their parents.
        """
        if self.cache.free >= count:
            return
        idle = [
            n for n in self._nodes() if n.page is not None and self.cache.references(n.page) == 1
        ]
        idle.reverse()  # children before their parents
        for node in sorted(
            idle, key=lambda n: n.num_requests
        ):  # stable, and no child has more requests
            if self.cache.free >= count:
                return
            self._evict(node)

    def _nodes(self) -> Iterator[PrefixNode]:
        """All nodes, parents before their children."""
        stack = list(self._root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def _evict(self, node: PrefixNode) -> None:
        if node.page is not None:
            self.cache.release([node.page])
            node.page = None
