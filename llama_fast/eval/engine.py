"""Scores texts with a model: computes a shared prefix once, and pads nothing.

Requests are arranged as a tree of tokens (`trie.py`). Each forward pass computes as many nodes as
fit in a budget of tokens, packed, the deepest first. Keys and values of a node stay in pages until
all of its descendants are computed. Only hidden states that predict a requested token are
multiplied by the head, each once. Requests whose lengths have different rotary factors (LongRoPE)
get separate trees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llama_fast.eval.trie import Node, Tokens, build
from llama_fast.generation.paged_cache import PackedStep, PagedCache, SequenceSlots
from llama_fast.models.decoder import Decoder
from llama_fast.ops import linear_cross_entropy

NO_SLOTS = np.zeros(0, dtype=np.int64)


class Likelihood(NamedTuple):
    """The likelihood of a continuation.

    Attributes:
        logprob: sum of the natural log-probabilities of its tokens.
        greedy: whether each of its tokens is the most likely one.
    """

    logprob: float
    greedy: bool


@dataclass
class Work:
    """Counters of computed work, for measurements.

    Attributes:
        requested: number of tokens in the requests, without the last token of each.
        computed: number of tokens that went through the model.
        rows: number of hidden states that were multiplied by the head.
        passes: number of forward passes.
    """

    requested: int = 0
    computed: int = 0
    rows: int = 0
    passes: int = 0


@dataclass(eq=False)
class _CachedNode:
    """A node whose keys and values are in the cache."""

    node: Node
    parent: _CachedNode | None
    pages: list[int]
    slots: np.ndarray  # slots of all tokens on its path from the root
    open: int  # number of unfinished children


class Scorer:
    """Computes likelihoods of continuations; a shared prefix is computed once.

    Args:
        model: the model, in evaluation mode.
        budget: largest number of tokens in a forward pass; a node with more tokens is computed in a
            pass of its own.

    Attributes:
        work: counters of the work so far.

    Example:
        >>> scorer = Scorer(model)
        >>> scorer.score([(tokenizer.encode("2 + 2 ="), tokenizer.encode(" 4"))])
        [Likelihood(logprob=-1.03, greedy=False)]
    """

    def __init__(self, model: Decoder, budget: int = 2048) -> None:
        if budget < 1:
            raise ValueError(f"budget: expected at least 1 token, got {budget}")
        self.model, self.budget, self.work = model, budget, Work()
        self._length = 0  # sequence length of the current requests, for rotary factors
        self.cache = self._empty_cache()

    def _empty_cache(self) -> PagedCache:
        config, weight = self.model.config, self.model.head_weight
        return PagedCache(
            config.num_layers,
            config.num_kv_heads,
            config.head_dim,
            pages=max(1, self.budget // 8),
            max_pages=1 << 40,
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.inference_mode()
    def score(
        self,
        requests: Sequence[tuple[Tokens, Tokens]],
        done: Callable[[list[tuple[int, Likelihood]]], object] = lambda answers: None,
    ) -> list[Likelihood]:
        """Compute the likelihood of each continuation given its context.

        Args:
            requests: (context, continuation) pairs of token ids, at least one token each.
            done: called after each pass with the new results, a list of (index of the request,
                likelihood).

        Raises:
            ValueError: a context or continuation is empty, or a request has more tokens than the
                model's `max_seq_len`.
        """
        longest = self.model.config.max_seq_len
        groups: dict[int, list[int]] = {}
        for number, (context, continuation) in enumerate(requests):
            tokens = len(context) + len(continuation) - 1
            if not context or not continuation or tokens > longest:
                raise ValueError(
                    f"requests[{number}]: expected a context and a continuation of at least one "
                    f"token each, {longest} in all, got {len(context)} and {len(continuation)}"
                )
            self.work.requested += tokens
            groups.setdefault(self.model.rope_group(tokens), []).append(number)
        likelihoods: dict[int, Likelihood] = {}
        try:
            for self._length, numbers in groups.items():

                def keep(answers: list[tuple[int, Likelihood]]) -> None:
                    done([(numbers[i], one) for i, one in answers])  # noqa: B023 (called here)

                answers = self._score([requests[i] for i in numbers], keep)
                likelihoods.update(zip(numbers, answers, strict=True))
            return [likelihoods[i] for i in range(len(requests))]
        except BaseException:
            self.cache = (
                self._empty_cache()
            )  # else the pages of the aborted requests would never be released
            raise

    def _score(
        self,
        requests: Sequence[tuple[Tokens, Tokens]],
        done: Callable[[list[tuple[int, Likelihood]]], object],
    ) -> list[Likelihood]:
        missing = [len(continuation) for _, continuation in requests]
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        root = build(requests)
        top = _CachedNode(root, None, [], NO_SLOTS, -1)
        ready = [(child, top) for child in reversed(root.children)]
        while ready:
            batch: list[tuple[Node, _CachedNode]] = []
            tokens = 0
            while ready and (not batch or tokens + len(ready[-1][0].tokens) <= self.budget):
                batch.append(ready.pop())
                tokens += len(batch[-1][0].tokens)
            held, hidden = self._forward(batch)
            complete = []
            for number, logprob, is_argmax in self._answers(batch, hidden):
                sums[number] += logprob
                greedy[number] &= is_argmax
                missing[number] -= 1
                if missing[number] == 0:
                    complete.append((number, Likelihood(sums[number], greedy[number])))
            if complete:
                done(complete)
            for one in held:
                ready += [(child, one) for child in reversed(one.node.children)]
                self._release(one)
        return [Likelihood(total, flag) for total, flag in zip(sums, greedy, strict=True)]

    def _forward(self, batch: list[tuple[Node, _CachedNode]]) -> tuple[list[_CachedNode], Tensor]:
        """Compute nodes; return their cache entries and the hidden states (N,E) of all tokens."""
        held, rows = [], []
        for node, parent in batch:
            count = len(node.tokens)
            pages = self.cache.allocate(-(-count // self.cache.page_size))
            new = self.cache.slots(pages, 0, count)
            rows.append(SequenceSlots(parent.slots, new))
            slots = np.concatenate([parent.slots, new]) if node.children else NO_SLOTS
            held.append(_CachedNode(node, parent, pages, slots, len(node.children)))
        tokens = [token for node, _ in batch for token in node.tokens]
        self.work.computed += len(tokens)
        self.work.passes += 1
        ids = torch.tensor([tokens], device=self.cache.k.device)
        step = PackedStep(self.cache, rows, self._length)
        return held, self.model.hidden_states(ids, step=step)[0]

    def _answers(
        self, batch: list[tuple[Node, _CachedNode]], hidden: Tensor
    ) -> list[tuple[int, float, bool]]:
        """(index of request, log-probability of one of its tokens, whether it is the argmax)."""
        requested, start = [], 0
        for node, _ in batch:
            requested += [(start + offset, target, number) for offset, target, number in node.rows]
            start += len(node.tokens)
        if not requested:
            return []
        positions, targets, numbers = np.array(requested).T
        rows, which = np.unique(positions, return_inverse=True)
        self.work.rows += len(rows)
        here = torch.from_numpy(rows).to(hidden.device)
        logprobs, is_argmax = log_probabilities(
            hidden[here],
            self.model.head_weight,
            torch.from_numpy(which).to(hidden.device),
            torch.from_numpy(targets).to(hidden.device),
        )
        return list(zip(numbers.tolist(), logprobs.tolist(), is_argmax.tolist(), strict=True))

    def _release(self, held: _CachedNode) -> None:
        """Release the pages of a node without unfinished children, then of such ancestors."""
        one: _CachedNode | None = held
        while one is not None and one.open == 0:
            self.cache.release(one.pages)
            one = one.parent
            if one is not None:
                one.open -= 1


def log_probabilities(
    hidden: Tensor,
    weight: Tensor,
    rows: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens that follow hidden states, in float32 for any model dtype.

    Args:
        hidden: (R,E) hidden states.
        weight: (V,E) weight of the head.
        rows: (A,) int64, for each answer the index of its hidden state.
        targets: (A,) int64, for each answer the token.

    Returns:
        A pair: log-probabilities (A,), and (A,) bool, whether each target is the argmax.
    """
    # Each row may have any target here: only the log of the softmax's denominator is used.
    first = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    first[rows] = targets
    _, stats = linear_cross_entropy(hidden, weight, first, reduction="none", return_stats=True)
    logits = (hidden[rows].float() * weight[targets].float()).sum(-1)
    return logits - stats.lse[rows], stats.argmax[rows] == targets
