"""Which benchmark questions are in the training data: Llama 2's analysis of contamination.

A token of a question is contaminated if it lies in a span that question and training data have in
common: at least `min_length` tokens, token for token at the same distance from its beginning, where
at most `skips` positions differ, none of them among the first `EXACT` tokens or at the end. The
contamination of a question is the share of its tokens that are, those at the differing positions of
a span included (Touvron et al. 2023, "Llama 2", arXiv:2307.09288, appendix A.6).

The index is over the questions, the small side; the shards stream past it once. A span begins with
`EXACT` equal tokens, so their hash finds every candidate, which is then compared token by token:
hashes decide what is looked at, never what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llama_fast.data.shards import TokenShards

EXACT = 10  # tokens at the beginning of a match that all agree
MIN_LENGTH = 11  # "longer than 10 tokens"
SKIPS = 4
CLEAN, DIRTY = 0.2, 0.8  # contamination below which a question is clean, from which it is dirty
SUBSETS = ("clean", "not clean", "not dirty", "dirty")
SIGNIFICANT = 2.0  # |Z| above which a subset's score is not what chance gives

CHUNK = 1 << 20  # training tokens hashed at a time
PAIRS = 1 << 18  # candidate pairs compared at a time

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """What questions and training data have in common.

    Attributes:
        tokens: (questions,) int64, tokens of each.
        contaminated: (questions,) int64, how many of them lie in a match.
        pairs: (pairs, 2) int64, each document and question with a match, in order, once.
    """

    tokens: Ints
    contaminated: Ints
    pairs: Ints

    @property
    def fractions(self) -> npt.NDArray[np.float64]:
        """(questions,) contamination between 0 and 1; 0 for a question without tokens."""
        return self.contaminated / np.maximum(self.tokens, 1)

    def documents(self) -> Ints:
        """Numbers of the documents that match a question which is not clean."""
        not_clean = self.fractions >= CLEAN
        return np.unique(self.pairs[not_clean[self.pairs[:, 1]], 0])


class QuestionIndex:
    """Hashes of every run of `EXACT` tokens in the questions.

    Args:
        questions: ids of each, without begin and end.
        min_length: fewest tokens of a match, L in the paper; below `EXACT`, it stands for that too.
        skips: most positions of a match that may differ.

    Raises:
        ValueError: min_length below 1, or negative skips.

    Example:
        >>> QuestionIndex([[1, 2, 3, 4]], min_length=3).scan(TokenShards("shards")).fractions
    """

    def __init__(
        self,
        questions: Sequence[Sequence[int]],
        *,
        min_length: int = MIN_LENGTH,
        skips: int = SKIPS,
    ) -> None:
        if min_length < 1:
            raise ValueError(f"min_length: expected at least 1, got {min_length}")
        if skips < 0:
            raise ValueError(f"skips: expected a number >= 0, got {skips}")
        self.min_length, self.skips = min_length, skips
        self.exact = min(EXACT, min_length)
        self.lengths = np.array([len(ids) for ids in questions], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.tokens = np.concatenate([np.empty(0, np.int64), *map(np.asarray, questions)])
        self.tokens = self.tokens.astype(np.int64)
        # Multilinear hashing with random odd factors: the upper half of the bits is as good as
        # random (Lemire & Kaser 2014, "Strongly universal string hashing is fast",
        # arXiv:1202.4961).
        generator = np.random.Generator(np.random.PCG64(0))
        self._factors = generator.integers(0, 1 << 63, self.exact, dtype=np.uint64) * 2 + 1
        hashes = self._hash(self.tokens)
        starts = np.arange(len(hashes))
        fits = self.ends[self._question(starts)] - starts >= min_length
        starts, hashes = starts[fits], hashes[fits]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._starts = hashes[order], starts[order]
        # One byte for each value of the leading bits: at most a sixteenth of them are in use, so it
        # answers for most training tokens, and much faster than a search does.
        self._shift = np.uint64(64 - max(8, (16 * len(hashes)).bit_length()))
        self._filter = np.zeros(1 << (64 - int(self._shift)), dtype=np.bool_)
        self._filter[self._hashes >> self._shift] = True

    def _hash(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """Of the `exact` tokens from each position on; modulo 2^64."""
        ids = tokens.astype(np.uint64)
        count = max(0, len(ids) - self.exact + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for k, factor in enumerate(self._factors):
            hashes += ids[k : k + count] * factor
        return hashes

    def _question(self, positions: Ints) -> Ints:
        """Question of each position in `tokens`."""
        return np.searchsorted(self.ends, positions, side="right")

    def scan(
        self, shards: TokenShards, progress: Callable[[int, int, str], object] | None = None
    ) -> Overlap:
        """Compare with all documents; `progress` gets (tokens done, tokens in all, "")."""
        # +1 where a match begins, -1 after it ends: its running sum is > 0 inside of matches.
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
        found = np.unique(np.concatenate(pairs))
        return Overlap(
            self.lengths,
            contaminated,
            np.stack(np.divmod(found, max(1, len(self.lengths))), axis=1),
        )

    def _candidates(self, tokens: npt.NDArray[Any], chunk: int) -> Iterator[tuple[Ints, Ints]]:
        """(starts in `self.tokens`, places in `tokens`) with equal hashes, some at a time."""
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
        """(starts, places, lengths) of the longest match from each candidate on, if there is one.

        A candidate whose tokens before it agree as well is left out: the match from there on
        covers its own.
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
    """Which questions are in each of `SUBSETS`, given their contamination."""
    values = np.asarray(fractions, dtype=np.float64)
    clean, dirty = values < CLEAN, values >= DIRTY
    return dict(zip(SUBSETS, (clean, ~clean, ~dirty, dirty), strict=True))


@dataclass(frozen=True)
class SubsetScore:
    """Score of a subset beside that of all questions.

    Attributes:
        subset: one of `SUBSETS`.
        count: questions in it, n.
        contamination: mean of theirs.
        mean: mean score of them.
        expected: mean score of all questions, mu_n.
        z: (mean - expected) / sigma_n, where sigma_n is the standard deviation of all scores over
            the root of n; NaN for an empty subset or equal scores.
    """

    subset: str
    count: int
    contamination: float
    mean: float
    expected: float
    z: float


def split_scores(scores: npt.ArrayLike, fractions: npt.ArrayLike) -> list[SubsetScore]:
    """Scores of a benchmark's subsets, with the statistic of the paper's appendix A.6.

    Args:
        scores: (questions,) such as 1 for a right answer and 0 for a wrong one.
        fractions: (questions,) contamination of each.

    Raises:
        ValueError: no questions, or not as many scores as fractions.
    """
    score, share = (np.asarray(x, dtype=np.float64) for x in (scores, fractions))
    if score.ndim != 1 or score.shape != share.shape or not score.size:
        raise ValueError(
            f"scores: expected one for each of {share.size} questions (at least 1), got "
            f"{score.shape}"
        )
    mean, deviation, found = float(score.mean()), float(score.std()), []
    for name, chosen in subsets(share).items():
        n = int(chosen.sum())
        own, contamination, z = math.nan, math.nan, math.nan
        if n:
            own, contamination = float(score[chosen].mean()), float(share[chosen].mean())
            if deviation:
                z = (own - mean) / (deviation / math.sqrt(n))
        found.append(SubsetScore(name, n, contamination, own, mean, z))
    return found


def is_affected(scores: Sequence[SubsetScore]) -> bool:
    """Whether contamination changed the score: |Z| > 2 in all four subsets."""
    return all(abs(score.z) > SIGNIFICANT for score in scores)
