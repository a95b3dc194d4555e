"""Continuous batching: many requests share each pass through the model.

Yu et al. 2022, "Orca" (OSDI '22). A request joins as soon as there is room, and leaves when it is
done. A pass is either a prefill (the prompts of sequences that have just joined, packed without
padding) or one more token for every sequence. Prompts that begin alike share the pages of what
they have in common, which is computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from llama_fast.models.decoder import Decoder
from llama_fast.ops.linear import linear
from llama_fast.tokenizers import Tokenizer

from .fast_decode import FastDecode
from .memory import most_pages
from .paged_cache import DecodeStep, PackedStep, PagedCache, Row
from .prefix_tree import Node, PrefixTree
from .requests import GenerationRequest, GenerationResult, Piece
from .sampling import choose
from .sequence import LiveSequence

LOOK_AHEAD = 256  # waiting requests that are searched for common beginnings


class Engine:
    """Generates for many requests at once; what each gets does not depend on the others.

    Rounding does: another batch means other kernels, as with any engine. In float32 it takes a tie
    of two logits to see it.

    Args:
        model: in evaluation mode; its weights stay as they are.
        tokenizer: the model's.
        max_batch: the most sequences under way.
        prefill_tokens: the most prompt tokens of a pass.
        cache_tokens: the most tokens whose keys and values are held; None: `max_batch` sequences of
            max_seq_len tokens, or what half the free memory holds if that is less.
        page: tokens of a page.
        keep: how many ended requests' keys and values stay for later ones that begin with the same
            tokens: the turns of a chat.

    Attributes:
        prefilled: prompt tokens computed so far, with those of sequences that were put back.
        reused: prompt tokens whose keys and values were there.
        decoded: generated tokens computed so far; the last of a text never is.
        preempted: how often a sequence was put back for want of memory.

    Raises:
        ValueError: a number below 1, or a cache of less than a page.

    Example:
        >>> model, tokenizer = llama_fast.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
        >>> engine = Engine(model, tokenizer)
        >>> prompt = tokenizer.encode("The capital of France is")
        >>> engine.generate([GenerationRequest(prompt, max_new_tokens=8, stop=["."])])[0].text
        ' Paris'
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 32,
        prefill_tokens: int = 2048,
        cache_tokens: int | None = None,
        page: int = 16,
        keep: int = 0,
    ) -> None:
        for name, number in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if number < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {number}")
        if cache_tokens is not None and cache_tokens < page:
            raise ValueError(f"cache_tokens: expected at least a page, {page}, got {cache_tokens}")
        self.model, self.tokenizer = model, tokenizer
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        weight, config = model.head_weight, model.config
        limit = most_pages(config, max_batch, page, weight) if cache_tokens is None else None
        limit = limit or (cache_tokens or 0) // page
        self.cache = PagedCache(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            min(limit, 64),
            page=page,
            limit=limit,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._tree = PrefixTree(self.cache)
        self._kept: deque[list[Node]] = deque()
        self._keep = keep
        self._busy = False
        self._fast = FastDecode(model) if FastDecode.serves(model, page) else None
        self.prefilled = self.reused = self.decoded = self.preempted = 0

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        on_done: Callable[[int, GenerationResult], None] | None = None,
    ) -> list[GenerationResult]:
        """Results in the order of the requests.

        Args:
            requests: any number.
            on_done: called with a request's index and result when it is done.

        Raises:
            ValueError: as :meth:`stream`.
        """
        results: dict[int, GenerationResult] = {}
        for piece in self.stream(requests):
            if piece.result is not None:
                results[piece.index] = piece.result
                if on_done is not None:
                    on_done(piece.index, piece.result)
        return [results[index] for index in range(len(results))]

    def stream(self, requests: Iterable[GenerationRequest]) -> Generator[Piece, None, None]:
        """New text of any request as it comes. One stream at a time; closing it ends all requests.

        Raises:
            ValueError: a request that is not possible: an empty prompt, one of max_seq_len tokens
                or more, a token outside the vocabulary, more than the cache holds, or so long that
                it has other rotary factors than a short one (LongRoPE, dynamic NTK).
        """
        if self._busy:
            raise RuntimeError("stream: expected the engine's earlier stream to be at its end")
        self._busy = True
        source = iter(requests)
        waiting: deque[LiveSequence] = deque()
        live: list[LiveSequence] = []
        count = 0
        try:
            while True:
                while len(waiting) < LOOK_AHEAD and (request := next(source, None)) is not None:
                    waiting.append(self._sequence(count, request))
                    count += 1
                self._admit(waiting, live)
                if not live:
                    return
                yield from self._pass(waiting, live)
        finally:
            for sequence in [*live, *waiting]:
                self._leave(sequence)
            self._busy = False

    # --- sequences come and go ----------------------------------------------------------------

    def _sequence(self, index: int, request: GenerationRequest) -> LiveSequence:
        config, limit = self.model.config, self.cache.limit * self.cache.page
        sequence = LiveSequence(index, request, self.tokenizer, config, self.cache)
        if sequence.most > limit:
            raise ValueError(
                f"request {index}: expected at most {limit} tokens with those to come, which the "
                f"cache holds, got {sequence.most}"
            )
        if self.model.rope_group(sequence.most):
            raise ValueError(
                f"request {index}: expected a sequence so short that its rotary factors do not "
                f"depend on its length (LongRoPE, dynamic NTK), got {sequence.most} tokens with "
                "those to come"
            )
        sequence.path = self._tree.want(request.tokens)
        return sequence

    def _admit(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> None:
        """Move sequences from `waiting` to `live`: in their order, but none waits for another's."""
        budget = self.prefill_tokens - sum(s.missing for s in live if s.missing > 1)
        put_back: list[LiveSequence] = []
        while waiting and budget > 0 and len(live) < self.max_batch:
            sequence = waiting.popleft()
            shared = sequence.shareable()
            if shared is None:  # someone is computing what it can use
                put_back.append(sequence)
                continue
            pages = [node.page for node in shared if node.page is not None]
            self.cache.share(pages)  # before others are thrown out
            more = sequence.pages_for(len(sequence.tokens)) - len(pages)
            self._tree.make_room(more)
            if self.cache.free < more:
                self.cache.release(pages)
                put_back.append(sequence)
                break
            sequence.admit([*pages, *self.cache.allocate(more)], len(pages))
            self.reused += sequence.held
            budget -= sequence.missing
            live.append(sequence)
        waiting.extendleft(reversed(put_back))

    def _leave(self, sequence: LiveSequence) -> None:
        """Give back what an ended sequence has, or keep it for later prompts."""
        if self._keep and sequence.held:
            whole = self._tree.want(sequence.tokens[: sequence.held])
            for node, page in zip(whole, sequence.pages, strict=False):
                self._tree.keep(node, page)
            self._kept.append(whole)
            if len(self._kept) > self._keep:
                self._tree.unwant(self._kept.popleft())
        self.cache.release(sequence.retire())
        self._tree.unwant(sequence.path)

    def _preempt(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> None:
        """Put the newest sequence back to the front of those that wait; it is computed again."""
        sequence = live.pop()
        self.cache.release(sequence.retire())
        waiting.appendleft(sequence)
        self.preempted += 1

    # --- passes -------------------------------------------------------------------------------

    def _pass(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> list[Piece]:
        """One pass through the model, and the pieces that come of it."""
        if any(s.missing > 1 for s in live):
            chosen, logits = self._prefill(live)
        else:
            chosen, logits = self._decode(waiting, live)
        pieces = []
        for sequence, token in zip(chosen, self._choose(chosen, logits), strict=True):
            pieces.append(sequence.add(token))
            if pieces[-1].result is not None:
                live.remove(sequence)
                self._leave(sequence)
        return pieces

    @torch.inference_mode()
    def _prefill(self, live: list[LiveSequence]) -> tuple[list[LiveSequence], Tensor]:
        """Compute prompts; those that are complete now, and the logits (B,V) after each."""
        budget, rows, tokens, last = self.prefill_tokens, [], [], []
        complete = []
        taken: list[tuple[LiveSequence, int]] = []
        for sequence in live:
            take = min(sequence.missing, budget)
            if sequence.missing == 1 or take == 0:  # 1: it is decoding
                continue
            budget -= take
            held = sequence.held
            earlier = self.cache.slots(sequence.pages, 0, held)
            rows.append(Row(earlier, self.cache.slots(sequence.pages, held, held + take)))
            tokens += sequence.tokens[held : held + take]
            taken.append((sequence, take))
            if take == sequence.missing:
                complete.append(sequence)
                last.append(len(tokens) - 1)
        step = PackedStep(self.cache, rows)
        hidden = self._hidden(tokens, step)[0, last]
        for sequence, take in taken:
            self._advance(sequence, take)
        return complete, self._logits(hidden)

    @torch.inference_mode()
    def _decode(
        self, waiting: deque[LiveSequence], live: list[LiveSequence]
    ) -> tuple[list[LiveSequence], Tensor]:
        """One more token for each sequence: all of them, and the logits (B,V)."""
        for sequence in list(live):
            while sequence in live and len(sequence.pages) * self.cache.page == sequence.held:
                self._tree.make_room(1)
                if self.cache.free:
                    sequence.pages += self.cache.allocate(1)
                else:
                    self._preempt(waiting, live)
        step = DecodeStep(self.cache, [s.held for s in live], [s.pages for s in live])
        hidden = self._hidden([s.tokens[-1] for s in live], step, self._fast)[0]
        for sequence in live:
            self._advance(sequence, 1)
        return list(live), self._logits(hidden)

    def _advance(self, sequence: LiveSequence, count: int) -> None:
        """`count` more tokens of a sequence have keys and values."""
        if sequence.held < len(sequence.request.tokens):
            self.prefilled += count
        else:
            self.decoded += count
        sequence.held += count
        for node, page in sequence.completed():
            self._tree.keep(node, page)

    def _hidden(self, tokens: Sequence[int], step: Any, fast: FastDecode | None = None) -> Tensor:
        """(1,N,E) of N tokens."""
        ids = torch.tensor([tokens], device=self.cache.k.device)
        return self.model.hidden_states(ids, step=step) if fast is None else fast(ids, step)

    def _logits(self, hidden: Tensor) -> Tensor:
        """(B,E) to (B,V)."""
        return linear(hidden, self.model.head_weight)

    @torch.inference_mode()
    def _choose(self, sequences: list[LiveSequence], logits: Tensor) -> list[int]:
        """The next token of each sequence."""
        if not sequences:
            return []
        tokens: list[int] = logits.argmax(-1).tolist()
        for b, sequence in enumerate(sequences):
            options = sequence.request.sampling
            if not options.plain_greedy:
                seen = torch.tensor([sequence.tokens], device=logits.device)
                row = choose(logits[b : b + 1], options, seen, sequence.generator(logits.device))
                tokens[b] = int(row)
        return tokens
