"""Exposure: its definition, its approximation, and models that did and did not see a canary."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llama_fast.cli.main import main
from llama_fast.data.canaries import draw
from llama_fast.eval.canary import exact_exposure, fitted_exposure, log_perplexities, measure
from llama_fast.models import LLaMA
from llama_fast.models.checkpoints.training import RunCheckpointError
from llama_fast.models.loading import load_model
from llama_fast.tokenizers import ByteTokenizer
from tests.paths import data_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on 60,000 characters of plays and a canary 50 times, another one never.

    Every command is given as a user gives it.
    """
    folder = tmp_path_factory.mktemp("canary")
    play = folder / "play.txt"
    play.write_text(data_file("corpora/tinyshakespeare.txt").read_text()[:60_000])
    planted, shards, run = (str(folder / name) for name in ("planted", "shards", "run"))
    commands = (
        ["data", "plant", str(play), "--out", planted, "--digits", "3", "--repeats", "50,0"],
        ["tokenize", planted, "--separator", "\n", "--out", shards],
        ["train", "--out", run, "--data.train", shards, "--data.seq_len", "64",
         "--data.micro_batch_size", "16", "--steps", "200", "--optimizer.lr", "3e-3",
         "--log_every", "100"],
    )  # fmt: skip
    for command in commands:
        assert main(command) == 0
    return folder


def test_a_planted_canary_is_exposed_and_another_is_not(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained / "report.json"
    given = ["eval", "canary", str(trained / "run"), "--canaries", str(trained / "planted")]
    assert main([*given, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    often, never = report["exposures"]
    assert report["space_bits"] == pytest.approx(math.log2(1000)) and report["compared"] == 1000
    assert often["canary"]["repeats"] == 50 and never["canary"]["repeats"] == 0
    assert often["exposure"] > math.log2(1000) - 1.1  # rank 1 or 2
    assert never["exposure"] < 5
    said = capsys.readouterr().out
    assert main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert f"{often['exposure']:.2f}" in said and never["canary"]["digits"] in said


def test_a_sample_says_about_the_same(trained: Path) -> None:
    """The skew-normal's tail, for the canary that nothing of the sample is as likely as."""
    pytest.importorskip("scipy", reason="scipy is not installed")
    model, tokenizer = load_model(trained / "run")
    planted = draw("The secret number is {digits}", 3, [50, 0], 0)
    exact = measure(model, tokenizer, planted)
    fitted = measure(model, tokenizer, planted, sample=600)
    assert exact.fit is None and fitted.fit is not None and fitted.compared == 600
    for a, b in zip(exact.exposures, fitted.exposures, strict=True):
        assert a.log_perplexity == pytest.approx(b.log_perplexity, rel=1e-5)
        assert b.rank is None
    assert fitted.exposures[0].exposure > 8
    assert fitted.exposures[1].exposure == pytest.approx(exact.exposures[1].exposure, abs=1)


def test_exposure_is_the_definition() -> None:
    values = np.array([5.0, 3.0, 3.0, 9.0])
    assert exact_exposure(3.0, values) == (2, 1.0)
    assert exact_exposure(5.0, values) == (3, pytest.approx(2 - math.log2(3)))
    assert exact_exposure(9.0, values) == (4, 0.0)
    # Of what was not seen any rank is as likely: 1/ln 2 bits on average.
    random = np.random.default_rng(0).random(4096)
    mean = np.mean([exact_exposure(v, random)[1] for v in random.tolist()])
    assert mean == pytest.approx(1 / math.log(2), abs=0.01)


def test_the_fit_finds_a_skew_normal() -> None:
    """Z = d |U| + sqrt(1 - d^2) V of normal U, V is skew-normal (Azzalini 1985); its lower tail,
    counted among 10^6, agrees with what is extrapolated from 5,000.
    """
    pytest.importorskip("scipy", reason="scipy is not installed")
    generator = np.random.default_rng(0)
    d = 0.8
    u, v = generator.standard_normal((2, 1_000_000))
    everything = 40 + 5 * (d * np.abs(u) + math.sqrt(1 - d * d) * v)
    values = np.quantile(everything, [1e-4, 0.01, 0.5])
    found, fit = fitted_exposure(values, everything[:5000])
    assert found == pytest.approx(-np.log2([1e-4, 0.01, 0.5]), rel=0.08)
    assert fit > 0.01
    assert (
        fitted_exposure(values, generator.exponential(size=5000))[1] < 1e-6
    )  # another distribution
    with pytest.raises(ValueError, match="sample: expected at least 100"):
        fitted_exposure(values, everything[:99])


def test_log_perplexity_is_the_logits() -> None:
    """Of a real model, by torch's log-softmax in float64, whatever the batches are."""
    model, tokenizer = load_model(
        data_file("checkpoints/stories260k/stories260K.bin"),
        data_file("checkpoints/stories260k/tok512.bin"),
    )
    texts = ["Once upon a time", "The secret number is 42", "x", "there was a little girl, Lily."]
    rows = [[tokenizer.bos_id or 1, *tokenizer.encode(text)] for text in texts]
    expected = []
    for ids in rows:
        with torch.no_grad():
            logs = model.double()(torch.tensor([ids])).log_softmax(-1)[0]
        scores = logs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        expected.append(-float(scores.sum()) / math.log(2))
    model.float()
    for batch_tokens in (1, 20, 8192):
        found = log_perplexities(model, rows, batch_tokens=batch_tokens)
        assert found == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="texts: expected at least 2 tokens each"):
        log_perplexities(model, [[1]])
    with pytest.raises(ValueError, match="max_seq_len"):
        log_perplexities(model, [[1] * 1000])


def test_a_model_that_knows_nothing_exposes_nothing() -> None:
    """New weights: the mean over 200 canaries is what chance gives, 1.44 bits."""
    torch.manual_seed(0)
    model = LLaMA(257, 32, 2, 1, 0.0).eval()
    report = measure(model, ByteTokenizer(), draw("n{digits}", 3, [0] * 200, 1))
    exposures = [found.exposure for found in report.exposures]
    assert np.mean(exposures) == pytest.approx(1 / math.log(2), abs=0.35)


def test_models_of_a_run(trained: Path, tmp_path: Path) -> None:
    """The newest checkpoint's weights, with the tokenizer of the run's data."""
    model, tokenizer = load_model(trained / "run")
    assert not model.training and tokenizer.vocab_size == 257
    again, _ = load_model(trained / "run", "byte", torch.bfloat16)
    assert again.head_weight.dtype == torch.bfloat16
    assert torch.equal(again.head_weight, model.head_weight.bfloat16())
    with pytest.raises(ValueError, match="tokenizer: expected at most the model's 257 tokens"):
        load_model(trained / "run", data_file("checkpoints/stories260k/tok512.bin"))
    alone = tmp_path / "alone.bin"
    alone.write_bytes(data_file("checkpoints/stories260k/stories260K.bin").read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer: expected one, for .*alone.bin has none"):
        load_model(alone)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunCheckpointError, match="expected a checkpoint, there is none"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "canaries.json: expected a JSON object, got list"),
        ("{", "canaries.json: not JSON"),
        ("{}", "canaries.json: not a list of canaries"),
        ('{"format": "x {digits}", "digits": 2, "seed": 0, "canaries": [{"digits": "7", '
         '"repeats": 1}]}', "canaries: expected 2 digits each, got '7'"),
    ],
)  # fmt: skip
def test_bad_canaries_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "canaries.json"
    file.write_text(content)
    assert main(["eval", "canary", "no", "--canaries", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert main(["eval", "canary", "no", "--canaries", str(tmp_path / "no.json")]) == 2
    assert "canaries: no such file" in capsys.readouterr().err
