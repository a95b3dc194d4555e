"""Every reader of files that others make, with small real files to begin with.

A seed is what this package itself writes. A reader may return or raise what the commands turn into
one line (`USER_ERRORS`); anything else is a fault, and so is memory or time out of proportion.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama_fast.models import LLaMA, LlamaConfig, load, save
from llama_fast.tokenizers import ByteTokenizer, from_gguf, load_tokenizer
from llama_fast.tokenizers.spm import BYTE, CONTROL, NORMAL, UNKNOWN, serialise

CHAT = [{"role": "user", "content": "a<|im_end|>"}, {"role": "assistant", "content": "b"}]


class Target(NamedTuple):
    """A reader.

    Attributes:
        group: which targets a quick run takes together.
        seeds: contents to begin with.
        read: (folder, content): puts the content there and reads it.
    """

    group: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]


def _model() -> LLaMA:
    torch.manual_seed(0)
    config = LlamaConfig(257, 8, 2, 1, num_kv_heads=1, ffn_dim=8, max_seq_len=8)
    return LLaMA(config).eval()


@functools.cache
def _files(to: str) -> dict[str, bytes]:
    """A checkpoint as this package writes it: name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save(_model(), path, ByteTokenizer(), to=to)
        files = [path] if path.is_file() else sorted(path.iterdir())
        return {file.name: file.read_bytes() for file in files}


def _with(to: str, name: str) -> Callable[[Path, bytes], object]:
    """Reads a checkpoint one of whose files is another."""

    def read(folder: Path, content: bytes) -> object:
        for file, rest in _files(to).items():
            if not file.startswith("tokenizer") or name.startswith("tokenizer"):
                (folder / file).write_bytes(rest)
        (folder / name).write_bytes(content)
        if name == "model.safetensors.index.json":
            (folder / "model.safetensors").rename(folder / "part.safetensors")
        return load(folder)

    return read


def _file(name: str, reader: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        (folder / name).write_bytes(content)
        return reader(folder / name)

    return read


def _encoded(path: Path) -> object:
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("Hello, wörld <|im_end|> 123\n")
    tokenizer.encode_with_offsets("a <|im_end|> b")
    tokenizer.prepend_bos(ids)
    return tokenizer.decode(ids)


def _llama2c() -> list[bytes]:
    model = _model()
    config = model.config
    sizes = [8, 8, 1, 2, 1, -257, 8]
    weights = b"".join(
        weight.detach().numpy().tobytes() for weight in model.parameters()
    )  # in any order: the sizes alone matter
    tables = bytes(4 * config.max_seq_len * config.head_dim)
    return [struct.pack("<7i", *sizes) + weights + tables,
            (struct.pack("<Ii7iB", 0x616B3432, 1, *sizes[:5], 257, 8, 0)).ljust(256, b"\0")
            + weights]  # fmt: skip


def _gguf_tokenizer(path: Path) -> object:
    from llama_fast._gguf import Reader

    return from_gguf(Reader(path).metadata).encode("Hello")


def _gguf_spm() -> bytes:
    from gguf import GGUFWriter

    pieces = _pieces()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_token_list([text for text, _, _ in pieces])
        writer.add_token_scores([score for _, score, _ in pieces])
        writer.add_token_types([kind for _, _, kind in pieces])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path.read_bytes()


def _pieces() -> list[tuple[str, float, int]]:
    special = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    letters = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = [("▁", -1.0, NORMAL), ("a", -2.0, NORMAL), ("▁a", -3.0, NORMAL)]
    return [*special, *letters, *words]


def _llama2c_tokenizer() -> bytes:
    pieces = [(text.replace("▁", " ").encode(), score) for text, score, _ in _pieces()]
    return struct.pack("<i", 6) + b"".join(
        struct.pack("<fi", score, len(text)) + text for text, score in pieces
    )


def _ranks() -> bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b"hell"]
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(tokens))


def _settings(folder: Path, content: bytes) -> object:
    (folder / "tokenizer.json").write_bytes(_files("hf")["tokenizer.json"])
    (folder / "tokenizer_config.json").write_bytes(content)
    (folder / "generation_config.json").write_bytes(content)
    return _encoded(folder)


def _templates() -> list[bytes]:
    from llama_fast.data.chat import TEMPLATES

    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    loops = (
        "{% set n = namespace(x='') %}{% for i in range(9) %}{% set n.x = n.x ~ i %}{% endfor %}"
    )
    return [text.encode() for text in (*TEMPLATES.values(), marked, loops + "{{ n.x * 3 }}")]


def _template(_: Path, content: bytes) -> object:
    from llama_fast.data.chat import ChatTemplate

    source = content.decode("utf-8", "replace")
    if "{" not in source:
        return None
    return ChatTemplate(source).encode(CHAT, ByteTokenizer())


def _shards() -> dict[str, bytes]:
    from llama_fast.data.shards import ShardWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shards"
        with ShardWriter(path, vocab_size=257, tokenizer={"path": "byte"}) as writer:
            for text in (b"abc", b"de"):
                writer.add(list(text))
        return {file.name: file.read_bytes() for file in path.iterdir()}


def _read_shards(folder: Path, name: str, content: bytes) -> object:
    from llama_fast.data.shards import ShardEntry, TokenShards, content_hash
    from llama_fast.data.tokenizer import tokenizer_of

    for file, rest in {**_shards(), name: content}.items():
        (folder / file).write_bytes(rest)
    try:  # past its own hash
        index = json.loads(content)
        index["content_sha256"] = content_hash([ShardEntry(**entry) for entry in index["shards"]])
        (folder / name).write_text(json.dumps(index))
    except Exception:
        pass
    shards = TokenShards(folder)
    for document in range(len(shards)):
        shards.read(document)
    return tokenizer_of(shards)


def _documents(path: Path) -> object:
    from llama_fast.data.canaries import plant
    from llama_fast.data.documents import read_documents
    from llama_fast.data.questions import read_questions

    tokenizer, documents = ByteTokenizer(), []
    try:
        documents = list(read_documents(path))
    finally:
        if path.name.endswith(".jsonl"):
            plant(path, path.parent / "planted", format="{digits}", digits=4, repeats=[1])
            list(read_questions(path))
    return [tokenizer.encode(d) for d in documents if isinstance(d, str)]


def _json_lines() -> list[bytes]:
    rows = [{"text": "abc"}, {"text": "é"}], [{"messages": CHAT}]
    return ["".join(json.dumps(row) + "\n" for row in each).encode() for each in rows]


def _yaml(path: Path) -> object:
    from llama_fast.cli.train import read_config

    try:
        return read_config([str(path)])
    except SystemExit as error:  # argparse's way to say what is wrong
        if error.code != 2:
            raise
    return None


def _configs() -> list[bytes]:
    folder = Path(__file__).resolve().parents[2] / "configs"
    aliases = (
        b"model: &m\n  preset: debug\n  overrides: &c {num_layers: 2}\ndata:\n  num_workers: 2\n"
    )
    return [path.read_bytes() for path in sorted(folder.glob("*.yaml"))] + [aliases]


@functools.cache
def _run() -> dict[str, bytes]:
    """A checkpoint of a run: name -> content."""
    import dataclasses

    from llama_fast.train.checkpoints import CheckpointManager
    from llama_fast.train.config import TrainConfig

    model = _model()
    state = {
        "step": 1,
        "config": dataclasses.asdict(TrainConfig()),
        "model": dataclasses.asdict(model.config),
        "loader": {"epoch": 0, "row": 0},
        "scaler": {},
        "world_size": 1,
        "device": "cpu",
    }
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        CheckpointManager(folder).save(1, weights, state)
        return {file.name: file.read_bytes() for file in (Path(folder) / "step-00000001").iterdir()}


def _read_run(folder: Path, content: bytes, name: str) -> object:
    from llama_fast.models.loading import load_run
    from llama_fast.train.record import add_entry

    place = folder / "checkpoints" / "step-00000001"
    place.mkdir(parents=True)
    files = {**_run(), name: content}
    for file, rest in files.items():
        (place / file).write_bytes(rest)
    if name == "state.json":  # past the manifest's hash
        entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        manifest = {**json.loads(files["manifest.json"]), name: entry}
        (place / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.json").write_bytes(content)
    with contextlib.suppress(ValueError):
        add_entry(folder, {})
    return load_run(folder, with_tokenizer=False)


def _results() -> list[bytes]:
    results = {
        "results": {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "groups": {},
        "group_subtasks": {"piqa": []},
        "configs": {"piqa": {"task": "piqa", "num_fewshot": 0}},
        "versions": {"piqa": 1.0},
        "n-shot": {"piqa": 0},
        "higher_is_better": {"piqa": {"acc": True}},
        "n-samples": {"piqa": {"original": 10, "effective": 10}},
        "llama_fast": {"model": "m", "dtype": "float32", "seconds": 3.0},
    }
    return [json.dumps(results).encode()]


def _read_results(folder: Path, content: bytes) -> object:
    from llama_fast.eval.report import read_run

    (folder / "results.json").write_bytes(content)
    (folder / "samples_piqa.jsonl").write_bytes(content.replace(b"\n", b" ") + b"\n")
    run = read_run(folder)
    list(run.samples("piqa")) if "piqa" in run.files else None
    return run.name, run.tasks, run.metadata


def _cache() -> list[bytes]:
    from llama_fast.eval.request_cache import RequestCache

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.sqlite"
        cache = RequestCache(path)
        cache.put([(b"k" * 32, [1.0, True])])
        cache._file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        cache.close()
        return [path.read_bytes()]


def _read_cache(path: Path) -> object:
    from llama_fast.eval.request_cache import RequestCache

    cache = RequestCache(path)
    try:
        cache.put([(b"l" * 32, "x")])
        return cache.get([b"k" * 32, b"l" * 32])
    finally:
        cache.close()


def _mirror() -> list[bytes]:
    quac = {"data": [{"title": "t", "section_title": "s", "background": "b", "paragraphs": [
        {"context": "c", "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}],
                                  "orig_answer": {"text": "a"}}]}]}]}  # fmt: skip
    bold = {"group": {"name": ["prompt"]}}
    toxigen = [{"text": "a", "label": 0, "target_groups": ["g"]}]
    return [json.dumps(each).encode() for each in (quac, bold, toxigen)]


def _read_mirror(folder: Path, content: bytes) -> object:
    from llama_fast.eval.suite.jsonl import read_uniform_rows
    from llama_fast.eval.suite.raw import READERS

    for name in ("quac/val_v0.2.json", "bold/actor_prompt.json", "toxigen_revised.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "validation.jsonl").write_bytes(content)
    from llama_fast.cli.exit_codes import USER_ERRORS

    problem: Exception | None = None
    for reader in (*READERS.values(), lambda raw: read_uniform_rows(raw / "validation.jsonl")):
        try:
            reader(folder)
        except USER_ERRORS as error:
            problem = error
    return problem


def _canaries() -> list[bytes]:
    import dataclasses

    from llama_fast.data.canaries import draw

    return [json.dumps(dataclasses.asdict(draw("a {digits}", 4, [1, 2], 0))).encode()]


def _canary_file(path: Path) -> object:
    from llama_fast.data.canaries import read_canaries

    return read_canaries(path)


def _prompts(path: Path) -> object:
    from llama_fast.cli.generate import read_prompts

    return list(read_prompts(path))


def _seeds(to: str, *names: str) -> Callable[[], list[bytes]]:
    return lambda: [_files(to)[name] for name in names]


def _any_checkpoint(path: Path) -> Any:
    return load(path)


TARGETS: dict[str, Target] = {
    "safetensors": Target("checkpoints", _seeds("hf", "model.safetensors"),
                          _with("hf", "model.safetensors")),
    "config": Target("checkpoints", _seeds("hf", "config.json"), _with("hf", "config.json")),
    "safetensors-index": Target(
        "checkpoints",
        lambda: [json.dumps({"metadata": {"total_size": 1},
                             "weight_map": {"model.norm.weight": "part.safetensors"}}).encode()],
        _with("hf", "model.safetensors.index.json"),
    ),
    "gguf": Target("checkpoints", lambda: list(_files("gguf").values()),
                   _file("model.gguf", _any_checkpoint)),
    "gguf-tokenizer": Target("tokenizers", lambda: [_gguf_spm()],
                             _file("model.gguf", _gguf_tokenizer)),
    "llama2c": Target("checkpoints", _llama2c, _file("model.bin", _any_checkpoint)),
    "meta": Target("checkpoints", _seeds("meta", "consolidated.00.pth"),
                   _with("meta", "consolidated.00.pth")),
    "params": Target("checkpoints", _seeds("meta", "params.json"), _with("meta", "params.json")),
    "tokenizer-json": Target("tokenizer-json", _seeds("hf", "tokenizer.json"),
                             _file("tokenizer.json", _encoded)),
    "tokenizer-config": Target("tokenizers", _seeds("hf", "tokenizer_config.json",
                                                    "generation_config.json"), _settings),
    "tokenizer-spm": Target("tokenizers", lambda: [serialise(_pieces())],
                            _file("tokenizer.model", _encoded)),
    "tokenizer-ranks": Target("tokenizers", lambda: [_ranks()],
                              _file("tokenizer.model", _encoded)),
    "tokenizer-llama2c": Target("tokenizers", lambda: [_llama2c_tokenizer()],
                                _file("tok.bin", _encoded)),
    "template": Target("data", _templates, _template),
    "shard-index": Target("data", lambda: [_shards()["index.json"]],
                          lambda folder, content: _read_shards(folder, "index.json", content)),
    "shard-arrays": Target(
        "data", lambda: [_shards()["00000.ends.npy"]],
        lambda folder, content: _read_shards(folder, "00000.ends.npy", content)),
    "documents": Target("data", _json_lines, _file("a.jsonl", _documents)),
    "prompts": Target("data", lambda: [b'{"prompt": "a"}\n"b"\n'], _file("a.jsonl", _prompts)),
    "canaries": Target("data", _canaries, _file("canaries.json", _canary_file)),
    "train-yaml": Target("runs", _configs, _file("config.yaml", _yaml)),
    "run-state": Target("runs", lambda: [_run()["state.json"]],
                        lambda folder, content: _read_run(folder, content, "state.json")),
    "run-manifest": Target("runs", lambda: [_run()["manifest.json"]],
                           lambda folder, content: _read_run(folder, content, "manifest.json")),
    "results": Target("runs", _results, _read_results),
    "requests": Target("runs", _cache, _file("requests.sqlite", _read_cache)),
    "mirror": Target("runs", _mirror, _read_mirror),
}  # fmt: skip
