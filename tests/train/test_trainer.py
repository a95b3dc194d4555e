from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import llama_fast
from llama_fast import LLaMA, Trainer, evaluate
from llama_fast.models import LlamaConfig
from tests.paths import data_file

Batches = list[tuple[Tensor, Tensor]]


def random_batches(number: int = 4) -> Batches:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (number, 2, 17), generator=generator)
    return [(t[:, :-1].clone(), t[:, 1:].clone()) for t in tokens]


def debug(seed: int = 0, p_dropout: float = 0.0) -> LLaMA:
    torch.manual_seed(seed)
    return LLaMA(LlamaConfig.preset("debug", p_dropout=p_dropout))


def sgd(model: LLaMA, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models as small as these gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_seed_api_learns_shakespeare() -> None:
    """A model that knew byte frequencies only would stay at their entropy; ours must beat it."""
    text = torch.frombuffer(
        bytearray(data_file("corpora/tinyshakespeare.txt").read_bytes()), dtype=torch.uint8
    ).long()
    length = 64
    rows = text[: len(text) // (length + 1) * (length + 1)].view(-1, length + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    train, held_out = rows[: 8 * 75], rows[-256:]

    torch.manual_seed(0)
    model = LLaMA(vocab_size=256, embed_dim=64, num_heads=4, num_layers=2, p_dropout=0.0)
    train_loader = DataLoader(
        TensorDataset(train[:, :-1], train[:, 1:]),
        batch_size=8,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    test_loader = DataLoader(TensorDataset(held_out[:, :-1], held_out[:, 1:]), batch_size=32)
    before = evaluate(model, test_loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    history = Trainer(model, llama_fast.cross_entropy, optimizer).train(train_loader, num_epochs=2)

    p = torch.bincount(text, minlength=256).double() / len(text)
    entropy = torch.special.entr(p).sum().item()  # 3.32 nats
    assert history[0].losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert history[1].loss < 0.75 * entropy
    with torch.no_grad():
        assert model.loss(held_out[:, :-1], held_out[:, 1:]) < 0.75 * entropy
    most_frequent = p.max().item()  # a space: 15 %
    assert before < most_frequent < 0.3 < evaluate(model, test_loader)


def test_history_counts_and_averages() -> None:
    batches = random_batches(3)
    batches[1][1][:, 5:] = -100
    seen: list[tuple[int, float]] = []
    lines: list[str] = []
    trainer = Trainer(
        model := debug(),
        llama_fast.cross_entropy,
        sgd(model, lr=0.0),  # no step: every loss is that of the first weights
        log=lines.append,
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    history = trainer.train(batches, num_epochs=2)
    assert len(history) == len(lines) == 2
    assert history[0].losses == history[1].losses
    assert history[0].tokens == 32 + 10 + 32
    a, b, c = history[0].losses
    assert history[0].loss == pytest.approx((32 * a + 10 * b + 32 * c) / 74)
    assert seen == list(enumerate(history[0].losses * 2))
    assert lines[1].startswith(f"epoch 2/2: loss {history[1].loss:.4f}, ")


@pytest.mark.parametrize(
    "criterion", [None, torch.nn.CrossEntropyLoss(), torch.nn.functional.cross_entropy]
)
def test_criteria_give_the_same_training(criterion: object) -> None:
    losses = []
    for loss in (llama_fast.cross_entropy, criterion):
        model = debug()
        history = Trainer(model, loss, sgd(model), log=None).train(random_batches(), 2)
        losses.append([value for epoch in history for value in epoch.losses])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][4] < losses[0][0]


def test_training_mode_is_on_meanwhile_and_as_before_then() -> None:
    model = debug(p_dropout=0.5).eval()
    modes: list[bool] = []
    Trainer(
        model, None, sgd(model), log=None, on_step=lambda *_: modes.append(model.training)
    ).train(random_batches(2), 1)
    assert modes == [True, True]
    assert not model.training


def test_gradient_norm_is_limited() -> None:
    model = debug()
    before = [weight.clone() for weight in model.parameters()]
    Trainer(model, None, sgd(model, lr=1.0), max_grad_norm=0.01, log=None).train(
        random_batches(1), 1
    )
    moved = [w.detach() - b for w, b in zip(model.parameters(), before, strict=True)]
    norm = torch.stack([m.norm() for m in moved]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_other_models_train_too() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 32), torch.nn.Linear(32, 256))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    history = Trainer(model, llama_fast.cross_entropy, optimizer, log=None).train(
        random_batches(), 30
    )
    assert history[-1].loss < 0.2 * history[0].loss  # 128 tokens learnt by heart


def test_not_a_number_stops_before_the_step() -> None:
    model = debug()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(FloatingPointError, match="expected a finite number, got nan at step 0"):
        Trainer(model, None, sgd(model), log=None).train(random_batches(), 1)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0, equal_nan=True)
    assert model.training


def test_errors() -> None:
    model = debug()
    trainer = Trainer(model, None, sgd(model), log=None)
    with pytest.raises(ValueError, match="dataloader: expected at least one batch, got none"):
        trainer.train([], 1)
    with pytest.raises(ValueError, match="num_epochs: expected a number >= 0, got -1"):
        trainer.train(random_batches(), -1)
    assert trainer.train(random_batches(), 0) == []
