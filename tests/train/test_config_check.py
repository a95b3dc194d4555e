"""What a user reads who has mistyped an option or its value."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llama_fast.cli.train import read_config
from llama_fast.train.config import TrainConfig
from llama_fast.train.config_check import OPTIONS, check_values
from tests.paths import REPOSITORY

WRONG = [
    ("optimizer: {lr: abc}", "optimizer.lr: expected a number, got 'abc'"),
    ("optimiser: {lr: 1}", "optimiser.lr: no such option; did you mean optimizer.lr?"),
    ("lr: 3", "lr: no such option; did you mean optimizer.lr?"),
    ("batch_size: 8", "batch_size: no such option; did you mean data.micro_batch_size?"),
    ("steps: 1.5", "steps: expected an integer, got 1.5"),
    ("steps: true", "steps: expected an integer, got true"),
    ("steps: null", "steps: expected an integer, got null"),
    ("precision: fp32", "precision: expected one of float32, bfloat16, float16, got 'fp32'"),
    ("compile: 3", "compile: expected true or false, got 3"),
    ("optimizer: 3", "optimizer: expected options of this section, got 3"),
    ("benchmarks: a.jsonl", "benchmarks: expected a list, got 'a.jsonl'"),
    ("model: {overrides: [1]}", "model.overrides: expected a mapping, got [1]"),
    ("optimizer: {max_grad_norm: none}", "max_grad_norm: expected a number or null, got 'none'"),
    ("out: 3", "out: expected text (in quotes), got 3"),
    ("3: 4", "3: no such option"),
    ("[1, 2]", "expected options such as `steps: 100`, got list [1, 2]"),
    ("just text", "expected options such as `steps: 100`, got str 'just text'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_a_file_with_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config([str(file)])
    assert str(caught.value).startswith(f"{file}: ") and message in str(caught.value)
    assert "class" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer.lr", "abc"], "--optimizer.lr: expected a number, got 'abc'"),
        (["--optimizer.lr=abc"], "--optimizer.lr: expected a number, got 'abc'"),
        (["--optimizer.lrr", "1"], "--optimizer.lrr: no such option; did you mean --optimizer.lr?"),
        (["--dtype", "int8"], "--dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        (["--log-evry", "1"], "--log-evry: no such option; did you mean --log-every?"),
        (["--steps"], "--steps: expected a value, got none"),
        (["--compile", "--steps", "3"], "--compile: expected a value, got none"),
        (["--steps", "3", "stray"], "expected options that begin with --, got 'stray'"),
    ],
)
def test_an_option_with_a_mistake(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_config(arguments)
    assert str(caught.value) == message


def test_what_was_right_stays_right(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("")
    assert read_config([str(file)]) == TrainConfig()  # an empty file means the defaults
    file.write_text("# nothing but a comment\n")
    assert read_config([str(file), "--steps", "5"]) == TrainConfig(steps=5)
    file.write_text("optimizer:\n  lr: 1e-4\n  ema_decay: null\n")
    found = read_config(
        [str(file), "--model.overrides.num_layers=3", "--data.valid=null", "--out", "3"]
    )
    assert found.optimizer.lr == 1e-4 and found.out == "3"
    assert found.model.overrides == {"num_layers": 3}
    section = tmp_path / "optimizer.yaml"
    section.write_text("lr: 2e-3\n")
    assert read_config(["--optimizer", str(section)]).optimizer.lr == 2e-3
    section.write_text("lrr: 2e-3\n")
    with pytest.raises(ValueError, match=r"optimizer.yaml: optimizer.lrr: no such option"):
        read_config(["--optimizer", str(section)])


def test_every_option_and_every_configuration_that_ships_passes() -> None:
    assert len(OPTIONS) > 40
    for file in (REPOSITORY / "configs").glob("*.yaml"):
        check_values("", yaml.safe_load(file.read_text()))
