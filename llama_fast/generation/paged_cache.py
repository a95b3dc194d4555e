"""A key-value cache in pages, which sequences can share.

Kwon et al. 2023, "PagedAttention" (arXiv:2309.06180). A *slot* is the place of one token: row
``slot % page_size`` of page ``slot // page_size``. A *step* holds the slots and positions that a
forward pass needs: :class:`PackedStep` for any number of new tokens per sequence,
:class:`DecodeStep` for one new token each. Letters: N new tokens of all sequences, M tokens they
attend to, B sequences, L layers, H query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama_fast.ops.attention import attention
from llama_fast.ops.attention_decode import attention_decode


class CacheFull(RuntimeError):
    """No page is free and the cache cannot grow."""


class PagedCache:
    """Pages of keys and values, each with a reference count.

    Args:
        layers, kv_heads, head_dim: L, K, D of the model.
        pages: initial number of pages.
        page_size: tokens per page.
        max_pages: number of pages that the cache may grow to; None: `pages`.
        dtype, device: dtype and device of the model.

    Attributes:
        k, v: (L, pages * page_size, K, D), one row per slot.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        *,
        page_size: int = 16,
        max_pages: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if pages < 1 or page_size < 1:
            raise ValueError(
                f"pages, page_size: expected at least 1 each, got {pages} and {page_size}"
            )
        self.page_size, self.max_pages = page_size, pages if max_pages is None else max_pages
        shape = (layers, pages * page_size, kv_heads, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def pages(self) -> int:
        """Current number of pages."""
        return len(self._references)

    @property
    def free(self) -> int:
        """Number of pages that can be allocated, including those the cache can still grow by."""
        return len(self._free) + self.max_pages - self.pages

    def allocate(self, count: int) -> list[int]:
        """Allocate `count` pages and return their numbers.

        Raises:
            CacheFull: fewer pages are free.
        """
        if count > self.free:
            raise CacheFull(f"pages: expected {count} free ones, there are {self.free}")
        if count > len(self._free):
            self._grow(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Add a reference to each page; a page is free again when all are released."""
        for page in pages:
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop a reference to each page."""
        for page in pages:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def references(self, page: int) -> int:
        """Number of references to a page."""
        return self._references[page]

    def slots(self, pages: Sequence[int], start: int, stop: int) -> np.ndarray:
        """Slots (int64) of the tokens ``start`` to ``stop`` of a sequence in `pages`."""
        tokens = np.arange(start, stop)
        return np.asarray(pages, dtype=np.int64)[tokens // self.page_size] * self.page_size + (
            tokens % self.page_size
        )

    def _grow(self, count: int) -> None:
        """Add `count` pages, or half of the current number if that is more and within the limit."""
        more = min(max(count, self.pages // 2), self.max_pages - self.pages)
        fresh = self.k.new_zeros(len(self.k), more * self.page_size, *self.k.shape[2:])
        self.k, self.v = torch.cat([self.k, fresh], dim=1), torch.cat([self.v, fresh], dim=1)
        self._free += range(self.pages + more - 1, self.pages - 1, -1)
        self._references += [0] * more


@dataclass(frozen=True)
class SequenceSlots:
    """The slots of one sequence in a :class:`PackedStep`.

    Attributes:
        earlier: (T - S,) int64, slots of its cached tokens in order.
        new: (S,) int64, slots for its new tokens.
    """

    earlier: np.ndarray
    new: np.ndarray


class PackedStep:
    """A forward pass over new tokens of several sequences, concatenated without padding.

    Args:
        cache: holds earlier keys and values; the pass adds the new ones.
        rows: slots of each sequence. No two new tokens have the same slot.
        length: see :class:`llama_fast.models.llama.AttentionStep`.
    """

    def __init__(self, cache: PagedCache, rows: Sequence[SequenceSlots], length: int = 0) -> None:
        self.cache, self.length, device = cache, length, cache.k.device
        cached = [len(row.earlier) for row in rows]
        new = [len(row.new) for row in rows]
        self.positions = _tensor(
            np.concatenate([np.arange(c, c + n) for c, n in zip(cached, new, strict=True)]), device
        )
        self._write = _tensor(np.concatenate([row.new for row in rows]), device)
        self._read: Tensor | None = None
        self._offsets_q = self._offsets_k = _offsets(new, device)
        if any(cached):
            both = [part for row in rows for part in (row.earlier, row.new)]
            self._read = _tensor(np.concatenate(both), device)
            self._offsets_k = _offsets([c + n for c, n in zip(cached, new, strict=True)], device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See :class:`llama_fast.models.llama.AttentionStep`."""
        q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (N,H,D), (N,K,D)
        stored_k, stored_v = self.cache.k[layer], self.cache.v[layer]
        stored_k.index_copy_(0, self._write, k)
        stored_v.index_copy_(0, self._write, v)
        if self._read is not None:
            k = stored_k.index_select(0, self._read)  # (M,K,D)
            v = stored_v.index_select(0, self._read)
        offsets = {"cu_seqlens_q": self._offsets_q, "cu_seqlens_k": self._offsets_k}
        out: Tensor = attention(q, k, v, causal=True, **offsets, **options)
        return out.transpose(0, 1).unsqueeze(0)


class DecodeStep:
    """A forward pass over one new token of each of B sequences.

    Args:
        cache: as in :class:`PackedStep`.
        lengths: number of cached tokens of each sequence.
        pages: pages of each sequence, with room for one more token.

    Attributes:
        cached: (B,) int32, the `cache_seqlens` for ``llama_fast.attention_decode``.
        table: (B, pages) int32, the `page_table` for it.
    """

    def __init__(
        self, cache: PagedCache, lengths: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> None:
        self.cache, self.length, device = cache, 0, cache.k.device
        self.positions = _tensor(np.asarray(lengths, dtype=np.int64), device)
        self.cached = self.positions.to(torch.int32)
        table = np.zeros((len(pages), max(map(len, pages))), dtype=np.int32)
        for b, row in enumerate(pages):
            table[b, : len(row)] = row
        self.table = _tensor(table, device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See :class:`llama_fast.models.llama.AttentionStep`; N is B."""
        q, k, v = (t[0].transpose(0, 1).unsqueeze(2) for t in (q, k, v))  # (B,H,1,D), (B,K,1,D)
        cache = self.cache
        stored = (
            t[layer].unflatten(0, (-1, cache.page_size)).transpose(1, 2) for t in (cache.k, cache.v)
        )
        out: Tensor = attention_decode(
            q, *stored, k=k, v=v, cache_seqlens=self.cached, page_table=self.table, **options
        )
        return out.squeeze(2).transpose(0, 1).unsqueeze(0)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return _tensor(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
