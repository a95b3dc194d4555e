"""Small files that ask for much work or memory: each gets an error, within bounds on both.

Bounds are of CPU time and memory in a process of its own, ten times what the work takes.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

import llama_fast
from llama_fast._reading import MAX_DEPTH, parse_json, read_json, read_json_lines
from llama_fast.cli.exit_codes import USER_ERRORS
from llama_fast.cli.train import read_config
from llama_fast.data.canaries import plant
from llama_fast.data.chat import ChatTemplate
from llama_fast.data.documents import read_documents
from llama_fast.data.secrets import PATTERNS, find_secrets
from llama_fast.eval.scenarios.sql import extract_query, is_ordered, normalize_query
from llama_fast.models import load
from llama_fast.models.loading import load_run
from llama_fast.tokenizers import ByteTokenizer, load_tokenizer
from llama_fast.tokenizers.ranks import LONG_RUN, MAX_RUN
from llama_fast.tokenizers.spm import NORMAL, serialise
from tests.fuzz import readers
from tests.limited import error_of, outcome

MB = 1 << 20
PACKAGE = Path(llama_fast.__file__).parent

# What patterns begin with, again and again, in a megabyte: without an end, with one, and between
# characters that are part of a value.
BEGINNINGS = [
    "eyJ", "-eyJ", "eyJaaaaaaaa.", ".eyJaaaaaaaa", "a@", "a@a.", "a.", "a-", "@", "AKIA", "-AKIA",
    "ghp_", "-ghp_", "github_pat_", "xoxb-", " xoxb-", "sk_live_", "_sk_live_a", "sk-", "-sk-",
    "sk-proj-", "sk-ant-", " sk-ant-", "hf_", "-hf_", "AIza", "-----BEGIN ", "-----BEGIN A A ",
    "4", "4 ", "4111 ", "4111-", "password='", "password=        '", "secret:", "pwd", " ", "\n",
    "_", "(", ")", "'", '"', "```", "```sql ", "a the ",
]  # fmt: skip


def scan(text: str) -> None:
    list(find_secrets(text))


@pytest.mark.parametrize("kind", PATTERNS)
def test_secrets_are_looked_for_in_linear_time(kind: str) -> None:
    def search() -> None:
        for beginning in BEGINNINGS:
            text = beginning * (MB // 4 // len(beginning)) + PATTERNS[kind].needs
            assert sum(1 for _ in PATTERNS[kind].pattern.finditer(text)) <= len(text)

    assert outcome(search, seconds=30) is None


def test_other_patterns_take_linear_time() -> None:
    def search() -> None:
        runs = ("x" * MAX_RUN + " ") * (MB // MAX_RUN)
        spaces = (" " * MAX_RUN + "x") * (MB // MAX_RUN)
        for text in (runs, spaces):
            assert LONG_RUN.search(text) is None
        for beginning in BEGINNINGS:
            text = beginning * (MB // 4 // len(beginning))
            extract_query(text)
            normalize_query(text)
            is_ordered(text)
        assert not is_ordered("(" * MB + "order by" + ")" * MB)

    assert outcome(search, seconds=60) is None


def test_order_by_counts_outside_of_parentheses() -> None:
    assert is_ordered("select a from (select b) order by a")
    assert not is_ordered("select a from (select b order by (b))")
    assert is_ordered("select (a order by b")  # never closed: not taken away
    assert is_ordered("select a) order by b")


def test_a_text_full_of_control_tokens_takes_linear_time() -> None:
    from llama_fast.tokenizers.base import Tokenizer

    class Named(ByteTokenizer):
        def __init__(self) -> None:
            Tokenizer.__init__(self, 258, None, 256, {"<|end|>": 256})

    def spans() -> int:
        text, literal = "<|end|>" * 100_000, [(7 * i, 7 * i + 7) for i in range(0, 100_000, 2)]
        return len(list(Named()._special_spans(text, literal)))

    assert outcome(spans, seconds=20) == 50_000


def test_a_large_vocabulary_is_put_together_in_linear_time() -> None:
    def build() -> int:
        return len(serialise((f"piece{i}", float(-i), NORMAL) for i in range(256_000)))

    assert outcome(build, seconds=30) > 256_000 * 10


def write_gguf(path: Path, change: Callable[[GGUFWriter], None], **fields: Any) -> Path:
    """A GGUF file's header of a Llama model without tensors but an embedding."""
    writer = GGUFWriter(path, "llama")
    sizes = {"embedding_length": 8, "attention.head_count": 2, "block_count": 1,
             "feed_forward_length": 8, "context_length": 8, **fields}  # fmt: skip
    for key, value in sizes.items():
        writer.add_key_value(f"llama.{key}", value, GGUFValueType.UINT32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    change(writer)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention.key_length": 2**31 - 2}, "attention.key_length': expected an integer"),
        ({"attention.head_count": 0}, "attention.head_count': expected an integer"),
        ({"attention.head_count_kv": 2**31}, "attention.head_count_kv': expected an integer"),
        ({"embedding_length": 2**32 - 2, "attention.head_count": 1}, "embedding_length': expected"),
        ({"block_count": 2**31}, "block_count': expected an integer"),
        ({"context_length": 0}, "context_length': expected an integer"),
    ],
)
def test_sizes_of_a_gguf_file_are_checked_before_use(
    tmp_path: Path, fields: dict[str, int], message: str
) -> None:
    def linear(writer: GGUFWriter) -> None:
        writer.add_float32("llama.rope.scaling.factor", 4.0)

    path = write_gguf(tmp_path / "a.gguf", linear, **fields)
    found = error_of(load, path, memory=256 * MB)
    assert found.startswith(str(path)) and message in found


def test_arrays_of_a_gguf_file_take_what_the_file_takes(tmp_path: Path) -> None:
    def arrays(writer: GGUFWriter) -> None:
        writer.add_array("a.numbers", [0])

    path = write_gguf(tmp_path / "a.gguf", arrays)
    field = GGUFReader(path).fields["a.numbers"]
    before, content = field.offset, path.read_bytes()
    head = before + sum(int(part.nbytes) for part in field.parts[:3])
    numbers = struct.pack("<IQ", GGUFValueType.UINT8, 8 * MB) + bytes(8 * MB)
    strings = struct.pack("<IQ", GGUFValueType.STRING, MB) + bytes(8 * MB)
    behind = head + sum(int(part.nbytes) for part in field.parts[3:])
    for array in (numbers, strings):
        path.write_bytes(content[:head] + array + content[behind:])
        # The rest is not where its alignment has it, or lacks tensors: read to there either way.
        found = error_of(load, path, memory=300 * MB, seconds=60)
        assert str(path) in found
    nested = struct.pack("<IQ", GGUFValueType.ARRAY, 1) * 50_000
    path.write_bytes(content[:head] + nested + content[behind:])
    assert "expected an array of numbers or strings" in error_of(load, path)
    many = content[:16] + struct.pack("<Q", 2**60) + content[24:]
    path.write_bytes(many)
    assert "expected at most 65536 keys and tensors" in error_of(load, path)


def test_a_recorded_shape_is_compared_before_it_is_built(tmp_path: Path) -> None:
    state = json.loads(readers._run()["state.json"])

    def read(**changes: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        content = json.dumps({**state, "model": {**state["model"], **changes}}).encode()
        work = readers._read_run
        return error_of(lambda: work(folder, content, "state.json"), memory=256 * MB)

    assert "one of" in read(vocab_size=2**30) and "bytes of tensors" in read(num_layers=2**20)
    assert "max_seq_len: expected a positive int" in read(max_seq_len="8")
    assert "not a Llama model" in read(rope_scaling={"factor": "x"})
    assert "not a Llama model" in read(unknown=1)


def test_one_line_of_a_gz_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * (100 * MB), 1, mtime=0))
    assert path.stat().st_size < MB
    for work in (
        lambda: list(read_json_lines(path)),
        lambda: plant(path, tmp_path / "out", format="{digits}", digits=3, repeats=[1]),
    ):
        found = error_of(work, memory=400 * MB)
        assert found.startswith(f"{path}:1: expected a line of at most 67,108,864 bytes")
        assert "--limit line=N" in found


def test_a_limit_is_raised_by_its_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * (2 * MB), 1, mtime=0))
    monkeypatch.setenv("LLAMA_FAST_LIMITS", "text=1M")
    assert "expected at most 1,048,576 bytes after decompression" in error_of(
        lambda: list(read_documents(path))
    )
    monkeypatch.setenv("LLAMA_FAST_LIMITS", "text=1M,text=2M")
    (text,) = read_documents(path)
    assert len(text) == 2 * MB
    monkeypatch.setenv("LLAMA_FAST_LIMITS", "txet=1M")
    with pytest.raises(
        ValueError, match="LLAMA_FAST_LIMITS: expected NAME=VALUE with a NAME of json"
    ):
        list(read_documents(path))


def tokenizer_json(**changes: Any) -> bytes:
    return json.dumps({**json.loads(readers._files("hf")["tokenizer.json"]), **changes}).encode()


DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaa"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 30}}, "or crashes"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}, "status -6"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}},
            "expected ids below 16,777,216",
        ),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "out of range"),
    ],
)
def test_a_tokenizer_json_that_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("LLAMA_FAST_LIMITS", "tokenizer-memory=512M,tokenizer-seconds=60")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(**changes))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json: ") as caught:
        load_tokenizer(path)
    assert message in str(caught.value)


def test_ranks_that_lack_a_byte(tmp_path: Path) -> None:
    lines = readers._ranks().splitlines(keepends=True)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(lines[:65]) + b"aGVsbG8= 65\n")
    with pytest.raises(ValueError, match="expected a rank for each byte, got none for 0x41"):
        load_tokenizer(path)


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LOOPS, "expected at most 1 s of CPU time"),
        ("{{ 7 ** (7 ** (9 + messages | length)) }}", "expected at most 1 s of CPU time"),
        ("{{ 7 ** (7 ** 9) }}", "expected at most 1 s of CPU time"),  # computed when it is compiled
        ("{{ 'a' * (10 ** 11 + messages | length) }}", "bytes of memory, used more"),
        ("{{ 'a' * (10 ** 8 + messages | length) }}", "expected at most 67,108,864 characters"),
        ("{{ messages[0].content.center(10 ** 12) }}", "bytes of memory, used more"),
        ("{{ '%999999999999d' % messages | length }}", "memory"),
        ("{{ messages | tojson(indent=10 ** 10) }}", "bytes of memory, used more"),
        ("{{ lipsum(n=10 ** 8) }}", "expected at most 1 s of CPU time"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{{ " + "-" * 50_000 + "1 }}", "RecursionError"),
    ],
)
def test_a_chat_template_is_stopped(
    monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setenv("LLAMA_FAST_LIMITS", "template-seconds=1")
    messages = [{"role": "user", "content": "a"}]

    def render() -> str:
        return ChatTemplate(source).render(messages, ByteTokenizer())

    with pytest.raises(ValueError, match=r"^chat_template: ") as caught:
        render()
    assert message in str(caught.value)
    # The next one is rendered all the same.
    assert ChatTemplate("{{ messages[0].content }}").render(messages, ByteTokenizer()) == "a"


def test_a_training_configuration_of_aliases(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"

    def read(text: str) -> str:
        path.write_text(text)
        found = error_of(lambda: read_config([str(path)]), memory=256 * MB)
        assert found.startswith(str(path))
        return found

    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert "expected at most 10,000 values, with aliases expanded" in read("\n".join(laughs))
    assert "alias 'a': expected an anchor before it" in read("model: &a [*a]")
    assert "levels, got more" in read("model: " + "[" * 900 + "]" * 900)
    assert "of at most 10000 characters" in read("seed: 1" + ":1" * 200_000)
    assert "expected at most 1,048,576 bytes" in read("#" * (2 * MB))
    path.write_text("data: &d {micro_batch_size: 2}\nmodel: {preset: debug}\n")
    assert read_config([str(path)]).data.micro_batch_size == 2


DEEP = [
    b"[" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    b'{"a":' * 200 + b"1" + b"}" * 200,
]


@pytest.mark.parametrize("name", readers.TARGETS)
def test_nested_json_is_an_error_of_every_reader(tmp_path: Path, name: str) -> None:
    target = readers.TARGETS[name]

    def read_all() -> None:
        for number, content in enumerate(DEEP):
            folder = tmp_path / str(number)
            folder.mkdir()
            with contextlib.suppress(*USER_ERRORS):
                target.read(folder, content)

    assert outcome(read_all, seconds=60) is None


def test_json_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, message in (
        (b"{", r"not JSON: .*\(column 2\)"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "expected JSON with at most 100 levels"),
        (b'{"a":' * 99_999, "expected JSON with at most 100 levels"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: {message}"):
            read_json(path)
    assert parse_json("[" * 100 + "]" * 100, "text") is not None


# Modules that read JSON that this package, a child of it, its build or pip has written.
OWN_JSON = {
    "eval/choose/cards.py",
    "eval/choose/cost.py",
    "_reading.py", "_build_record.py", "info.py", "integrations/hub_kernels/repository.py",
    "tokenizers/save.py", "tokenizers/_json_check.py", "tokenizers/_json_child.py",
    "data/template_process.py", "cli/bench.py", "demo/finetune.py", "demo/finetune_side.py",
    "eval/suite/paper.py",
}  # fmt: skip


def test_json_of_others_is_read_by_one_function() -> None:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.load", "json.loads"):
                found.add(file.relative_to(PACKAGE).as_posix())
    # The sandbox's own channel and the cache of requests check what they read themselves.
    others = {name for name in found if name.startswith(("eval/suite/", "eval/request_cache"))}
    assert found - others <= OWN_JSON


def test_a_run_folder_of_wrong_types(tmp_path: Path) -> None:
    state = json.loads(readers._run()["state.json"])
    for name, value in (("model", []), ("config", 3), ("world_size", "1"), ("device", None)):
        folder = tmp_path / name
        content = json.dumps({**state, name: value}).encode()
        with pytest.raises(OSError, match=rf"state\.json: expected \w+ for '{name}"):
            readers._read_run(folder, content, "state.json")
    with pytest.raises(OSError, match="expected a checkpoint, there is none"):
        load_run(tmp_path / "nowhere")
