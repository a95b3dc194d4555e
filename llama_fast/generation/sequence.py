"""The state of one request in the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from llama_fast.tokenizers import Tokenizer

from .paged_cache import PagedCache
from .prefix_tree import PrefixNode
from .requests import GenerationRequest, GenerationResult, Piece, check_length
from .text import TextStream


class LiveSequence:
    """A request, its tokens so far, and the pages of their keys and values.

    Attributes:
        tokens: ids of the prompt and the new tokens.
        cached: number of tokens with keys and values in `pages`; all but the last while decoding.
        pages: numbers of its pages, in the order of the tokens.
        path: the nodes of the prompt's full pages in the prefix tree.
        max_tokens: number of tokens at which the sequence ends if it does not stop before.
        joules: energy of its passes so far; None if it is not measured.
    """

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        tokenizer: Tokenizer,
        config: Any,
        cache: PagedCache,
    ) -> None:
        self.index, self.request = index, request
        self.tokens = [int(token) for token in request.tokens]
        self._check(config)
        self.max_tokens = min(len(self.tokens) + request.max_new_tokens, config.max_seq_len)
        self.joules: float | None = None
        self.cached = 0
        self.pages: list[int] = []
        self.path: list[PrefixNode] = []
        self._page = cache.page_size
        self._kept = 0  # number of nodes of `path` that are complete
        self._text = TextStream(tokenizer, self.tokens, request.stop)
        self._generator: torch.Generator | None = None

    def _check(self, config: Any) -> None:
        request = self.request
        name = f"request {self.index}"
        if not self.tokens:
            raise ValueError(f"{name}: expected at least one token in its prompt, got none")
        check_length(name, self.tokens, config.max_seq_len)
        if request.max_new_tokens < 1:
            raise ValueError(f"{name}: expected max_new_tokens >= 1, got {request.max_new_tokens}")
        if "" in request.stop:
            raise ValueError(f"{name}: expected stop strings of at least one character, got ''")
        bad = next((t for t in self.tokens if not 0 <= t < config.vocab_size), None)
        if bad is not None:
            raise ValueError(f"{name}: expected ids in [0, {config.vocab_size}), got {bad}")

    @property
    def uncached(self) -> int:
        """Number of tokens without keys and values; 1 while decoding."""
        return len(self.tokens) - self.cached

    def pages_for(self, tokens: int) -> int:
        """Number of pages that hold `tokens` tokens."""
        return -(-tokens // self._page)

    def shareable(self) -> list[PrefixNode] | None:
        """The nodes of its prefix that have keys and values; None while others are being computed.

        The last token is never shared, because its forward pass gives the logits.
        """
        nodes: list[PrefixNode] = []
        for node in self.path[: (len(self.tokens) - 1) // self._page]:
            if node.pending:
                return None
            if node.page is None:
                break
            nodes.append(node)
        return nodes

    def admit(self, pages: list[int], shared: int) -> None:
        """Join the batch with `pages` for all tokens, of which the first `shared` are complete."""
        self.pages = pages
        self.cached = shared * self._page
        self._kept = shared
        for node in self.path[shared:]:
            node.pending = True

    def completed(self) -> Iterator[tuple[PrefixNode, int]]:
        """Yield the nodes completed since the last call, and their pages."""
        while self._kept < min(len(self.path), self.cached // self._page):
            yield self.path[self._kept], self.pages[self._kept]
            self._kept += 1

    def retire(self) -> list[int]:
        """Leave the batch; return the pages to release."""
        pages, self.pages = self.pages, []
        if pages:
            for node in self.path[self._kept :]:
                node.pending = False
        self.cached = 0
        return pages

    def generator(self, device: torch.device) -> torch.Generator:
        """The request's own random generator, which continues after a preemption."""
        if self._generator is None:
            seed = self.request.sampling.seed
            if seed is None:
                seed = int(torch.randint(2**63 - 1, ()))
            self._generator = torch.Generator(device).manual_seed(seed)
        return self._generator

    def add(self, token: int) -> Piece:
        """Append a token; return the text it adds."""
        self.tokens.append(token)
        reason = None
        if token in self.request.stop_ids:
            reason, text = "stop", ""
        else:
            text = self._text.add(token)
            if self._text.stopped:
                reason = "stop"
            elif len(self.tokens) >= self.max_tokens:
                reason = "length"
        if reason is None:
            return Piece(self.index, text, None)
        text += self._text.finish()
        if self._text.stopped:
            reason = "stop"  # the text that was held back ends in a stop string
        new = self.tokens[len(self.request.tokens) :]
        result = GenerationResult(self._text.text, new, reason, self.joules)
        return Piece(self.index, text, result)
