"""Keys and values of many sequences in pages of one store, which sequences can share.

Kwon et al. 2023, "PagedAttention" (arXiv:2309.06180). A *slot* is the place of one token: row
``slot % page`` of page ``slot // page``. What a forward pass has to know of the sequences it goes
on with is a *step*: :class:`PackedStep` for any number of new tokens each, :class:`DecodeStep` for
one new token each. Letters: N new tokens of all sequences, M tokens they see, B sequences, L
layers, H query heads, K key-value heads, D head size.
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
    """No page is free, and the store may not grow."""


class PagedCache:
    """A store of pages.

    Args:
        layers, kv_heads, head_dim: L, K, D of the model.
        pages: how many there are at first.
        page: tokens of a page.
        limit: the most pages it may grow to; None: as it was made.
        dtype, device: of the model.

    Attributes:
        k, v: (L, P * page, K, D), a row a slot.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        *,
        page: int = 16,
        limit: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if pages < 1 or page < 1:
            raise ValueError(f"pages, page: expected at least 1 each, got {pages} and {page}")
        self.page, self.limit = page, pages if limit is None else limit
        shape = (layers, pages * page, kv_heads, head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros_like(self.k)
        self._uses = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def pages(self) -> int:
        """Pages there are."""
        return len(self._uses)

    @property
    def free(self) -> int:
        """Pages that can be had, those it may still grow by among them."""
        return len(self._free) + self.limit - self.pages

    def allocate(self, count: int) -> list[int]:
        """`count` pages that nobody else uses.

        Raises:
            CacheFull: there are not as many.
        """
        if count > self.free:
            raise CacheFull(f"pages: expected {count} free ones, there are {self.free}")
        if count > len(self._free):
            self._grow(count - len(self._free))
        found = [self._free.pop() for _ in range(count)]
        for page in found:
            self._uses[page] = 1
        return found

    def share(self, pages: Sequence[int]) -> None:
        """One more user of each page: it is free again when all have released it."""
        for page in pages:
            self._uses[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One user less of each page."""
        for page in pages:
            self._uses[page] -= 1
            if self._uses[page] == 0:
                self._free.append(page)

    def uses(self, page: int) -> int:
        """How many users `page` has."""
        return self._uses[page]

    def slots(self, pages: Sequence[int], start: int, stop: int) -> np.ndarray:
        """Slots of tokens ``start`` to ``stop`` of a sequence that lies in `pages`: int64."""
        tokens = np.arange(start, stop)
        return np.asarray(pages, dtype=np.int64)[tokens // self.page] * self.page + (
            tokens % self.page
        )

    def _grow(self, count: int) -> None:
        """By at least `count` pages, by half of what there is if it may."""
        more = min(max(count, self.pages // 2), self.limit - self.pages)
        fresh = self.k.new_zeros(len(self.k), more * self.page, *self.k.shape[2:])
        self.k, self.v = torch.cat([self.k, fresh], dim=1), torch.cat([self.v, fresh], dim=1)
        self._free += range(self.pages + more - 1, self.pages - 1, -1)
        self._uses += [0] * more


@dataclass(frozen=True)
class Row:
    """A sequence's part in a :class:`PackedStep`.

    Attributes:
        earlier: slots of the tokens it holds, in their order: int64 (T - S,).
        new: slots for its new tokens: int64 (S,).
    """

    earlier: np.ndarray
    new: np.ndarray


class PackedStep:
    """New tokens of several sequences, one sequence after the other, without padding.

    Args:
        cache: holds what came before, and the new keys and values after the pass.
        rows: the sequences. None of the slots of their new tokens is another one's.
        length: see :class:`llama_fast.models.llama.Step`.
    """

    def __init__(self, cache: PagedCache, rows: Sequence[Row], length: int = 0) -> None:
        self.cache, self.length, device = cache, length, cache.k.device
        held = [len(row.earlier) for row in rows]
        new = [len(row.new) for row in rows]
        self.positions = _tensor(
            np.concatenate([np.arange(h, h + n) for h, n in zip(held, new, strict=True)]), device
        )
        self._write = _tensor(np.concatenate([row.new for row in rows]), device)
        self._read: Tensor | None = None
        self._offsets_q = self._offsets_k = _offsets(new, device)
        if any(held):
            both = [part for row in rows for part in (row.earlier, row.new)]
            self._read = _tensor(np.concatenate(both), device)
            self._offsets_k = _offsets([h + n for h, n in zip(held, new, strict=True)], device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See :class:`llama_fast.models.llama.Step`."""
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
    """One new token for each of B sequences.

    Args:
        cache: as in :class:`PackedStep`.
        lengths: tokens that each sequence holds.
        pages: the pages of each, with room for one more token.

    Attributes:
        held, table: (B,) and (B,pages) int32, those of ``llama_fast.attention_decode``.
    """

    def __init__(
        self, cache: PagedCache, lengths: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> None:
        self.cache, self.length, device = cache, 0, cache.k.device
        self.positions = _tensor(np.asarray(lengths, dtype=np.int64), device)
        self.held = self.positions.to(torch.int32)
        table = np.zeros((len(pages), max(map(len, pages))), dtype=np.int32)
        for b, found in enumerate(pages):
            table[b, : len(found)] = found
        self.table = _tensor(table, device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """See :class:`llama_fast.models.llama.Step`; N is B."""
        q, k, v = (t[0].transpose(0, 1).unsqueeze(2) for t in (q, k, v))  # (B,H,1,D), (B,K,1,D)
        cache = self.cache
        stored = (
            t[layer].unflatten(0, (-1, cache.page)).transpose(1, 2) for t in (cache.k, cache.v)
        )
        out: Tensor = attention_decode(
            q, *stored, k=k, v=v, cache_seqlens=self.held, page_table=self.table, **options
        )
        return out.squeeze(2).transpose(0, 1).unsqueeze(0)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _offsets(lengths: Sequence[int], device: torch.device) -> Tensor:
    return _tensor(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), device)
