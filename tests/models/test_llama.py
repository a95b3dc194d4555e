"""The model against transformers' of the same weights, by the criterion of the op tests.

The truth is the oracle beside this file, in float64; the yardstick is transformers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llama_fast import use_backend
from llama_fast.models import KVCache, LLaMA, LlamaConfig, load
from tests.models import oracle
from tests.models.peers import SHAPES, check, transformers_model

B, S = 2, 33  # S: more than one of anyone's blocks, and odd


class Pair:
    """Our model and transformers', of the same weights, and tokens for both."""

    def __init__(self, config: LlamaConfig, folder: Path, seed: int = 0) -> None:
        self.config = config
        self.theirs: transformers.LlamaForCausalLM = transformers_model(config, seed)
        self.theirs.save_pretrained(folder)
        self.ours, _ = load(folder)
        assert self.ours.config == config
        self.tokens = torch.randint(
            config.vocab_size, (B, S), generator=torch.Generator().manual_seed(1 + seed)
        )

    def truth(self, hidden: Tensor | None = None) -> Tensor:
        weights = {n: w.detach() for n, w in self.theirs.named_parameters()}
        return oracle.logits(self.config, weights, self.tokens, hidden)


@pytest.fixture(params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(SHAPES[request.param], tmp_path)


@pytest.fixture
def gqa(tmp_path: Path) -> Pair:
    return Pair(SHAPES["gqa-tied"], tmp_path)


def check_draws(folder: Path, logits: Callable[[Pair], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Checks what `logits` makes of several models: ours, the truth, transformers'.

    Which of two equally exact models errs less on one draw of weights is a matter of luck.
    """
    draws = [Pair(SHAPES["gqa-tied"], folder / str(seed), seed) for seed in range(6)]
    check("logits", *(torch.cat(parts) for parts in zip(*map(logits, draws), strict=True)))


@torch.no_grad()
def test_logits_are_transformers(pair: Pair) -> None:
    check("logits", pair.ours(pair.tokens), pair.truth(), pair.theirs(pair.tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_logits_on_other_backends(gqa: Pair, backend: str) -> None:
    with use_backend(backend):
        check("logits", gqa.ours(gqa.tokens), gqa.truth(), gqa.theirs(gqa.tokens).logits)


@torch.no_grad()
def test_float64_logits(pair: Pair) -> None:
    # transformers rounds to float32 inside, whatever the dtype: the yardstick is its float32 error,
    # scaled by the ratio of the unit roundoffs, twice since the truth has such an error of its own.
    truth = pair.truth()
    result = pair.ours.double()(pair.tokens)
    check("logits", result, truth, pair.theirs(pair.tokens).logits, 2 * 2.0**-29)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_transformers(tmp_path: Path, shape: str) -> None:
    """One tensor's gradient may by luck be further off than theirs, but not all of four models'."""
    gradients: dict[str, list[Tensor]] = {"ours": [], "truth": [], "theirs": []}
    for seed in range(4):
        pair = Pair(SHAPES[shape], tmp_path, seed)
        targets = pair.tokens.roll(-1, dims=1)
        targets[0, -5:] = -100  # padding counts for nothing

        def loss(logits: Tensor, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        theirs = dict(pair.theirs.named_parameters())
        weights = {name: w.detach().double().requires_grad_() for name, w in theirs.items()}
        loss(oracle.logits(pair.config, weights, pair.tokens)).backward()
        loss(pair.theirs(pair.tokens).logits).backward()
        pair.ours.loss(pair.tokens, targets).backward()
        for ours, name in names(pair.config).items():
            truth = weights[name].grad
            # All tensors count alike: each is scaled to about 1, exactly, by a power of two.
            size = 2.0 ** truth.square().mean().sqrt().log2().round()
            found = {"ours": pair.ours.get_parameter(ours).grad, "truth": truth}
            found["theirs"] = theirs[name].grad
            for key, gradient in found.items():
                gradients[key].append((gradient / size.to(gradient.dtype)).flatten())
    check("gradients", *(torch.cat(gradients[key]) for key in ("ours", "truth", "theirs")))


def names(config: LlamaConfig) -> dict[str, str]:
    """Our parameters' names and transformers', in the order in which both define them."""
    ours = [name for name, _ in LLaMA(config).named_parameters()]
    theirs = [
        name.replace("embedding", "model.embed_tokens")
        .replace("head.", "lm_head.")
        .replace("layers.", "model.layers.")
        .replace("attention_norm", "input_layernorm")
        .replace("feed_forward_norm", "post_attention_layernorm")
        .replace(".attention.", ".self_attn.")
        .replace(".feed_forward.", ".mlp.")
        for name in ours
    ]
    return {
        a: ("model." + b if b == "norm.weight" else b) for a, b in zip(ours, theirs, strict=True)
    }


@torch.no_grad()
def test_bfloat16_logits(pair: Pair) -> None:
    theirs, ours = pair.theirs.bfloat16(), pair.ours.bfloat16()
    weights = dict(theirs.named_parameters())
    truth = oracle.logits(pair.config, weights, pair.tokens)
    check("logits", ours(pair.tokens), truth, theirs(pair.tokens).logits)


def test_autocast(pair: Pair) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = pair.ours(pair.tokens)
        theirs = pair.theirs(pair.tokens).logits
    assert logits.dtype == torch.bfloat16
    check("logits", logits, pair.truth(), theirs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pair.ours.loss(pair.tokens, pair.tokens, shift=True)
    loss.backward()
    assert {weight.grad.dtype for weight in pair.ours.parameters()} == {torch.float32}


@torch.no_grad()
def test_cached_decoding_gives_the_logits_of_the_whole(pair: Pair) -> None:
    cache = KVCache(pair.config, B, S)
    # A prompt, single tokens, and several at once after a prompt
    parts = pair.tokens.split([10, 1, 1, 7, S - 19], dim=1)
    logits = torch.cat([pair.ours(part, cache=cache) for part in parts], dim=1)
    assert cache.length == S
    check("logits", logits, pair.truth(), pair.theirs(pair.tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(tmp_path: Path, side: str) -> None:
    pad = 6
    padding = torch.zeros(B, S + pad, dtype=torch.bool)
    where = slice(0, pad) if side == "left" else slice(S, S + pad)
    padding[0, where] = True  # row 1 is a full one beside it

    def logits(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.randint(pair.config.vocab_size, (B, S + pad))
        padded[0, ~padding[0]] = pair.tokens[0]
        logits = pair.ours(padded, src_key_padding_mask=padding)
        assert logits.isfinite().all()  # padding sees nothing at all on the left: not NaN
        theirs = pair.theirs(pair.tokens).logits
        return logits[:1, ~padding[0]], pair.truth()[:1], theirs[:1]

    check_draws(tmp_path, logits)


@torch.no_grad()
def test_left_padded_batch_decodes_with_a_cache(tmp_path: Path) -> None:
    pad, total = 4, S + 4
    padding = torch.zeros(B, total, dtype=torch.bool)
    padding[0, :pad] = True

    def logits(pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        padded = torch.cat([torch.zeros(B, pad, dtype=torch.int64), pair.tokens], dim=1)
        cache, logits = KVCache(pair.config, B, total), []
        for start, end in ((0, 20), (20, 21), (21, total)):
            mask = padding[:, :end]
            logits.append(pair.ours(padded[:, start:end], src_key_padding_mask=mask, cache=cache))
        row = torch.cat(logits, dim=1)[:1, pad:]
        return row, pair.truth()[:1], pair.theirs(pair.tokens).logits[:1]

    check_draws(tmp_path, logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_src_mask_hides_keys(gqa: Pair, kind: str) -> None:
    hidden = torch.rand(S, S, generator=torch.Generator().manual_seed(2)) < 0.3
    hidden.fill_diagonal_(False)
    mask = hidden if kind == "bool" else torch.zeros(S, S).masked_fill(hidden, -math.inf)
    attention_mask = (hidden | torch.ones(S, S).triu(1).bool()).logical_not()[None, None]
    theirs = gqa.theirs(gqa.tokens, attention_mask=attention_mask.expand(B, 1, S, S)).logits
    check("logits", gqa.ours(gqa.tokens, src_mask=mask), gqa.truth(hidden), theirs)


@torch.no_grad()
def test_float_src_mask_is_added_to_the_scores(gqa: Pair) -> None:
    plain = gqa.ours(gqa.tokens)
    shifted = gqa.ours(gqa.tokens, src_mask=torch.full((S, S), 2.0))  # softmax ignores a constant
    check("logits", shifted, gqa.truth(), gqa.theirs(gqa.tokens).logits)
    tilted = gqa.ours(gqa.tokens, src_mask=torch.arange(S).expand(S, S) * 0.1)
    assert not torch.equal(tilted, plain)


@torch.no_grad()
def test_the_usual_causal_mask_is_harmless(gqa: Pair) -> None:
    mask = torch.nn.Transformer.generate_square_subsequent_mask(S)
    logits = gqa.ours(gqa.tokens, src_mask=mask)
    check("logits", logits, gqa.truth(), gqa.theirs(gqa.tokens).logits)


def test_loss_is_the_cross_entropy_of_the_logits(gqa: Pair) -> None:
    targets = gqa.tokens.roll(-1, dims=1)
    targets[1, 3:9] = -100
    truth = F.cross_entropy(gqa.truth().flatten(0, 1), targets.flatten())
    theirs = F.cross_entropy(gqa.theirs(gqa.tokens).logits.flatten(0, 1), targets.flatten())
    check("loss", gqa.ours.loss(gqa.tokens, targets), truth, theirs)
    # shift=True takes the tokens themselves, and has no target for the last
    targets = gqa.tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    shifted = gqa.ours.loss(gqa.tokens, gqa.tokens, shift=True)
    check(
        "loss",
        shifted,
        F.cross_entropy(gqa.truth().flatten(0, 1), targets.flatten()),
        F.cross_entropy(gqa.theirs(gqa.tokens).logits.flatten(0, 1), targets.flatten()),
    )


def test_dropout_acts_in_training_only() -> None:
    model = LLaMA(LlamaConfig.preset("debug", p_dropout=0.2))
    tokens = torch.randint(256, (1, 16))

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(tokens)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    model.eval()
    assert torch.equal(run(0), run(1))


@pytest.mark.parametrize("where", ["attention", "residual"])
def test_dropout_acts_in_both_places(where: str) -> None:
    model = LLaMA(LlamaConfig.preset("debug", p_dropout=0.5)).train()
    for block in model.layers:
        if where == "attention":
            block.dropout.p = 0.0
        else:
            block.attention.p_dropout = 0.0
    tokens = torch.randint(256, (1, 16))
    assert not torch.equal(model(tokens), model(tokens))


def test_new_weights_have_the_promised_spread() -> None:
    config = LlamaConfig(2000, 256, 4, 8, ffn_dim=512)
    for name, weight in LLaMA(config).named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(weight, torch.ones_like(weight))
            continue
        writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.02 / math.sqrt(2 * 8) if writes_residual else 0.02
        # The standard error of a sample's standard deviation is std / sqrt(2 n).
        assert abs(weight.std().item() - std) < 5 * std / math.sqrt(2 * weight.numel()), name


def test_a_new_model_guesses_evenly() -> None:
    torch.manual_seed(0)
    model = LLaMA(LlamaConfig.preset("debug"))
    tokens = torch.randint(256, (4, 64))
    # Logits of standard deviation s cost s^2 / 2 over an even guess: 0.02 * sqrt(E) = 0.16.
    assert abs(model.loss(tokens, tokens, shift=True).item() - math.log(256)) < 0.1


def test_seed_form_is_the_config_form() -> None:
    torch.manual_seed(0)
    one = LLaMA(256, 64, 4, 2, 0.1, num_kv_heads=2)
    torch.manual_seed(0)
    named = LLaMA(
        vocab_size=256, embed_dim=64, num_heads=4, num_layers=2, p_dropout=0.1, num_kv_heads=2
    )
    torch.manual_seed(0)
    other = LLaMA(LlamaConfig(256, 64, 4, 2, 0.1, num_kv_heads=2))
    assert one.config == named.config == other.config
    tokens = torch.randint(256, (1, 8))
    one, named, other = one.eval(), named.eval(), other.eval()
    assert torch.equal(one(tokens), other(tokens))
    assert torch.equal(named(tokens), other(tokens))
    with pytest.raises(TypeError, match="expected a LlamaConfig alone"):
        LLaMA(LlamaConfig.preset("debug"), 64)
    with pytest.raises(TypeError, match="num_layers"):
        LLaMA(256, 64, 4)


def test_tied_head_is_the_embedding() -> None:
    model = LLaMA(LlamaConfig.preset("debug", tie_embeddings=True))
    assert model.head_weight is model.embedding.weight
    assert "head.weight" not in model.state_dict()
    twin = copy.deepcopy(model)
    assert twin.head_weight is twin.embedding.weight


@pytest.mark.compile
def test_compiles_as_one_graph() -> None:
    model = LLaMA(LlamaConfig.preset("debug"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for length in (16, 24):  # the second is compiled for any length
        tokens = torch.randint(256, (2, length))
        expected, result = model(tokens), compiled(tokens)
        assert torch.equal(result, expected)
        grads = [
            torch.autograd.grad(x.square().mean(), model.parameters()) for x in (expected, result)
        ]
        for weight, (a, b) in zip(model.parameters(), zip(*grads, strict=True), strict=True):
            torch.testing.assert_close(a, b), weight.shape


DEBUG = LlamaConfig.preset("debug")
TOKENS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tokens", "options", "error", "message"),
    [
        (TOKENS.float(), {}, TypeError, "tokens: expected int64 or int32 ids, got torch.float32"),
        (TOKENS[0], {}, ValueError, r"tokens: expected shape \(B,S\), got \(8,\)"),
        (
            torch.tensor([[0, 1], [2, 256]]),
            {},
            IndexError,
            r"tokens: expected ids in \[0, 256\), got 256 at position \(1, 1\)",
        ),
        (torch.tensor([[-1]]), {}, IndexError, r"got -1 at position \(0, 0\)"),
        (
            torch.zeros(1, 257, dtype=torch.int64),
            {},
            ValueError,
            "at most max_seq_len = 256 .* got 257",
        ),
        (
            TOKENS,
            {"src_mask": torch.zeros(8, 9)},
            ValueError,
            r"src_mask: expected \(S,T\) = \(8, 8\), got \(8, 9\)",
        ),
        (
            TOKENS,
            {"src_mask": torch.zeros(8, 8, dtype=torch.int64)},
            TypeError,
            "src_mask: expected bool or float, got torch.int64",
        ),
        (
            TOKENS,
            {"src_key_padding_mask": torch.zeros(8, 2, dtype=torch.bool)},
            ValueError,
            r"src_key_padding_mask: expected \(B,T\) = \(2, 8\), got \(8, 2\)",
        ),
        (
            TOKENS,
            {"src_key_padding_mask": torch.zeros(2, 8)},
            TypeError,
            "src_key_padding_mask: expected bool, got torch.float32",
        ),
        (
            TOKENS,
            {"cache": KVCache(DEBUG, 1, 8)},
            ValueError,
            "cache: expected a batch of 2, got 1",
        ),
        (
            TOKENS,
            {"cache": KVCache(DEBUG, 2, 7)},
            ValueError,
            "cache: expected room for 8 tokens, got max_len 7",
        ),
        (
            TOKENS,
            {"cache": KVCache(DEBUG, 2, 8)},
            ValueError,
            r"cache: expected a call under torch.no_grad\(\)",
        ),
    ],
)
def test_errors_name_the_argument(
    tokens: Tensor, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLaMA(DEBUG)(tokens, **options)


def test_int32_tokens_and_empty_batches() -> None:
    model = LLaMA(DEBUG).eval()
    assert torch.equal(model(TOKENS.int()), model(TOKENS))
    assert model(TOKENS[:0]).shape == (0, 8, 256)
    assert model(TOKENS[:, :0]).shape == (2, 0, 256)
