"""The configuration of a Llama model, and presets of the published ones."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Llama3RopeScaling:
    """How Llama 3.1 and later stretch RoPE beyond the context length of Llama 3.

    Wavelengths (in tokens) shorter than ``original / high_freq_factor`` are kept, those longer than
    ``original / low_freq_factor`` are multiplied by ``factor``, and those between are interpolated.
    Source: Llama 3 technical report (arXiv:2407.21783) and ``rope_type: llama3`` of Hugging Face.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not _is_number(value):
                raise ValueError(f"{name}: expected a finite number, got {value!r:.80}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "low_freq_factor, high_freq_factor: expected 0 < low < high, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if self.factor <= 0 or self.original_max_position_embeddings <= 0:
            raise ValueError(
                "factor, original_max_position_embeddings: expected positive numbers, got "
                f"{self.factor} and {self.original_max_position_embeddings}"
            )


@dataclass(frozen=True)
class LlamaConfig:
    """The architecture of a Llama model.

    Attributes:
        vocab_size: V, number of token ids.
        embed_dim: E, width of the residual stream.
        num_heads: H, query heads.
        num_layers: transformer blocks.
        p_dropout: probability of dropout in training, applied to attention probabilities and to the
            outputs of attention and feed-forward layers.
        num_kv_heads: K, key-value heads (grouped-query attention), a divisor of H. Default H.
        head_dim: D, even. Default E / H.
        ffn_dim: width of the feed-forward layer. Default 8/3 E rounded up to a multiple of 256, as
            in Llama 2.
        max_seq_len: longest sequence the model accepts.
        rms_norm_eps: added to the mean square in RMSNorm.
        rope_theta: base of the RoPE wavelengths.
        rope_scaling: Llama 3.1's stretching of RoPE, or None.
        rope_factors: D/2 numbers that divide the RoPE frequencies (GGUF's ``rope_freqs``; for
            linear scaling all are equal), or None. Cannot be combined with ``rope_scaling``.
        tie_embeddings: whether the output head uses the weight of the embedding.

    Example:
        >>> LlamaConfig(vocab_size=512, embed_dim=64, num_heads=8, num_layers=5).head_dim
        8
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_layers: int
    p_dropout: float = 0.0
    num_kv_heads: int = 0
    head_dim: int = 0
    ffn_dim: int = 0
    max_seq_len: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Llama3RopeScaling | None = None
    rope_factors: tuple[float, ...] | None = None
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "embed_dim", "num_heads", "num_layers", "max_seq_len"):
            self._check(name, "a positive int", _is_positive_int(getattr(self, name)))
        if not self.head_dim:
            self._check(
                "embed_dim",
                f"a multiple of num_heads = {self.num_heads} (or give head_dim)",
                self.embed_dim % self.num_heads == 0,
            )
        # A frozen dataclass is filled in through object.__setattr__.
        defaults = {
            "num_kv_heads": self.num_heads,
            "head_dim": self.embed_dim // self.num_heads,
            "ffn_dim": -(-(8 * self.embed_dim // 3) // 256) * 256,
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
            self._check(name, "a positive int", _is_positive_int(getattr(self, name)))
        self._check("head_dim", "an even number, for RoPE's pairs", self.head_dim % 2 == 0)
        self._check(
            "num_kv_heads",
            f"a divisor of num_heads = {self.num_heads}",
            self.num_heads % self.num_kv_heads == 0,
        )
        p, eps, theta = self.p_dropout, self.rms_norm_eps, self.rope_theta
        self._check("p_dropout", "0 <= p <= 1", _is_number(p) and 0 <= p <= 1)
        self._check("rms_norm_eps", "a number >= 0", _is_number(eps) and eps >= 0)
        self._check("rope_theta", "a positive number", _is_number(theta) and theta > 0)
        self._check("tie_embeddings", "a bool", isinstance(self.tie_embeddings, bool))
        scaling = self.rope_scaling
        self._check(
            "rope_scaling",
            "None or a Llama3RopeScaling",
            scaling is None or isinstance(scaling, Llama3RopeScaling),
        )
        if self.rope_factors is not None:
            self._check("rope_factors", "None beside rope_scaling", self.rope_scaling is None)
            self._check(
                "rope_factors",
                f"head_dim / 2 = {self.head_dim // 2} positive numbers",
                len(self.rope_factors) == self.head_dim // 2
                and all(_is_number(factor) and factor > 0 for factor in self.rope_factors),
            )

    def _check(self, name: str, expected: str, ok: bool) -> None:
        if not ok:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    @classmethod
    def preset(cls, name: str, **changes: object) -> LlamaConfig:
        """The configuration of a published model; see :func:`preset_names`.

        Args:
            name: for example "llama2-7b", "llama3.2-1b", "smollm2-135m", "debug".
            **changes: fields to replace, for example ``p_dropout=0.1``.

        Raises:
            ValueError: there is no such preset; the message suggests similar names.

        Example:
            >>> LlamaConfig.preset("llama2-7b").num_parameters()
            6738415616
        """
        key = name.lower()
        if key not in _PRESETS:
            near = difflib.get_close_matches(key, _PRESETS, n=3, cutoff=0.4) or preset_names()
            raise ValueError(f"name: no preset {name!r}; did you mean {' or '.join(near)}?")
        return dataclasses.replace(_PRESETS[key], **changes)  # type: ignore[arg-type]

    def num_parameters(self) -> int:
        """Number of weights; tied embeddings count once."""
        E, D = self.embed_dim, self.head_dim
        attention = 2 * E * self.num_heads * D + 2 * E * self.num_kv_heads * D
        feed_forward = 3 * E * self.ffn_dim
        norms = 2 * E
        layers = self.num_layers * (attention + feed_forward + norms)
        vocabularies = 1 if self.tie_embeddings else 2
        return vocabularies * self.vocab_size * E + layers + E


def preset_names() -> list[str]:
    """The names that :meth:`LlamaConfig.preset` accepts."""
    return list(_PRESETS)


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) < float("inf")


def _llama2(embed_dim: int, heads: int, layers: int, kv_heads: int, ffn_dim: int) -> LlamaConfig:
    return LlamaConfig(
        32000,
        embed_dim,
        heads,
        layers,
        num_kv_heads=kv_heads,
        ffn_dim=ffn_dim,
        max_seq_len=4096,
    )


def _llama3(
    embed_dim: int,
    heads: int,
    layers: int,
    ffn_dim: int,
    scaling_factor: float | None = None,
    tied: bool = False,
) -> LlamaConfig:
    return LlamaConfig(
        128256,
        embed_dim,
        heads,
        layers,
        num_kv_heads=8,
        ffn_dim=ffn_dim,
        max_seq_len=8192 if scaling_factor is None else 131072,
        rope_theta=500000.0,
        rope_scaling=None if scaling_factor is None else Llama3RopeScaling(scaling_factor),
        tie_embeddings=tied,
    )


def _smollm2(
    embed_dim: int, heads: int, layers: int, kv_heads: int, ffn_dim: int, theta: float
) -> LlamaConfig:
    return LlamaConfig(
        49152,
        embed_dim,
        heads,
        layers,
        num_kv_heads=kv_heads,
        ffn_dim=ffn_dim,
        max_seq_len=8192,
        rope_theta=theta,
        tie_embeddings=True,
    )


_PRESETS: dict[str, LlamaConfig] = {
    "llama2-7b": _llama2(4096, 32, 32, 32, 11008),
    "llama2-13b": _llama2(5120, 40, 40, 40, 13824),
    "llama2-70b": _llama2(8192, 64, 80, 8, 28672),
    "llama3-8b": _llama3(4096, 32, 32, 14336),
    "llama3-70b": _llama3(8192, 64, 80, 28672),
    "llama3.1-8b": _llama3(4096, 32, 32, 14336, 8.0),
    "llama3.1-70b": _llama3(8192, 64, 80, 28672, 8.0),
    "llama3.1-405b": _llama3(16384, 128, 126, 53248, 8.0),
    "llama3.2-1b": _llama3(2048, 32, 16, 8192, 32.0, tied=True),
    "llama3.2-3b": _llama3(3072, 24, 28, 8192, 32.0, tied=True),
    "tinyllama-1.1b": LlamaConfig(32000, 2048, 32, 22, num_kv_heads=4, ffn_dim=5632),
    "smollm2-135m": _smollm2(576, 9, 30, 3, 1536, 100000.0),
    "smollm2-360m": _smollm2(960, 15, 32, 5, 2560, 100000.0),
    "smollm2-1.7b": _smollm2(2048, 32, 24, 32, 8192, 130000.0),
    "stories260k": LlamaConfig(
        512, 64, 8, 5, num_kv_heads=4, ffn_dim=172, max_seq_len=512, tie_embeddings=True
    ),
    "debug": LlamaConfig(256, 64, 4, 2, num_kv_heads=2, ffn_dim=128, max_seq_len=256),
}
