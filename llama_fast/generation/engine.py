"""Continuous batching: many requests share each pass through the model.

Yu et al. 2022, "Orca" (OSDI '22). A request joins the batch as soon as there is room and leaves it
when it is done. A forward pass computes either prompts (prefill: those of sequences that have just
joined, packed without padding) or one more token of every sequence (decoding). A prefix shared by
several prompts is computed once; they share its pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from llama_fast._energy import EnergyMeter
from llama_fast.models.decoder import Decoder
from llama_fast.ops.linear import linear
from llama_fast.tokenizers import Tokenizer

from .fast_decode import FastDecode
from .memory import max_pages
from .paged_cache import DecodeStep, PackedStep, PagedCache, SequenceSlots
from .prefix_tree import PrefixNode, PrefixTree
from .requests import GenerationRequest, GenerationResult, Piece
from .sampling import next_tokens
from .sequence import LiveSequence

LOOK_AHEAD = 256  # number of waiting requests in which shared prefixes are looked for


class Engine:
    """Generates text for many requests at once.

    The other requests in a batch affect a result through rounding only, because the order of
    summation depends on the batch size. In float32 this changes a token only if two logits are
    nearly equal.

    Args:
        model: the model, in evaluation mode. Its weights must not change while the engine is used.
        tokenizer: the tokenizer of the model.
        max_batch: largest number of sequences in a batch.
        prefill_tokens: largest number of prompt tokens in a pass.
        cache_tokens: capacity of the key-value cache in tokens. None: room for `max_batch`
            sequences of max_seq_len tokens, but at most half the free memory.
        page_size: tokens per page of the cache.
        keep_finished: number of finished requests whose keys and values stay for later requests
            with the same prefix, such as the next turn of a chat.
        meter: the energy meter that fills `joules` of results, or None.

    Attributes:
        prefilled: number of prompt tokens computed so far; those of preempted sequences count
            again.
        reused: number of prompt tokens whose keys and values were in the cache.
        decoded: number of generated tokens that went through the model; the last token of a text
            does not.
        preempted: number of times that a sequence left the batch for lack of memory.

    Raises:
        ValueError: a number is below 1, or the cache is smaller than a page.

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
        page_size: int = 16,
        keep_finished: int = 0,
        meter: EnergyMeter | None = None,
    ) -> None:
        for name, number in (("max_batch", max_batch), ("prefill_tokens", prefill_tokens)):
            if number < 1:
                raise ValueError(f"{name}: expected a number >= 1, got {number}")
        if cache_tokens is not None and cache_tokens < page_size:
            raise ValueError(
                f"cache_tokens: expected at least a page of {page_size}, got {cache_tokens}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        weight, config = model.head_weight, model.config
        if cache_tokens is None:
            num_pages = max_pages(config, max_batch, page_size, weight)
        else:
            num_pages = cache_tokens // page_size
        self.cache = PagedCache(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            min(num_pages, 64),
            page_size=page_size,
            max_pages=num_pages,
            dtype=weight.dtype,
            device=weight.device,
        )
        self._tree = PrefixTree(self.cache)
        self._kept: deque[list[PrefixNode]] = deque()
        self._keep_finished = keep_finished
        self._busy = False
        self._meter, self._joules = meter, 0.0  # what the meter showed after the last pass
        self._fast = FastDecode(model) if FastDecode.serves(model, page_size) else None
        self.prefilled = self.reused = self.decoded = self.preempted = 0

    def generate(
        self,
        requests: Iterable[GenerationRequest],
        on_done: Callable[[int, GenerationResult], None] | None = None,
    ) -> list[GenerationResult]:
        """Generate the text of all requests; return the results in the order of the requests.

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
        """Yield new text of any request as it is generated.

        An engine has one stream at a time; closing it ends all its requests.

        Raises:
            ValueError: a request cannot be served: its prompt is empty, has max_seq_len tokens or
                more or a token outside the vocabulary, it needs more tokens than the cache holds,
                or it is so long that its rotary factors change (LongRoPE, dynamic NTK).
            RuntimeError: an earlier stream of this engine has not ended.
        """
        if self._busy:
            raise RuntimeError("stream: expected the engine's earlier stream to have ended")
        self._busy = True
        self._joules = 0.0 if self._meter is None else self._meter.joules()
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

    # --- sequences join and leave the batch ----------------------------------------------------

    def _sequence(self, index: int, request: GenerationRequest) -> LiveSequence:
        config, limit = self.model.config, self.cache.max_pages * self.cache.page_size
        sequence = LiveSequence(index, request, self.tokenizer, config, self.cache)
        if sequence.max_tokens > limit:
            raise ValueError(
                f"request {index}: expected at most the cache's {limit} tokens, prompt and "
                f"max_new_tokens, got {sequence.max_tokens}"
            )
        if self.model.rope_group(sequence.max_tokens):
            raise ValueError(
                f"request {index}: expected a sequence so short that its rotary factors do not "
                f"depend on its length (LongRoPE, dynamic NTK), got {sequence.max_tokens} tokens, "
                "prompt and max_new_tokens"
            )
        sequence.path = self._tree.acquire(request.tokens)
        return sequence

    def _admit(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> None:
        """Move sequences from `waiting` to `live` in order; skip those that wait for a prefix."""
        budget = self.prefill_tokens - sum(s.uncached for s in live if s.uncached > 1)
        put_back: list[LiveSequence] = []
        while waiting and budget > 0 and len(live) < self.max_batch:
            sequence = waiting.popleft()
            shared = sequence.shareable()
            if shared is None:  # a live sequence is computing a prefix of it
                put_back.append(sequence)
                continue
            pages = [node.page for node in shared if node.page is not None]
            self.cache.share(pages)  # before pages are evicted
            more = sequence.pages_for(len(sequence.tokens)) - len(pages)
            self._tree.make_room(more)
            if self.cache.free < more:
                self.cache.release(pages)
                put_back.append(sequence)
                break
            sequence.admit([*pages, *self.cache.allocate(more)], len(pages))
            self.reused += sequence.cached
            budget -= sequence.uncached
            live.append(sequence)
        waiting.extendleft(reversed(put_back))

    def _leave(self, sequence: LiveSequence) -> None:
        """Release the pages of a finished sequence, or keep them for later prompts."""
        if self._keep_finished and sequence.cached:
            whole = self._tree.acquire(sequence.tokens[: sequence.cached])
            for node, page in zip(whole, sequence.pages, strict=False):
                self._tree.keep(node, page)
            self._kept.append(whole)
            if len(self._kept) > self._keep_finished:
                self._tree.release(self._kept.popleft())
        self.cache.release(sequence.retire())
        self._tree.release(sequence.path)

    def _preempt(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> None:
        """Move the newest sequence to the front of the queue; it will be computed again."""
        sequence = live.pop()
        self.cache.release(sequence.retire())
        waiting.appendleft(sequence)
        self.preempted += 1

    # --- passes -------------------------------------------------------------------------------

    def _pass(self, waiting: deque[LiveSequence], live: list[LiveSequence]) -> list[Piece]:
        """Run the model once; return the new text, one piece per sequence."""
        if any(s.uncached > 1 for s in live):
            chosen, logits = self._prefill(live)
        else:
            chosen, logits = self._decode(waiting, live)
        tokens = self._choose(chosen, logits)
        self._measure(chosen)
        pieces = []
        for sequence, token in zip(chosen, tokens, strict=True):
            pieces.append(sequence.add(token))
            if pieces[-1].result is not None:
                live.remove(sequence)
                self._leave(sequence)
        return pieces

    def _measure(self, chosen: list[LiveSequence]) -> None:
        """Divide the energy since the last call among the sequences of a pass.

        A pass without a complete prompt has none; its energy is part of the next one's.
        """
        if self._meter is None or not chosen:
            return
        now = self._meter.joules()
        for sequence in chosen:
            sequence.joules = (sequence.joules or 0.0) + (now - self._joules) / len(chosen)
        self._joules = now

    @torch.inference_mode()
    def _prefill(self, live: list[LiveSequence]) -> tuple[list[LiveSequence], Tensor]:
        """Compute prompts; return the sequences whose prompt is complete and their logits (B,V)."""
        budget, rows, tokens, last = self.prefill_tokens, [], [], []
        complete = []
        taken: list[tuple[LiveSequence, int]] = []
        for sequence in live:
            take = min(sequence.uncached, budget)
            if sequence.uncached == 1 or take == 0:  # 1: it is decoding
                continue
            budget -= take
            start = sequence.cached
            earlier = self.cache.slots(sequence.pages, 0, start)
            rows.append(
                SequenceSlots(earlier, self.cache.slots(sequence.pages, start, start + take))
            )
            tokens += sequence.tokens[start : start + take]
            taken.append((sequence, take))
            if take == sequence.uncached:
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
        """Compute the last token of each sequence; return the sequences and their logits (B,V)."""
        for sequence in list(live):
            while (
                sequence in live and len(sequence.pages) * self.cache.page_size == sequence.cached
            ):
                self._tree.make_room(1)
                if self.cache.free:
                    sequence.pages += self.cache.allocate(1)
                else:
                    self._preempt(waiting, live)
        step = DecodeStep(self.cache, [s.cached for s in live], [s.pages for s in live])
        hidden = self._hidden([s.tokens[-1] for s in live], step, self._fast)[0]
        for sequence in live:
            self._advance(sequence, 1)
        return list(live), self._logits(hidden)

    def _advance(self, sequence: LiveSequence, count: int) -> None:
        """Record that `count` more tokens of a sequence have keys and values."""
        if sequence.cached < len(sequence.request.tokens):
            self.prefilled += count
        else:
            self.decoded += count
        sequence.cached += count
        for node, page in sequence.completed():
            self._tree.keep(node, page)

    def _hidden(self, tokens: Sequence[int], step: Any, fast: FastDecode | None = None) -> Tensor:
        """Hidden states (1,N,E) of N tokens."""
        ids = torch.tensor([tokens], device=self.cache.k.device)
        return self.model.hidden_states(ids, step=step) if fast is None else fast(ids, step)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (B,V) of hidden states (B,E)."""
        return linear(hidden, self.model.head_weight)

    @torch.inference_mode()
    def _choose(self, sequences: list[LiveSequence], logits: Tensor) -> list[int]:
        """Choose the next token of each sequence."""
        if not sequences:
            return []
        tokens: list[int] = logits.argmax(-1).tolist()
        for b, sequence in enumerate(sequences):
            options = sequence.request.sampling
            if not options.plain_greedy:
                seen = torch.tensor([sequence.tokens], device=logits.device)
                row = next_tokens(
                    logits[b : b + 1], options, seen, sequence.generator(logits.device)
                )
                tokens[b] = int(row)
        return tokens
