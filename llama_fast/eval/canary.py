"""Exposure: how strongly a model memorised canaries that were planted in its training data.

Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232). The log-perplexity of a text x is
P(x) = sum of -log2 Pr(x_i | x_1..x_i-1). The rank of a canary s[r] is the number of values r' in
the randomness space R with P(s[r']) <= P(s[r]), including r itself, and

    exposure(s[r]) = log2 |R| - log2 rank(s[r])

in bits. It is log2 |R| if no value is more likely, and about 1.44 on average if the model never saw
the canary. If R
is too large to enumerate, a skew-normal distribution is fitted to the log-perplexities of a sample,
and the exposure is -log2 of its cumulative probability at P(s[r]) (section 4.3 of the paper).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from llama_fast._extras import lacking
from llama_fast.data.canaries import Canaries, Canary, candidates
from llama_fast.models import LLaMA
from llama_fast.tokenizers import Tokenizer

ENUMERATE = 100_000  # largest randomness space that is enumerated by default
SAMPLE = 10_000
BATCH_TOKENS = 8192

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Exposure:
    """The exposure of one canary.

    Attributes:
        canary: the canary that was planted.
        log_perplexity: log-perplexity of its text, in bits.
        rank: its rank in R, 1 for the most likely; None if R was sampled.
        exposure: exposure in bits.
    """

    canary: Canary
    log_perplexity: float
    rank: int | None
    exposure: float


@dataclass(frozen=True)
class ExposureReport:
    """Exposures of all canaries.

    Attributes:
        space_bits: log2 |R|.
        compared: number of values of R with which the canaries are compared.
        fit: p-value of a Kolmogorov-Smirnov test that their log-perplexities are skew-normal; None
            if R was enumerated. If it is small, the exposures are unreliable.
        exposures: one for each canary, in the given order.
    """

    space_bits: float
    compared: int
    fit: float | None
    exposures: list[Exposure]


@torch.inference_mode()
def log_perplexities(
    model: LLaMA, texts: Iterable[list[int]], *, batch_tokens: int = BATCH_TOKENS
) -> Floats:
    """Log-perplexity of each text given its first token, in bits.

    Texts are packed into rows of about `batch_tokens` tokens, without padding.

    Raises:
        ValueError: a text has fewer than 2 tokens, or more than the model's max_seq_len.
    """
    device, results = model.head_weight.device, []
    for batch in _batches(texts, batch_tokens):
        lengths = torch.tensor([len(ids) - 1 for ids in batch])
        if int(lengths.min()) < 1:
            raise ValueError("texts: expected at least 2 tokens each, got fewer")
        tokens = torch.tensor([t for ids in batch for t in ids[:-1]]).unsqueeze(0)
        targets = torch.tensor([t for ids in batch for t in ids[1:]]).unsqueeze(0)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        losses = model.loss(
            tokens.to(device),
            targets.to(device),
            cu_seqlens=offsets.to(device, torch.int32),
            reduction="none",
        )
        which = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        sums = torch.zeros(len(batch), dtype=torch.float64)
        sums.index_add_(0, which, losses.reshape(-1).double().cpu())
        results.append(sums.numpy() / math.log(2))
    return np.concatenate([np.empty(0), *results])


def _batches(texts: Iterable[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    tokens = 0
    for ids in texts:
        if batch and tokens + len(ids) > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(ids)
        tokens += len(ids)
    if batch:
        yield batch


def exact_exposure(value: float, everything: Floats) -> tuple[int, float]:
    """(rank, exposure) of a log-perplexity among those of all values in R, including itself."""
    rank = int((everything <= value).sum())
    if rank < 1:
        raise ValueError("value: expected it among the log-perplexities of all of R")
    return rank, math.log2(len(everything)) - math.log2(rank)


def fitted_exposure(values: Floats, sample: Floats) -> tuple[Floats, float]:
    """(exposures, p-value of the fit) of log-perplexities, given those of a sample of R.

    Raises:
        ImportError: scipy is not installed.
        ValueError: the sample has fewer than 100 values, or all are equal.
    """
    try:
        from scipy import stats
    except ImportError:
        raise ImportError(lacking("samples of the canaries", "scipy", "eval")) from None
    if len(sample) < 100 or not sample.std() > 0:
        raise ValueError(
            f"sample: expected at least 100 log-perplexities that differ, got {len(sample)}"
        )
    shape, loc, scale = stats.skewnorm.fit(sample)
    fit = stats.kstest(sample, stats.skewnorm(shape, loc, scale).cdf).pvalue
    return -stats.skewnorm.logcdf(values, shape, loc, scale) / math.log(2), float(fit)


def measure(
    model: LLaMA,
    tokenizer: Tokenizer,
    planted: Canaries,
    *,
    sample: int | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int, str], object] | None = None,
) -> ExposureReport:
    """Measure the exposure of each canary.

    Each text is a document that starts with the tokenizer's begin token. Without such a token the
    first token of the text is not scored, which affects all of R equally.

    Args:
        model, tokenizer: the model and its tokenizer.
        planted: the canaries.
        sample: number of values of R to draw; None to enumerate R.
        seed: seed of the sample.
        batch_tokens: tokens of a forward pass.
        progress: called as ``progress(texts done, number of texts, "")``.

    Raises:
        ValueError: see :func:`log_perplexities` and :func:`fitted_exposure`.
    """
    total = planted.space if sample is None else sample

    def encoded() -> Iterator[list[int]]:
        for number, text in enumerate(candidates(planted, sample, seed)):
            if progress is not None and number % 256 == 0:
                progress(number, total, "")
            yield tokenizer.encode_document(text, end=False)

    everything = log_perplexities(model, encoded(), batch_tokens=batch_tokens)
    numbers = [int(canary.digits) for canary in planted.canaries]
    fit = None
    ranked: list[tuple[int | None, float]]
    if sample is None:
        # Looked up in R, not computed again: in another batch the last bits may differ.
        values = everything[numbers]
        ranked = [*(exact_exposure(value, everything) for value in values.tolist())]
    else:
        texts = (planted.text(n) for n in numbers)
        values = log_perplexities(
            model, (tokenizer.encode_document(text, end=False) for text in texts)
        )
        fitted, fit = fitted_exposure(values, everything)
        ranked = [(None, exposure) for exposure in fitted.tolist()]
    exposures = [
        Exposure(canary, value, rank, exposure)
        for canary, value, (rank, exposure) in zip(
            planted.canaries, values.tolist(), ranked, strict=True
        )
    ]
    return ExposureReport(math.log2(planted.space), len(everything), fit, exposures)
