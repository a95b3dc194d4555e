"""Tied and untied heads: what the file holds decides, whatever the configuration says."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama_fast.models import CheckpointError, LLaMA, load, save
from tests.models.checkpoints.test_export import check_same, random_model
from tests.models.checkpoints.test_meta import interleaved_weights, write
from tests.models.peers import SHAPES, check_logits, save_transformers, transformers_model

TIED, UNTIED = SHAPES["gqa-tied"], dataclasses.replace(SHAPES["gqa-tied"], tie_embeddings=False)
TOKENS = torch.arange(40).view(2, 20)
DIFFER = "two different tensors: both are kept, and the head is not tied"


def folder_of(folder: Path, weights: dict[str, Tensor], tied: bool = True) -> Path:
    """A Hugging Face folder with these weights, and a configuration that says `tied`."""
    save_transformers(TIED, folder)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": tied}))
    return folder


@torch.no_grad()
def theirs(folder: Path, **options: str) -> Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)(TOKENS).logits


@torch.no_grad()
@pytest.mark.parametrize("held", ["both, different", "both, the same", "head alone"])
def test_tied_by_the_configuration(tmp_path: Path, held: str) -> None:
    weights = transformers_model(UNTIED).state_dict()
    if held == "both, the same":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    elif held == "head alone":
        del weights["model.embed_tokens.weight"]
    folder = folder_of(tmp_path / "theirs", weights)
    if held == "both, different":
        with pytest.warns(UserWarning, match=DIFFER):
            model, _ = load(folder)
    else:
        with warnings.catch_warnings(action="error"):
            model, _ = load(folder)
    assert model.config.tie_embeddings == (held != "both, different")
    torch.testing.assert_close(model(TOKENS), theirs(folder), rtol=1e-4, atol=1e-4)
    for to in ("hf", "meta", "gguf"):  # and no format loses it
        path = tmp_path / ("a.gguf" if to == "gguf" else to)
        save(model, path, to=to)
        with warnings.catch_warnings(action="error"):
            check_same(model, load(path)[0])
        if to != "meta":
            options = {"gguf_file": path.name} if to == "gguf" else {}
            again = theirs(tmp_path if to == "gguf" else path, **options)
            torch.testing.assert_close(again, model(TOKENS), rtol=1e-4, atol=1e-4)


def test_untied_by_the_configuration_needs_both(tmp_path: Path) -> None:
    """transformers draws a random head here, and says so; there is no right one."""
    folder = folder_of(tmp_path, transformers_model(TIED).model.state_dict(prefix="model."), False)
    with pytest.raises(CheckpointError, match=r"missing tensor 'lm_head\.weight'"):
        load(folder)


def test_a_head_of_another_shape(tmp_path: Path) -> None:
    weights = transformers_model(UNTIED).state_dict()
    weights["lm_head.weight"] = weights["lm_head.weight"][:90].clone()
    with (
        pytest.warns(UserWarning, match=DIFFER),
        pytest.raises(CheckpointError, match=r"'lm_head\.weight': expected shape \(97, 48\)"),
    ):
        load(folder_of(tmp_path, weights))


def test_meta_file_with_a_configuration_that_says_tied(tmp_path: Path) -> None:
    write(tmp_path, UNTIED, [interleaved_weights(UNTIED)])
    with pytest.warns(UserWarning, match=f"'output.weight' is 'tok_embeddings.weight'.*{DIFFER}"):
        model, _ = load(tmp_path, config=TIED)
    check_logits(model, UNTIED)


def test_a_tensor_in_the_second_of_two_meta_files_alone(tmp_path: Path) -> None:
    weights = interleaved_weights(UNTIED)
    first = {name: weight for name, weight in weights.items() if name != "output.weight"}
    with pytest.raises(CheckpointError, match=r"'output\.weight': missing in some"):
        load(write(tmp_path, UNTIED, [first, weights]))


@torch.no_grad()
@pytest.mark.parametrize("to", ["hf", "meta", "gguf"])
@pytest.mark.parametrize("what", ["head tied by hand", "head made by hand", "head taken away"])
def test_modules_that_are_not_as_the_configuration_says(tmp_path: Path, to: str, what: str) -> None:
    model = random_model(TIED if what == "head made by hand" else UNTIED)
    if what == "head tied by hand":
        model.head.weight = model.embedding.weight
    elif what == "head made by hand":
        model.head = torch.nn.Linear(48, 97, bias=False)
    else:
        model.head = None
    path = tmp_path / ("a.gguf" if to == "gguf" else to)
    save(model, path, to=to)
    assert torch.equal(load(path)[0](TOKENS), model(TOKENS))


def stale(folder: Path) -> tuple[LLaMA, LLaMA]:
    """An old model in shards with their index, and a new one in one file: (old, new)."""
    save_transformers(TIED, folder, max_shard_size="40KB")
    weights = load_file(save_transformers(TIED, folder / "one") / "model.safetensors")
    old, _ = load(folder)
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    new = LLaMA(TIED).eval()
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        new.norm.weight += 1
    return old, new


@torch.no_grad()
def test_a_whole_file_beside_a_stale_index(tmp_path: Path) -> None:
    old, new = stale(tmp_path)
    model, _ = load(tmp_path)
    check_same(new, model)
    assert (old(TOKENS) - model(TOKENS)).abs().max() > 0.1
    torch.testing.assert_close(model(TOKENS), theirs(tmp_path), rtol=1e-4, atol=1e-4)
    (tmp_path / "pytorch_model.bin").write_bytes(b"older still: never read")
    check_same(new, load(tmp_path)[0])


def test_a_file_that_is_named_is_the_one_that_is_read(tmp_path: Path) -> None:
    old, new = stale(tmp_path)
    check_same(new, load(tmp_path / "model.safetensors")[0])
    check_same(old, load(sorted(tmp_path.glob("model-*.safetensors"))[0])[0])
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "best.safetensors", metadata={"format": "pt"})
    best, _ = load(tmp_path / "best.safetensors")
    assert torch.equal(best.norm.weight, new.norm.weight + 1)


def test_overwriting_leaves_no_stale_index(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_transformers(TIED, folder, max_shard_size="40KB")
    model = random_model(UNTIED)
    save(model, folder, overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    check_same(model, load(folder)[0])
