"""The measured cases: shapes from Llama-style models, each with a reason.

The letters are those of the ops' docstrings: B batch, S/T query/key length, H query heads, K
key-value heads, D head size, N tokens, V vocabulary, E width, F width of the feed-forward layer, L
layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llama_fast.ops.backends.table import TABLE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BOTH = tuple(DTYPES)
FORWARD, BACKWARD, STEP = "forward", "forward+backward", "training step"

# Sizes for `Case.small`, which runs all code but whose times mean nothing.
_SMALL = {"B": 2, "H": 4, "S": 64, "T": 64, "N": 32, "V": 384, "E": 64, "F": 128, "L": 2}


@dataclass(frozen=True)
class Case:
    """An op with given shapes, dtype and options.

    Attributes:
        op: name of the op, or "llama_training".
        variant: the option that the case tests; "" for the plain op.
        sizes: letter -> size.
        dtype: a key of `DTYPES`.
        mode: FORWARD, BACKWARD or STEP.
        reason: why this case is measured.
        options: options for `make_inputs` and the implementations; `variant` describes them.
    """

    op: str
    variant: str
    sizes: dict[str, int]
    dtype: str
    mode: str
    reason: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """The sizes that are not defaults, such as "S=2048 D=64 H=8"."""
        same = {"B": 1, "K": self.sizes.get("H"), "T": self.sizes.get("S")}
        return " ".join(f"{n}={x}" for n, x in self.sizes.items() if same.get(n) != x)

    @property
    def title(self) -> str:
        """Variant and shape."""
        return f"{self.variant}, {self.shape}" if self.variant else self.shape

    @property
    def name(self) -> str:
        """A unique name: op, variant, sizes, dtype and mode."""
        return f"{self.op} {self.title} {self.dtype} {self.mode}"

    @property
    def backward(self) -> bool:
        """Whether gradients are computed, too."""
        return self.mode == BACKWARD

    def small(self) -> Case:
        """The same case with sizes that take hardly any time."""
        if "S" not in self.sizes or "H" not in self.sizes:
            shrunk = {n: min(x, _SMALL.get(n, x)) for n, x in self.sizes.items()}
            return replace(self, sizes=shrunk)
        group = self.sizes["H"] // self.sizes["K"]
        sizes = {n: min(x, _SMALL.get(n, x)) for n, x in self.sizes.items()}
        sizes["K"] = max(1, sizes["H"] // group)
        sizes["H"] = sizes["K"] * group
        options = dict(self.options)
        if "window" in options:
            options["window"] = 16
        if "documents" in options:
            options["documents"] = [23, 1, 30, 10]
        if "lengths" in options:
            options["lengths"] = [sizes["S"], sizes["S"] // 2]
        if "copies" in options:
            options["copies"] = 2
        return replace(self, sizes=sizes, options=options)

    def work(self) -> tuple[str, float]:
        """The work that any implementation must do: ("gemm", FLOPs), ("read" or "copy", bytes)."""
        s, size = self.sizes, DTYPES[self.dtype].itemsize
        if self.op == "attention":
            B, H, D = s["B"], s["H"], s["D"]
            if "copies" in self.options:  # decoding: all keys and values are read once
                return "read", 2.0 * B * s["K"] * s["T"] * D * size
            # Two products forward, five backward (scores again, and four gradients).
            return "gemm", 4.0 * self._pairs() * H * D * (3.5 if self.backward else 1.0)
        if self.op == "attention_decode":  # the cache is read once
            return "read", 2.0 * s["B"] * s["K"] * s["T"] * s["D"] * size
        if self.op == "cross_entropy":  # logits in, gradient out
            return "copy", 2.0 * s["N"] * s["V"] * size
        if self.op == "linear_cross_entropy":
            kept = s["N"] * (1 - self.options.get("ignored", 0.0))
            return "gemm", 6.0 * kept * s["E"] * s["V"]
        if self.op == "rms_norm":  # x, y; grad, x, grad of x. Residual: x, r, y, sum; twice
            return "copy", (8.0 if self.options.get("residual") else 5.0) * s["N"] * s["E"] * size
        if self.op == "swiglu":  # gate, up, out; gate, up, grad, two gradients
            return "copy", 8.0 * s["N"] * s["F"] * size
        if self.op == "rope":  # q and k: in, out; gradient in, out
            return "copy", 4.0 * s["B"] * (s["H"] + s["K"]) * s["S"] * s["D"] * size
        E, tokens = s["E"], s["B"] * s["S"]
        weights = s["V"] * E + s["L"] * (4 * E * E + 3 * E * s["F"])  # those in a matrix product
        return "gemm", 6.0 * tokens * weights + 3.5 * 4 * tokens * s["S"] / 2 * E * s["L"]

    def _pairs(self) -> float:
        """Query-key pairs that are not masked, summed over the batch; half of a square if causal.

        As in FlashAttention's benchmarks, the diagonal is not treated separately.
        """
        B, S, T = self.sizes["B"], self.sizes["S"], self.sizes["T"]
        if "documents" in self.options:
            return sum(n * n / 2 for n in self.options["documents"])
        if "window" in self.options:
            w = min(self.options["window"], S)
            return B * (S * w - w * w / 2)
        if "lengths" in self.options:  # rows of padding see all real keys
            return sum(n * n / 2 + (S - n) * n for n in self.options["lengths"])
        return B * S * T / 2 if self.options["causal"] else float(B * S * T)


def _attention(
    variant: str, reason: str, mode: str, dtypes: tuple[str, ...], options: dict, **sizes: int
) -> Iterator[Case]:
    S, H = sizes["S"], sizes["H"]
    full = {"B": 1, "S": S, "T": S, "D": 64, "H": H, "K": H} | sizes
    for dtype in dtypes:
        yield Case("attention", variant, full, dtype, mode, reason, {"causal": True} | options)


def _decode(reason: str, copies: int, page: int = 0, **sizes: int) -> Case:
    """Append S tokens to caches, which then hold T keys; each of `copies` stands for a layer."""
    variant = f"pages of {page}" if page else ""
    options = {"copies": copies, "page": page}
    return Case("attention_decode", variant, sizes, "bfloat16", FORWARD, reason, options)


# 2048 tokens in total: the longest document is a third of them, the shortest a chat turn.
DOCUMENTS = [700, 90, 33, 512, 260, 128, 17, 308]


def _cpu_attention() -> Iterator[Case]:
    bf16 = ("bfloat16",)
    for mode in (FORWARD, BACKWARD):
        for S, D, reason in (
            (2048, 64, "a layer of a small model"),
            (2048, 128, "the head size of Llama 2 and 3"),
            (4096, 128, "the context length of Llama 2"),
        ):
            yield from _attention("causal", reason, mode, BOTH, {}, S=S, D=D, H=8)
    yield from _attention(
        "causal", "4 query heads per key head, as in Llama 3", BACKWARD, bf16, {}, S=2048, H=8, K=2
    )
    for mode in (FORWARD, BACKWARD):
        for S in (2048, 4096, 8192):
            reason = "cost should grow with S, not with its square"
            options = {"window": 512}
            yield from _attention("window 512", reason, mode, bf16, options, S=S, H=8)
    for mode in (FORWARD, BACKWARD):
        reason, packed = "documents of mixed length in one row", {"documents": DOCUMENTS}
        yield from _attention("8 packed documents", reason, mode, bf16, packed, S=2048, H=8)
    yield from _attention(
        "float bias (H,S,T), not causal",
        "relative positions of an encoder; the bias needs no gradient",
        BACKWARD,
        bf16,
        {"causal": False, "bias": True},
        S=2048,
        H=8,
    )
    yield from _attention(
        "float bias (H,S,T), causal",
        "relative positions of a decoder; the bias needs no gradient",
        BACKWARD,
        bf16,
        {"bias": True},
        S=2048,
        H=8,
    )
    yield from _attention(
        "key padding",
        "a batch of prompts of different lengths, padded on the right",
        BACKWARD,
        bf16,
        {"lengths": [2048, 1024]},
        B=2,
        S=2048,
        H=8,
    )
    for B, copies in ((1, 64), (8, 8)):
        # One K/V pair per layer, so that it is read from memory as in a model, not from cache.
        reason = "one new token of SmolLM2-135M against a full cache"
        sizes = {"B": B, "S": 1, "T": 4096, "D": 64, "H": 9, "K": 3}
        yield from _attention("decode", reason, FORWARD, bf16, {"copies": copies}, **sizes)
    for mode in (FORWARD, BACKWARD):
        yield from _attention("causal", "overhead of a call", mode, bf16, {}, S=16, H=8)


def _cpu() -> Iterator[Case]:
    yield from _cpu_attention()
    for page in (0, 16):
        smol = {"B": 8, "S": 1, "T": 4096, "D": 64, "H": 9, "K": 3}
        yield _decode("SmolLM2-135M, appending the new token in the same call", 8, page, **smol)
    yield Case("cross_entropy", "", {"N": 8, "V": 32000}, "float32", BACKWARD, "overhead of a call")
    for N, V, reason in (
        (2048, 32000, "the vocabulary of Llama 2"),
        (512, 128256, "the vocabulary of Llama 3"),
    ):
        for dtype in BOTH:
            for inplace in (False, True):
                yield Case(
                    "cross_entropy",
                    "in place" if inplace else "",
                    {"N": N, "V": V},
                    dtype,
                    BACKWARD,
                    reason,
                    {"inplace": inplace},
                )
    for N, E, V, ignored, reason in (
        (2048, 1024, 32000, 0.0, "the head of a small model"),
        (2048, 1024, 32000, 0.75, "fine-tuning on answers: prompts have no loss"),
        (1024, 2048, 128256, 0.0, "the head of Llama 3.2 1B"),
    ):
        for dtype in BOTH:
            variant = f"{ignored:.0%} ignored" if ignored else ""
            sizes = {"N": N, "E": E, "V": V}
            options = {"ignored": ignored}
            yield Case("linear_cross_entropy", variant, sizes, dtype, BACKWARD, reason, options)
    for residual in (False, True):
        for dtype in BOTH:
            yield Case(
                "rms_norm",
                "residual" if residual else "",
                {"N": 4096, "E": 2048},
                dtype,
                BACKWARD,
                "two per block, the second after a residual addition",
                {"residual": residual},
            )
    for dtype in BOTH:
        sizes = {"B": 4, "H": 16, "K": 16, "S": 1024, "D": 64}
        yield Case("rope", "", sizes, dtype, BACKWARD, "queries and keys of a layer")
    for dtype in BOTH:
        sizes = {"N": 2048, "F": 5504}
        yield Case("swiglu", "", sizes, dtype, BACKWARD, "a feed-forward layer of E=2048")
    for dtype in BOTH:
        # In bfloat16, weights, activations and optimizer state are all bfloat16, on every side.
        sizes = {"B": 4, "S": 512, "E": 512, "L": 8, "H": 8, "K": 8, "V": 32000, "F": 1376}
        yield Case("llama_training", "Llama 58M", sizes, dtype, STEP, "a whole training step")


def _cuda() -> Iterator[Case]:
    bf16 = ("bfloat16",)
    for mode in (FORWARD, BACKWARD):
        for B, S, D, H, K, reason in (
            (4, 2048, 128, 32, 32, "a layer of Llama 2 7B"),
            (4, 4096, 128, 32, 8, "a layer of Llama 3 8B"),
            (4, 4096, 64, 32, 32, "a small head"),
        ):
            sizes = {"B": B, "S": S, "T": S, "D": D, "H": H, "K": K}
            yield from _attention("causal", reason, mode, bf16, {}, **sizes)
        for S in (4096, 8192, 16384):
            options = {"window": 512}
            reason = "cost should grow with S, not with its square"
            yield from _attention("window 512", reason, mode, bf16, options, S=S, D=128, H=16)
        reason = "documents of mixed length in one row"
        packed = {"documents": [8 * n for n in DOCUMENTS]}
        yield from _attention(
            "8 packed documents", reason, mode, bf16, packed, S=16384, D=128, H=16
        )
    for B, copies in ((1, 16), (32, 2)):
        reason = "one new token of Llama 3 8B against a full cache"
        sizes = {"B": B, "S": 1, "T": 8192, "D": 128, "H": 32, "K": 8}
        yield from _attention("decode", reason, FORWARD, bf16, {"copies": copies}, **sizes)
    for B, T, copies, reason in (
        (1, 1024, 32, "one user: overhead of a call"),
        (1, 8192, 16, "one user: all multiprocessors must read the cache"),
        (1, 131072, 2, "one user, the context length of Llama 3.1"),
        (64, 1024, 4, "many users, short"),
        (16, 8192, 2, "many users, long"),
    ):
        for page in (0, 256) if T == 8192 else (0,):
            sizes = {"B": B, "S": 1, "T": T, "D": 128, "H": 32, "K": 8}
            yield _decode(f"Llama 3 8B, {reason}", copies, page, **sizes)
    for page, S, reason in ((16, 1, "the pages of vLLM"), (0, 8, "speculative decoding")):
        sizes = {"B": 16, "S": S, "T": 8192, "D": 128, "H": 32, "K": 8}
        yield _decode(f"Llama 3 8B, {reason}", 2, page, **sizes)
    for N, V, reason in ((8192, 32000, "Llama 2"), (8192, 128256, "Llama 3")):
        for inplace in (False, True):
            variant, options = "in place" if inplace else "", {"inplace": inplace}
            sizes = {"N": N, "V": V}
            reason_v = f"the vocabulary of {reason}"
            yield Case("cross_entropy", variant, sizes, bf16[0], BACKWARD, reason_v, options)
    for ignored in (0.0, 0.75):
        variant = f"{ignored:.0%} ignored" if ignored else ""
        sizes, some = {"N": 8192, "E": 4096, "V": 128256}, {"ignored": ignored}
        reason = "the head of Llama 3 8B"
        yield Case("linear_cross_entropy", variant, sizes, bf16[0], BACKWARD, reason, some)
    for residual in (False, True):
        variant, options = "residual" if residual else "", {"residual": residual}
        sizes = {"N": 16384, "E": 4096}
        yield Case("rms_norm", variant, sizes, bf16[0], BACKWARD, "Llama 3 8B", options)
    sizes = {"B": 4, "H": 32, "K": 8, "S": 4096, "D": 128}
    yield Case("rope", "", sizes, bf16[0], BACKWARD, "Llama 3 8B")
    yield Case("swiglu", "", {"N": 16384, "F": 14336}, bf16[0], BACKWARD, "Llama 3 8B")
    for dtype in BOTH:
        sizes = {"B": 16, "S": 2048, "E": 1024, "L": 12, "H": 16, "K": 16, "V": 32000, "F": 2816}
        yield Case("llama_training", "Llama 220M", sizes, dtype, STEP, "a whole training step")


OPS = (*TABLE, "llama_training")
_CASES = {"cpu": tuple(_cpu()), "cuda": tuple(_cuda())}


def cases(
    device: str = "cpu", ops: list[str] | None = None, words: str = "", quick: bool = False
) -> list[Case]:
    """Select the cases for a device.

    Args:
        device: "cpu" or "cuda"; a GPU has larger cases.
        ops: names of ops to select; None for all.
        words: select only cases whose name contains all of these words.
        quick: whether to use small sizes.

    Raises:
        ValueError: an op is unknown, or no case is selected.
    """
    for op in ops or ():
        if op not in OPS:
            raise ValueError(f"--op: expected names among {', '.join(OPS)}; got {op!r}")
    chosen = [
        case
        for case in _CASES[device]
        if (not ops or case.op in ops) and all(word in case.name for word in words.split())
    ]
    if not chosen:
        raise ValueError(f"--case: expected words of a case's name (see --list), got {words!r}")
    if not quick:
        return chosen
    return list({case.name: case for case in (c.small() for c in chosen)}.values())


def percent(case: Case, seconds: float, limits: dict[str, float]) -> float | None:
    """Share of the machine's measured limit that a time of `seconds` reaches, in percent."""
    kind, amount = case.work()
    limit = limits.get(f"gemm {case.dtype}" if kind == "gemm" else kind, math.nan)
    return None if math.isnan(limit) else 100.0 * amount / seconds / limit
