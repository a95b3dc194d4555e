"""`llama-fast export` of published checkpoints and of training runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llama_fast.cli.main import main
from llama_fast.data import ShardWriter
from llama_fast.models import Llama3RopeScaling, LlamaConfig, load
from llama_fast.train.config import DataOptions, ModelOptions, OptimizerOptions, TrainConfig
from llama_fast.train.run import TrainingRun
from tests.paths import data_file, tokenizer_model

STORIES = "checkpoints/stories260k/stories260K.bin"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """Two steps, with a moving average of the weights, on chats in bytes."""
    folder = tmp_path_factory.mktemp("run")
    identity = {"path": "byte", "chat_template": "{{ messages }}"}
    with ShardWriter(folder / "shards", vocab_size=257, tokenizer=identity) as writer:
        for i in range(30):
            writer.add(list(range(i, i + 60)))
    changes: dict[str, int | float | bool] = {"num_layers": 1, "tie_embeddings": True}
    found = TrainingRun(
        TrainConfig(
            out=str(folder / "run"), steps=2, device="cpu",
            model=ModelOptions(preset="debug", overrides=changes),
            data=DataOptions(train=str(folder / "shards"), seq_len=64, micro_batch_size=2),
            optimizer=OptimizerOptions(lr=0.01, ema_decay=0.5),
        ),
        log=lambda line: None,
    )  # fmt: skip
    found.train()
    return found


@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
def test_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: TrainingRun, to: str
) -> None:
    out = str(tmp_path / "out")
    assert main(["export", run.config.out, "--to", to, "--out", out]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 0.1 M weights in float32, 0.") and said.count("\n") == 1
    model, tokenizer = load(out)
    for name, weight in run.model.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    if to == "meta":
        assert tokenizer is None and "no tokenizer" in said
        return
    assert tokenizer is not None and "tokenizer of 257 tokens" in said
    assert tokenizer.encode("ü") == list("ü".encode()) and tokenizer.bos_id == 256
    assert tokenizer.chat_template == "{{ messages }}"


def test_the_average_of_a_run(tmp_path: Path, run: TrainingRun) -> None:
    out = str(tmp_path / "out")
    arguments = ["--to", "hf", "--out", out, "--average", "--dtype", "bfloat16"]
    assert main(["export", run.config.out, *arguments]) == 0
    model, _ = load(out)
    assert run.average is not None
    for name, weight in run.average.items():
        assert torch.equal(model.get_parameter(name), weight.bfloat16()), name
        assert not torch.equal(weight, run.model.get_parameter(name)), name


def test_a_run_with_scaled_rope(tmp_path: Path, run: TrainingRun) -> None:
    """The configuration in a run's checkpoint is JSON; the scaling comes out of it."""
    import dataclasses

    from llama_fast.models import LLaMA
    from llama_fast.train.checkpoints import CheckpointManager

    config = LlamaConfig(257, 16, 2, 1, ffn_dim=16, rope_scaling=Llama3RopeScaling(8.0))
    model = LLaMA(config)
    state = {"model": dataclasses.asdict(config), "config": dataclasses.asdict(run.config)}
    weights = {f"model.{n}": w.detach() for n, w in model.named_parameters()}
    CheckpointManager(tmp_path / "run" / "checkpoints").save(1, weights, state)
    out = str(tmp_path / "out")
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--out", out]) == 0
    assert load(out)[0].config == config


def test_force_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(data_file(STORIES)), tmp_path / "stories"
    command = ["export", source, "--to", "hf", "--out", str(out)]
    assert main(command) == 0
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert f"--out: {out} exists; --force replaces it" in capsys.readouterr().err
    assert main([*command, "--dtype", "bfloat16", "--force", "--tokenizer", "none"]) == 0
    assert load(out)[0].embedding.weight.dtype == torch.bfloat16
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]


def test_a_tokenizer_model_beside_tokenizer_json(tmp_path: Path) -> None:
    """GGUF and Meta's form need SentencePiece's own file; a Hugging Face folder has both."""
    source = data_file(STORIES)
    hf, gguf, meta = tmp_path / "hf", tmp_path / "a.gguf", tmp_path / "meta"
    assert main(["export", str(source), "--to", "hf", "--out", str(hf)]) == 0
    assert main(["export", str(hf), "--to", "gguf", "--out", str(gguf)]) == 0
    assert main(["export", str(hf), "--to", "meta", "--out", str(meta)]) == 0
    assert (meta / "tokenizer.model").read_bytes() == (hf / "tokenizer.model").read_bytes()
    tokenizer = load(gguf)[1]
    assert tokenizer is not None and tokenizer.decode(tokenizer.encode("Lily ran")) == "Lily ran"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no", "--to", "hf"], "model: no such file or folder: no"),
        (["{stories}", "--to", "hf", "--average"], "--average: expected the folder of a training"),
        (
            ["{stories}", "--to", "gguf", "--tokenizer", "{llama2}"],
            "at most the model's 512 tokens",
        ),
        (["{run}", "--to", "hf", "--average"], "expected a run with optimizer.ema_decay"),
        (
            ["{large}", "--to", "gguf", "--dtype", "float16"],
            "has values outside the range of float16, not of bfloat16",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: TrainingRun,
    arguments: list[str],
    message: str,
) -> None:
    from llama_fast.models import LLaMA, save

    large = LLaMA(LlamaConfig(8, 8, 2, 1))
    torch.nn.init.constant_(large.embedding.weight, 1e6)
    save(large, tmp_path / "large")
    plain = tmp_path / "run"
    plain.mkdir()
    (plain / "checkpoints").symlink_to(Path(run.config.out) / "checkpoints")
    if "{run}" in arguments:  # the same run, had it kept no average
        (plain / "checkpoints").unlink()
        from llama_fast.train.checkpoints import CheckpointManager

        found = CheckpointManager(Path(run.config.out) / "checkpoints").latest()
        assert found is not None
        state = json.loads(json.dumps(found.state))
        state["config"]["optimizer"]["ema_decay"] = None
        weights = {f"model.{n}": w.detach() for n, w in run.model.named_parameters()}
        CheckpointManager(plain / "checkpoints").save(2, weights, state)
    places = {
        "stories": data_file(STORIES), "run": plain, "large": tmp_path / "large",
        "llama2": tokenizer_model("mistral"),
    }  # fmt: skip
    given = [argument.format(**places) for argument in arguments]
    assert main(["export", *given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "run"]
