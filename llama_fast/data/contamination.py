"""Contamination: finds benchmark questions in the training data with the method of Llama 2.

A token of a question is contaminated if it is part of a match: a span of at least `min_length`
tokens that is also in the training data, except for at most `skips` positions, none of which is
among the first `EXACT` tokens or the last. The contamination of a question is the fraction of its
tokens that are part of a match, including the positions that differ (Touvron et al. 2023,
"Llama 2", arXiv:2307.09288, appendix A.6).

The paper's lengths are those of a tokenizer with about 4 bytes a token. Where tokens are smaller,
11 of them are in any text (11 bytes: " that they "), so the lengths grow; see :class:`MatchRule`.

The questions, the smaller side, are indexed; the shards are read once. A match begins with `EXACT`
equal tokens, so looking up their hash finds every candidate. Candidates are then compared token by
token, so a hash collision cannot cause a match.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_fast.data.shards import TokenShards

EXACT = 10  # tokens at the beginning of a match that may not differ
MIN_LENGTH = 11  # "longer than 10 tokens"
SKIPS = 4
BYTES_PER_TOKEN = 4.0  # of Llama 2's tokenizer in English
SMALL_TOKENS = 2.5  # bytes a token below which the lengths are adjusted
MIN_BYTES = (
    25  # shorter matches are chance: MMLU has 0.08 % of its questions in Shakespeare, at 20 2 %
)
CLEAN, DIRTY = 0.2, 0.8  # a question is clean below the first contamination, dirty from the second
SUBSETS = ("clean", "not clean", "not dirty", "dirty")
CLEAN_SUBSETS = ("clean", "not dirty")  # those of the questions that were seen less
SIGNIFICANT = 2.0  # |Z| above which a subset's score differs by more than chance

CHUNK = 1 << 20  # training tokens hashed at a time
PAIRS = 1 << 18  # candidate pairs compared at a time

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatchRule:
    """What counts as a match.

    Attributes:
        min_length: minimum number of tokens in a match, L in the paper.
        skips: maximum number of positions in a match that may differ.
        exact: number of tokens at the beginning that must be equal.
    """

    min_length: int = MIN_LENGTH
    skips: int = SKIPS
    exact: int = EXACT

    @classmethod
    def of(
        cls, bytes_per_token: float, min_length: int | None = None, skips: int | None = None
    ) -> MatchRule:
        """Return the paper's rule, with lengths in proportion where tokens are small.

        Args:
            bytes_per_token: mean number of bytes (UTF-8) of a token in the questions. Below
                :data:`SMALL_TOKENS`, the paper's numbers of tokens are multiplied by
                ``BYTES_PER_TOKEN / bytes_per_token``: 44 bytes for tokens of one byte.
            min_length, skips: numbers to use instead.

        Raises:
            ValueError: `min_length` is below 1, or `skips` is negative.
        """
        factor = BYTES_PER_TOKEN / bytes_per_token if bytes_per_token < SMALL_TOKENS else 1.0
        exact, length = round(factor * EXACT), round(factor * MIN_LENGTH)
        if min_length is not None:
            length, exact = min_length, min(exact, min_length)
        rule = cls(length, round(factor * SKIPS) if skips is None else skips, exact)
        rule.check()
        return rule

    def check(self) -> None:
        """Raise ValueError for a number outside its range."""
        if self.min_length < 1:
            raise ValueError(f"min_length: expected at least 1, got {self.min_length}")
        if self.skips < 0:
            raise ValueError(f"skips: expected a number >= 0, got {self.skips}")
        if not 1 <= self.exact <= self.min_length:
            raise ValueError(
                f"exact: expected a number from 1 to {self.min_length}, got {self.exact}"
            )


@dataclass(frozen=True)
class Overlap:
    """Matches between questions and training data.

    Attributes:
        tokens: (questions,) int64, number of tokens in each.
        contaminated: (questions,) int64, number of tokens in each that are part of a match.
        pairs: (pairs, 2) int64, sorted unique pairs of a document and a question with a match.
    """

    tokens: Ints
    contaminated: Ints
    pairs: Ints

    @property
    def fractions(self) -> npt.NDArray[np.float64]:
        """(questions,) float64, contamination from 0 to 1; 0 for a question without tokens."""
        return self.contaminated / np.maximum(self.tokens, 1)

    def documents(self) -> Ints:
        """Indices of the documents that match a question that is not clean."""
        not_clean = self.fractions >= CLEAN
        return np.unique(self.pairs[not_clean[self.pairs[:, 1]], 0])


class QuestionIndex:
    """Index of the sequences of tokens in the questions with which a match may begin.

    Args:
        questions: token ids of each question, without begin and end.
        rule: what counts as a match.

    Raises:
        ValueError: a number of `rule` is outside its range.

    Example:
        >>> index = QuestionIndex([[1, 2, 3, 4]], MatchRule(min_length=3, exact=3))
        >>> index.scan(TokenShards("shards")).fractions
    """

    def __init__(self, questions: Sequence[Sequence[int]], rule: MatchRule | None = None) -> None:
        rule = rule or MatchRule()
        rule.check()
        self.min_length, self.skips, self.exact = rule.min_length, rule.skips, rule.exact
        self.lengths = np.array([len(ids) for ids in questions], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.concatenate([np.empty(0, np.int64), *map(np.asarray, questions)])
        self.tokens = self.tokens.astype(np.int64)
        # Multilinear hashing with random odd factors: the upper half of the bits is strongly
        # universal (Lemire & Kaser 2014, "Strongly universal string hashing is fast",
        # arXiv:1202.4961).
        generator = np.random.Generator(np.random.PCG64(0))
        self._factors = generator.integers(0, 1 << 63, self.exact, dtype=np.uint64) * 2 + 1
        hashes = self._hash(self.tokens)
        starts = np.arange(len(hashes))
        fits = self.ends[self._question(starts)] - starts >= self.min_length
        starts, hashes = starts[fits], hashes[fits]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._starts = hashes[order], starts[order]
        # A table with one entry per value of the leading bits, of which at most 1 in 16 are set: it
        # rejects most training tokens, much faster than a binary search.
        self._shift = np.uint64(64 - max(8, (16 * len(hashes)).bit_length()))
        self._filter = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._filter[self._hashes >> self._shift] = True

    def _hash(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Hash of the `exact` tokens from each position on, modulo 2^64."""
        ids = tokens.astype(np.uint64)
        count = max(0, len(ids) - self.exact + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for k, factor in enumerate(self._factors):
            hashes += ids[k : k + count] * factor
        return hashes

    def _question(self, positions: Ints) -> Ints:
        """Index of the question at each position in `self.tokens`."""
        return np.searchsorted(self.ends, positions, side="right")

    def scan(
        self, shards: TokenShards, progress: Callable[[int, int, str], object] | None = None
    ) -> Overlap:
        """Find all matches in the documents of some shards.

        Args:
            shards: the shards to search, written with the tokenizer of the questions.
            progress: called as ``progress(tokens done, number of tokens, "")``.
        """
        # +1 where a match begins, -1 after its end: the running sum is positive within matches.
        steps = np.zeros(len(self.tokens) + 1, dtype=np.int64)
        pairs, done = [np.empty(0, dtype=np.int64)], 0
        for first, tokens, ends in shards.blocks():
            for chunk in range(0, len(tokens), CHUNK):
                for starts, places in self._candidates(tokens, chunk):
                    starts, places, lengths = self._matches(tokens, ends, starts, places)
                    np.add.at(steps, starts, 1)
                    np.add.at(steps, starts + lengths, -1)
                    documents = first + np.searchsorted(ends, places, side="right")
                    pairs.append(np.unique(documents * len(self.lengths) + self._question(starts)))
                if progress is not None:
                    progress(done + min(chunk + CHUNK, len(tokens)), shards.num_tokens, "")
            done += len(tokens)
        inside = np.concatenate([[0], np.cumsum(np.cumsum(steps[:-1]) > 0)])
        contaminated = inside[self.ends] - inside[self.ends - self.lengths]
        unique_pairs = np.unique(np.concatenate(pairs))
        return Overlap(
            self.lengths,
            contaminated,
            np.stack(np.divmod(unique_pairs, max(1, len(self.lengths))), axis=1),
        )

    def _candidates(self, tokens: npt.NDArray[Any], chunk: int) -> Iterator[tuple[Ints, Ints]]:
        """Yield (positions in `self.tokens`, positions in `tokens`) with equal hashes, in parts."""
        hashes = self._hash(tokens[chunk : chunk + CHUNK + self.exact - 1])
        likely = np.flatnonzero(self._filter[hashes >> self._shift])
        low = np.searchsorted(self._hashes, hashes[likely], side="left")
        counts = np.searchsorted(self._hashes, hashes[likely], side="right") - low
        likely, low, counts = likely[counts > 0], low[counts > 0], counts[counts > 0]
        total = np.cumsum(counts)
        begin = 0
        while begin < len(likely):
            before = total[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(total, before + PAIRS, side="right")))
            part = slice(begin, end)
            # 0, 1, ..., count - 1 for each place.
            number = np.arange(total[end - 1] - before) - np.repeat(
                total[part] - counts[part] - before, counts[part]
            )
            yield (
                self._starts[np.repeat(low[part], counts[part]) + number],
                np.repeat(likely[part] + chunk, counts[part]),
            )
            begin = end

    def _matches(
        self, tokens: npt.NDArray[Any], ends: Ints, starts: Ints, places: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """(starts, places, lengths) of the longest match from each candidate that has one.

        A candidate is left out if the tokens before it are equal, too, because a match that begins
        there covers it.
        """
        question, document = self._question(starts), np.searchsorted(ends, places, side="right")
        room = np.minimum(self.ends[question] - starts, ends[document] - places)
        has_before = (starts > self.ends[question] - self.lengths[question]) & (
            places > np.where(document > 0, ends[document - 1], 0)
        )
        covered = has_before & (self.tokens[starts - 1] == tokens[places - 1])
        keep = (room >= self.min_length) & ~covered
        starts, places, room = starts[keep], places[keep], room[keep]
        equal = np.ones(len(starts), dtype=np.bool_)
        for k in range(self.exact):
            equal &= self.tokens[starts + k] == tokens[places + k]
        starts, places, room = starts[equal], places[equal], room[equal]

        lengths = np.full(len(starts), self.exact, dtype=np.int64)
        skipped = np.zeros(len(starts), dtype=np.int64)
        active, at = np.arange(len(starts)), self.exact
        while True:
            active = active[(skipped[active] <= self.skips) & (room[active] > at)]
            if not active.size:
                break
            agrees = self.tokens[starts[active] + at] == tokens[places[active] + at]
            at += 1
            lengths[active[agrees]] = at
            skipped[active[~agrees]] += 1
        long = lengths >= self.min_length
        return starts[long], places[long], lengths[long]


def subsets(fractions: npt.ArrayLike) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks of the questions in each of `SUBSETS`.

    Args:
        fractions: (questions,) contamination of each.
    """
    values = np.asarray(fractions, dtype=np.float64)
    clean, dirty = values < CLEAN, values >= DIRTY
    return dict(zip(SUBSETS, (clean, ~clean, ~dirty, dirty), strict=True))


@dataclass(frozen=True)
class SubsetScore:
    """Mean score of a subset, compared with that of all questions.

    Attributes:
        subset: one of `SUBSETS`.
        count: n, number of questions in the subset.
        contamination: mean contamination in the subset.
        mean: mean score in the subset.
        expected: mu_n, mean score of all questions.
        z: (mean - expected) / sigma_n, where sigma_n is the standard deviation of all scores
            divided by the square root of n; NaN if the subset is empty or all scores are equal.
    """

    subset: str
    count: int
    contamination: float
    mean: float
    expected: float
    z: float


def split_scores(scores: npt.ArrayLike, fractions: npt.ArrayLike) -> list[SubsetScore]:
    """Compare the scores of a benchmark's subsets, with the statistic of the paper's appendix A.6.

    Args:
        scores: (questions,) score of each, such as 1 for a correct answer and 0 for a wrong one.
        fractions: (questions,) contamination of each.

    Raises:
        ValueError: there are no questions, or the lengths of the arguments differ.
    """
    score, share = (np.asarray(x, dtype=np.float64) for x in (scores, fractions))
    if score.ndim != 1 or score.shape != share.shape or not score.size:
        raise ValueError(
            f"scores: expected one for each of {share.size} questions (at least 1), got "
            f"{score.shape}"
        )
    mean, deviation = float(score.mean()), float(score.std())
    result = []
    for name, members in subsets(share).items():
        n = int(members.sum())
        own, contamination, z = math.nan, math.nan, math.nan
        if n:
            own, contamination = float(score[members].mean()), float(share[members].mean())
            if deviation:
                z = (own - mean) / (deviation / math.sqrt(n))
        result.append(SubsetScore(name, n, contamination, own, mean, z))
    return result


def is_affected(scores: Sequence[SubsetScore]) -> bool:
    """Whether contamination raises the score: the paper's criterion, with its direction.

    The paper asks for abs(Z) > 2 in all four subsets. Questions that the model has seen are
    answered better, so Z is also asked to be negative for the clean subsets ("clean", "not dirty")
    and positive for the others: a benchmark whose dirty questions are harder is not affected.

    Args:
        scores: the result of :func:`split_scores` for scores of which higher ones are better.
    """
    return all(
        (-score.z if score.subset in CLEAN_SUBSETS else score.z) > SIGNIFICANT for score in scores
    )
