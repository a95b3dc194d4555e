"""Every code block of the README, the site and CONTRIBUTING is run, or its commands are checked."""

from __future__ import annotations

import functools
import importlib.util
import io
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from llama_fast.cli.main import main
from tests.docs.pages import (
    LANGUAGES,
    PAGES,
    REASONS,
    Block,
    blocks,
    commands,
    llama_fast_arguments,
)
from tests.paths import REPOSITORY

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE))


def named(block: Block) -> str:
    return block.place


def relative(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def test_every_block_has_a_known_language():
    assert {block.language for block in BLOCKS} <= LANGUAGES | {"setup"}


def test_blocks_that_are_not_run_say_why():
    reasons = {block.reason for block in BLOCKS} - {None}
    assert reasons <= REASONS
    assert reasons  # the marker is recognised


def run_page(page: Path, folder: Path) -> int:
    """Run what a page has, in order; the number of blocks."""
    names: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language in ("python", "setup"):
            code = compile("\n" * block.line + block.code, str(page), "exec")
            exec(code, names)
        elif block.marker:
            run_shell(block, folder)
        else:
            continue
        ran += 1
    return ran


def run_shell(block: Block, folder: Path) -> None:
    """Run the `llama-fast` commands of a bash block, in this process."""
    for line in block.code.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        # bash expands patterns and quotes; the words come back with zeros between them.
        list_words = ["bash", "-c", f"printf '%s\\0' {line}"]
        words = subprocess.run(list_words, cwd=folder, capture_output=True, text=True, check=True)
        program, *arguments = words.stdout.rstrip("\0").split("\0")
        assert program == "llama-fast", f"{block.place}: {program}"
        assert main(arguments) == 0, f"{block.place}: {line}"


def runnable(page: Path) -> bool:
    kinds = ("python", "setup")
    return any(b.reason is None and (b.language in kinds or b.marker) for b in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=relative)
def test_blocks_run(page, tmp_path, monkeypatch):
    text = page.read_text()
    for package in ("transformers", "lm_eval"):
        if f"import {package}" in text or f"from {package}" in text:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    assert run_page(page, tmp_path) > 0


def test_a_failing_block_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = REPOSITORY / "page.md"  # is not read: only its name is used
    block = Block(page, 1, "bash", "llama-fast tokenize absent.txt --out shards\n", "run")
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        run_shell(block, tmp_path)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=named
)
def test_configurations_load(block, tmp_path):
    pytest.importorskip("jsonargparse")
    path = tmp_path / "config.yaml"
    path.write_text(block.code)
    check_train_options([str(path)])


@pytest.mark.parametrize("block", SHELL, ids=named)
def test_commands_exist(block):
    for words in commands(block.code):
        arguments = llama_fast_arguments(words)
        if arguments is not None:
            check_llama_fast(arguments)
        elif words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= TARGETS, f"{block.place}: {words}"
        elif words[0] == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), f"{block.place}: {words[2]}"
        elif words[:2] == ["pip", "install"]:
            extras = re.findall(r"(?:llama_fast|\.)\[([\w,]+)\]", " ".join(words))
            assert {e for each in extras for e in each.split(",")} <= EXTRAS
        else:
            known = ("python", "pytest", "git", "docker", ".ci/run")
            assert words[0] in known, f"{block.place}: {words[0]}"
        for word in words:
            if re.fullmatch(
                r"(configs|docs|examples|tests|benchmarks|csrc|kernels)/[\w./-]+", word
            ):
                assert (REPOSITORY / word).exists(), f"{block.place}: {word}"


@functools.cache
def help_of(*command: str) -> str:
    """What `llama-fast COMMAND --help` prints."""
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0, f"llama-fast {' '.join(command)}"
    return shown.getvalue()


SUBCOMMANDS = {"data": ("check", "plant"), "eval": ("compare", "canary", "choose")}


def check_llama_fast(arguments: list[str]) -> None:
    """Whether the command and its options exist, by its help; of `train`, also their values."""
    while arguments[0] == "--limit":
        arguments = arguments[2:]
    command = tuple(arguments[:1])
    if len(arguments) > 1 and arguments[1] in SUBCOMMANDS.get(arguments[0], ()):
        command = tuple(arguments[:2])
    options = {a.partition("=")[0] for a in arguments[len(command) :] if a.startswith("--")}
    if command == ("train",):
        return check_train_options(arguments[1:])
    known = help_of(*command)
    if command == ("plan",):  # its help refers to the options of train
        known += help_of("train")
    missing = [o for o in options if not re.search(rf"{re.escape(o)}(?![\w-])", known)]
    assert not missing, f"llama-fast {' '.join(command)}: no option {missing}"


def check_train_options(arguments: list[str]) -> None:
    """Whether `llama-fast train` takes these: names, types and ranges."""
    if "--help" in arguments:
        assert help_of("train")
        return
    # A configuration of the repository is named relative to it.
    arguments = [str(REPOSITORY / a) if a.startswith("configs/") else a for a in arguments]
    if not arguments[0].startswith("-") and not Path(arguments[0]).exists():
        arguments = arguments[1:]  # a placeholder
    try:
        code = main(["train", *arguments, "--print-config"])
    except SystemExit as ended:
        code = ended.code
    assert code == 0


def test_an_unknown_option_fails():
    with pytest.raises(AssertionError, match="no option"):
        check_llama_fast(["generate", "model", "--max-tokens", "8"])
    with pytest.raises(AssertionError):
        check_llama_fast(["train", "configs/debug.yaml", "--data.rowz", "8"])


INLINE = re.compile(r"`((?:llama-fast|make) [^`]+)`")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_in_sentences_exist(page):
    for text in INLINE.findall(page.read_text()):
        words = commands(text)[0] if "'" in text or '"' in text else text.split()
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w and not w.startswith("-")} <= TARGETS, text
        elif words[1].islower() and words[1] not in ("eval", "data", "train"):
            check_llama_fast([w for w in words[1:] if w != "..."])
        else:
            assert re.match(r"(eval|data|train|COMMAND)\b|--limit|--help", words[1]), text


PATHS = re.compile(
    r"`((?:llama_fast|csrc|kernels|tests|benchmarks|examples|configs|docs)/[\w./-]+)`"
)


# The others speak of files of their time.
OF_TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "decisions.md")]


@pytest.mark.parametrize("page", OF_TODAY, ids=relative)
def test_named_files_exist(page):
    absent = [p for p in PATHS.findall(page.read_text()) if not (REPOSITORY / p).exists()]
    assert not absent


def test_names_of_the_walks_exist():
    """What docs/how/walks.md names is somewhere in the code."""
    page = (REPOSITORY / "docs" / "how" / "walks.md").read_text()
    sources = [p for f in ("llama_fast", "csrc") for p in (REPOSITORY / f).rglob("*.*")]
    code = "\n".join(p.read_text() for p in sources if p.suffix in (".py", ".cpp", ".h"))
    words = set(re.findall(r"\w+", code))
    names = re.findall(r"`((?:\w+(?:\.|::))*\w+)(?:\(.*\))?`", page)
    assert len(names) > 20
    assert not [n for n in names if "/" not in n and not set(re.findall(r"\w+", n)) <= words]
