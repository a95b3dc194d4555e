"""Folders that others made name files elsewhere, by names in files and by links: none is read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from llama_fast._inside import inside
from llama_fast.cli.main import main
from llama_fast.data import DataError, ShardWriter, TokenShards, read_documents
from llama_fast.data.check import write_without
from llama_fast.data.tokenizer import tokenizer_of
from llama_fast.eval.report.results import read_run
from llama_fast.models import LLaMA, LlamaConfig, load, save
from llama_fast.models.checkpoints.common import CheckpointError
from llama_fast.tokenizers import TokenizerError, load_tokenizer
from llama_fast.tokenizers.train_bpe import train_bpe
from llama_fast.train.checkpoints import CheckpointManager


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder beside the received one, with a secret in it."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "id_rsa").write_text("SECRET")
    return folder


@pytest.mark.parametrize(
    "name",
    ["../private/id_rsa", "a/../../private/id_rsa", "..\\private\\id_rsa", "C:id_rsa", "link",
     "folder/id_rsa", "circle", "fifo", "a", ".", "..", "", "nul\0", 7, None, ["a"]],
)  # fmt: skip
def test_names_that_lead_out(tmp_path: Path, private: Path, name: object) -> None:
    got = tmp_path / "got"
    (got / "a").mkdir(parents=True)
    (got / "link").symlink_to("../private/id_rsa")
    (got / "folder").symlink_to(private)
    (got / "circle").symlink_to("circle")
    os.mkfifo(got / "fifo")
    with pytest.raises(DataError, match=r"index\.json: expected a file inside .*got"):
        inside(got, name, "index.json", DataError)


def test_an_absolute_name(tmp_path: Path, private: Path) -> None:
    with pytest.raises(ValueError, match="leads out of the folder"):
        inside(tmp_path, str(private / "id_rsa"), "index.json")


def test_names_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.txt").write_text("b")
    (tmp_path / "link").symlink_to("a/b.txt")
    for name in ("a/b.txt", "./a/b.txt", "link", "not there"):
        assert inside(tmp_path, name, "index") == tmp_path / name


def test_links_of_our_own_names(tmp_path: Path, private: Path) -> None:
    (tmp_path / "weights").symlink_to(private / "id_rsa")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert inside(tmp_path, "weights", "x", links=True).read_text() == "SECRET"
    with pytest.raises(ValueError, match="not a regular file"):
        inside(tmp_path, "zero", "x", links=True)


def snapshot(cache: Path) -> Path:
    """A repository of the hub's cache: files of a snapshot are links to its blobs."""
    folder = cache / "models--org--name/snapshots/0123abc"
    folder.mkdir(parents=True)
    (cache / "models--org--name/blobs").mkdir()
    return folder


def test_the_hub_cache(tmp_path: Path, private: Path) -> None:
    folder = snapshot(tmp_path)
    blobs = folder.parents[1] / "blobs"
    (blobs / "f00d").write_text("weights")
    (folder / "model.safetensors").symlink_to("../../blobs/f00d")
    (folder / "sub").mkdir()
    (folder / "sub/config.json").symlink_to("../../../blobs/f00d")
    for name in ("model.safetensors", "sub/config.json"):
        assert inside(folder, name, "index").read_text() == "weights"
    (folder / "evil").symlink_to(private / "id_rsa")
    (blobs / "evil").symlink_to(private / "id_rsa")
    (folder / "twice").symlink_to("../../blobs/evil")
    for name in ("evil", "twice"):
        with pytest.raises(ValueError, match="not in the folder"):
            inside(folder, name, "index")


def test_blobs_that_are_a_link(tmp_path: Path, private: Path) -> None:
    folder = snapshot(tmp_path)
    (folder.parents[1] / "blobs").rmdir()
    (folder.parents[1] / "blobs").symlink_to(private)
    (folder / "model.safetensors").symlink_to("../../blobs/id_rsa")
    with pytest.raises(ValueError, match="not in the folder"):
        inside(folder, "model.safetensors", "index")


# --- through the readers ---------------------------------------------------------------------


def shards_with(folder: Path, **tokenizer: object) -> TokenShards:
    with ShardWriter(folder, vocab_size=260, tokenizer=tokenizer) as writer:
        for document in ([1, 2, 3], [4, 5]):
            writer.add(document)
    return TokenShards(folder)


def evil_site(tmp_path: Path) -> Path:
    """Python that would run at the next start, where the attack of `data check` put it."""
    site = tmp_path / "up/site-packages"
    site.mkdir(parents=True)
    train_bpe(["to be or not to be"], 260, site)
    (site / "usercustomize.py").write_text("print('run')")
    return site


def test_shards_that_name_a_folder_outside(tmp_path: Path) -> None:
    evil_site(tmp_path)
    shards = shards_with(tmp_path / "up/got", path="../site-packages")
    out = tmp_path / "mine/out"
    with pytest.raises(DataError, match="leads out of the folder"):
        write_without(shards, {0: ["email"]}, out, {})
    assert not out.parent.exists() or not list(out.parent.rglob("*.py"))
    with pytest.raises(DataError, match="leads out of the folder"):
        tokenizer_of(shards)


def test_shards_that_name_an_unknown_file(tmp_path: Path) -> None:
    site = evil_site(tmp_path)
    with pytest.raises(DataError, match="expected the sha256"):
        tokenizer_of(shards_with(tmp_path / "a", path=str(site)))
    known = hashlib.sha256((site / "tokenizer.json").read_bytes()).hexdigest()
    shards = shards_with(tmp_path / "b", path=str(site), sha256=known)
    assert tokenizer_of(shards).vocab_size == 260


def test_known_files_alone_are_copied(tmp_path: Path, private: Path) -> None:
    """The folder that an index names may hold more than a tokenizer, and links to what is not."""
    shards = shards_with(tmp_path / "got", path="deep/site-packages")
    own = tmp_path / "got/deep/site-packages"
    own.mkdir(parents=True)
    train_bpe(["to be or not to be"], 260, own)
    (own / "usercustomize.py").write_text("print('run')")
    (own / "notes").symlink_to(private / "id_rsa")
    write_without(shards, {0: ["email"]}, tmp_path / "out", {})
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert {name for name in found if "/" in name} == {
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    assert tokenizer_of(TokenShards(tmp_path / "out")).encode("to be")
    for name in ("generation_config.json", "chat_template.jinja"):
        (own / name).symlink_to(private / "id_rsa")
        with pytest.raises(DataError, match=f"{name}.*not in the folder"):
            write_without(shards, {0: ["email"]}, tmp_path / "second", {})
        (own / name).unlink()


def test_shards_whose_files_are_elsewhere(tmp_path: Path) -> None:
    shards_with(tmp_path / "private", path="byte")
    shards = shards_with(tmp_path / "got", path="byte")
    index = json.loads((tmp_path / "got/index.json").read_text())
    index["shards"][0]["name"] = "../private/00000"
    lines = (
        f"../private/00000 {part} {shards.shards[0].sha256[part]}" for part in ("tokens", "ends")
    )
    index["content_sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    (tmp_path / "got/index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="leads out of the folder"):
        TokenShards(tmp_path / "got")
    shards_with(tmp_path / "linked", path="byte")
    file = tmp_path / "linked/00000.tokens.npy"
    file.unlink()
    file.symlink_to(tmp_path / "private/00000.tokens.npy")
    with pytest.raises(DataError, match="not in the folder"):
        TokenShards(tmp_path / "linked")


def saved_model(folder: Path) -> Path:
    torch.manual_seed(0)
    save(LLaMA(LlamaConfig.preset("debug")), folder)
    return folder


def listed(folder: Path, shard: str) -> None:
    """A folder whose index says that all its weights are in one file."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def test_an_index_of_safetensors_that_names_files_outside(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "got")
    listed(folder, "../private.safetensors")
    (folder / "weights.safetensors").rename(tmp_path / "private.safetensors")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        load(folder)
    listing = folder / "model.safetensors.index.json"
    listing.write_text(listing.read_text().replace("../private", "weights"))
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(folder)


def test_a_snapshot_of_the_hub_is_loaded(tmp_path: Path) -> None:
    """Its files are links, those of an index too."""
    plain = saved_model(tmp_path / "plain")
    expected = load(plain)[0].embedding.weight
    listed(plain, "weights.safetensors")
    folder = snapshot(tmp_path)
    for number, file in enumerate(sorted(plain.iterdir())):
        file.rename(folder.parents[1] / f"blobs/{number}")
        (folder / file.name).symlink_to(f"../../blobs/{number}")
    assert torch.equal(load(folder)[0].embedding.weight, expected)
    assert torch.equal(load(folder / "weights.safetensors")[0].embedding.weight, expected)


def test_weights_behind_a_link_that_a_person_made(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "got")
    (folder / "model.safetensors").rename(tmp_path / "big.safetensors")
    (folder / "model.safetensors").symlink_to("../big.safetensors")
    load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_in_a_folder_of_a_model(tmp_path: Path, name: str) -> None:
    folder = saved_model(tmp_path / "got")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(folder)


def test_a_template_that_is_a_link(tmp_path: Path, private: Path) -> None:
    got = tmp_path / "got"
    train_bpe(["to be or not to be"], 260, got)
    (got / "chat_template.jinja").symlink_to(private / "id_rsa")
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja.*not in the folder"):
        load_tokenizer(got)


def test_a_manifest_that_names_files_outside(tmp_path: Path, private: Path) -> None:
    lines: list[str] = []
    checkpoints = CheckpointManager(tmp_path / "run/checkpoints", log=lines.append)
    checkpoints.save(1, {"w": torch.zeros(2)}, {})
    folder = tmp_path / "run/checkpoints/step-00000001"
    manifest = folder / "manifest.json"
    content = manifest.read_text()
    secret = {"sha256": hashlib.sha256(b"SECRET").hexdigest(), "bytes": 6}
    manifest.write_text(json.dumps({**json.loads(content), "../../../private/id_rsa": secret}))
    with pytest.raises(OSError, match="all are damaged"):
        checkpoints.latest()
    assert "leads out of the folder" in lines[-1]
    manifest.write_text(content)
    assert checkpoints.latest() is not None
    (folder / "more.safetensors").symlink_to(private / "id_rsa")
    with pytest.raises(OSError, match="all are damaged"):
        checkpoints.latest()
    assert "more.safetensors is not in manifest.json" in lines[-1]


def test_results_whose_samples_are_a_link(tmp_path: Path, private: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"results": {"piqa": {}}}))
    (run / "samples_piqa.jsonl").symlink_to(private / "id_rsa")
    with pytest.raises(ValueError, match=r"samples_piqa\.jsonl.*not in the folder"):
        read_run(run)
    (run / "results.json").unlink()
    os.mkfifo(run / "results.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_run(run)


def test_texts_that_are_links(
    tmp_path: Path, private: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a text")
    (texts / "b.txt").symlink_to(private / "id_rsa")
    with pytest.raises(DataError, match=r"b\.txt.*follow_links"):
        list(read_documents(texts))
    assert list(read_documents(texts, follow_links=True)) == ["a text", "SECRET"]
    out = str(tmp_path / "out")
    assert main(["tokenize", str(texts), "--out", out]) == 2
    assert "--follow-links" in capsys.readouterr().err and not Path(out).exists()
    assert main(["tokenize", str(texts), "--out", out, "--follow-links"]) == 0


def test_a_saved_data_set_of_files_elsewhere(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["SECRET"]}).save_to_disk(str(tmp_path / "private"))
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(
        str(tmp_path / "got")
    )
    assert list(read_documents(tmp_path / "got")) == ["a"]
    state = tmp_path / "got/train/state.json"
    fields = json.loads(state.read_text())
    (file,) = (tmp_path / "private").glob("*.arrow")
    state.write_text(
        json.dumps({**fields, "_data_files": [{"filename": f"../../private/{file.name}"}]})
    )
    with pytest.raises(DataError, match="leads out of the folder"):
        list(read_documents(tmp_path / "got"))
    (tmp_path / "got/dataset_dict.json").write_text(json.dumps({"splits": ["../private"]}))
    with pytest.raises(DataError, match="leads out of the folder"):
        list(read_documents(tmp_path / "got"))
