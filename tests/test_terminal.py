"""What models and files say steers no terminal, and reaches files and pipes as it is."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llama_fast._screen import Screen
from llama_fast._terminal import console, neutral, show, warnings_as_lines
from llama_fast.eval.report.final_table import task_table
from llama_fast.eval.report.table import LiveTable
from llama_fast.models import LLaMA, LlamaConfig, save
from tests.paths import REPOSITORY

# The clipboard, the window's title (by ESC and by a C1 character), the cursor, a bell, what stands
# before on the line, a device's report, the direction of the text.
ATTACK = "\x1b]52;c;cm0gLXJm\x07 \x9d0;title\x9c \x1b[2J\x1b[H \a\b\r \x1b[6n \x90q \u202etxt"
SHOWN = neutral(ATTACK)


class Screenful(io.StringIO):
    def isatty(self) -> bool:
        return True


def orders(text: str) -> list[str]:
    """Characters that a terminal obeys."""
    return [c for c in text if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160
            or c == "\u202e"]  # fmt: skip


def test_neutral() -> None:
    assert not orders(SHOWN) and SHOWN.startswith(r"\x1b]52;c;cm0gLXJm\x07 \x9d0;title\x9c")
    kept = "a\tb\nc é 語 👩‍💻 العربية \\x1b"
    assert neutral(kept) == kept == neutral(neutral(kept))
    assert neutral("a\r\nb\rc") == "a\nb\\x0dc"


def test_show() -> None:
    terminal, file = Screenful(), io.StringIO()
    show(ATTACK, file=terminal)
    show(ATTACK, file=file)
    assert terminal.getvalue() == SHOWN + "\n" and file.getvalue() == ATTACK + "\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_tables(terminal: bool) -> None:
    out = Screenful() if terminal else io.StringIO()
    shown = console(file=out, force_terminal=terminal, color_system=None, width=400)
    table = Table(title=ATTACK)
    table.add_column(ATTACK)
    for cell in (ATTACK, Text(ATTACK), "[/]", "[link=x]"):
        table.add_row(cell)
    shown.print(table)
    with Live(Text(ATTACK), console=shown, refresh_per_second=4):
        shown.print(ATTACK + "[bold]")
    said = out.getvalue()
    assert "[/]" in said and "[link=x]" in said and "[bold]" in said
    if terminal:
        # What is left is the display's own: it hides the cursor and moves it.
        for own in ("\x1b[?25l", "\x1b[?25h", "\r", "\x1b[2K", "\x1b[1A"):
            said = said.replace(own, "")
        # rich itself leaves out bells and returns.
        assert not orders(said) and r"\x1b]52;c;" in said and r"\x9d0;title\x9c" in said
    else:
        assert "\x1b]52;c;" in said and "\x9d0;" in said


RESULTS = {
    "results": {"[/] a\x1b]0;x\x07": {"acc[/],none": 0.5, "acc[/]_stderr,none": 0.1}},
    "groups": {"g[/bold]": {"acc[/],none": 0.5}},
    "group_subtasks": {"g[/bold]": ["[/] a\x1b]0;x\x07"]},
    "n-samples": {},
}


def test_markup_in_results_is_text() -> None:
    out = Screenful()
    screen = Screen(console(file=out, force_terminal=True, color_system=None, width=200))
    screen.console.print(task_table(RESULTS))
    assert "acc[/]" in out.getvalue() and "g[/bold]" in out.getvalue()
    with LiveTable({"[/]": 1}, console=screen.console) as table:
        table.start_task("[/]", 1)
        table.fail("[/]", f"[/nope] {ATTACK}")
    assert "[/nope]" in out.getvalue() and "\x1b]" not in out.getvalue()
    with screen.bar("[/]") as bar:
        bar(1, 2, f"[/x] {ATTACK}")
    screen.heading("[/]")


def test_comparing_runs_with_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llama_fast.cli.main import main

    task, model = "[/] task", "[/model]\x1b]0;x\x07"
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        found = {"results": {task: {"acc,none": 0.5, "acc_stderr,none": 0.1}},
                 "llama_fast": {"model": f"{model}{name}"}}  # fmt: skip
        (folder / "results.json").write_text(json.dumps(found))
        sample = {"doc_id": 0, "doc": {}, "doc_hash": "h", "prompt_hash": "h",
                  "target_hash": "h", "target": "", "resps": [["x"]],
                  "arguments": {"gen_args_0": {"arg_0": "a", "arg_1": {}}}, "acc": 1.0,
                  "filtered_resps": ["x"], "filter": "none"}  # fmt: skip
        (folder / "samples__task.jsonl").write_text(json.dumps(sample))
    code = main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "b")])
    said = capsys.readouterr()
    assert code == 0 and "[/] task" in said.out and "[/model]" in said.out, said.err


def test_warnings_quote_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    warnings_as_lines("llama-fast")
    for stream, expected in ((Screenful(), SHOWN), (io.StringIO(), ATTACK)):
        monkeypatch.setattr(sys, "stderr", stream)
        line = warnings.formatwarning(ATTACK, UserWarning, "x.py", 1)
        assert line == f"llama-fast: warning: {expected}\n"


def on_terminal(command: list[str], typed: str = "") -> str:
    """All that a command writes to a terminal on which a person types."""
    ours, its = pty.openpty()
    # The library that reads lines sends no orders to a dumb terminal.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TERM": "dumb"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=REPOSITORY,
                          env=environment) as child:  # fmt: skip
        os.close(its)
        os.write(ours, typed.encode())
        said = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the child has closed its end
                break
            if not part:
                break
            said += part
        child.wait()
    os.close(ours)
    return said.decode(errors="replace").replace("\r\n", "\n")


def test_an_error_that_quotes_a_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps({"model_type": ATTACK}))
    command = [sys.executable, "-m", "llama_fast", "generate", str(tmp_path / "m"), "a"]
    said = on_terminal(command)
    assert "llama-fast: error" in said and not orders(said.replace("\r\n", "\n")), said


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that make a model say random bytes, many of which a terminal obeys."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("m") / "model"
    save(LLaMA(LlamaConfig.preset("debug", vocab_size=257, max_seq_len=512)), folder)
    return [str(folder), "--tokenizer", "byte", "--device", "cpu", "--max-new-tokens", "200",
            "--temperature", "50", "--seed", "1"]  # fmt: skip


OURS = [sys.executable, "-m", "llama_fast"]


def test_generate_on_a_terminal_and_in_a_pipe(tmp_path: Path, babbler: list[str]) -> None:
    attack = ATTACK.replace("\r", "")  # a line of a file ends there
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": attack}))
    command = [*OURS, "generate", *babbler, "--prompts", str(tmp_path / "prompts.jsonl")]
    said = on_terminal(command)
    assert neutral(attack) in said and not orders(said), said
    piped = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    assert piped.startswith(attack.encode())
    new = piped[len(attack.encode()) :].decode()
    assert len(orders(new)) > 10, "the model says too little that a terminal obeys"
    # The same text, byte for byte or neutral; the first line is the status, the last the speed.
    status, weights, text = said.split("\n", 2)
    assert status.startswith("Loading ") and "weights in float32" in weights
    assert text.startswith(neutral(piped.decode()))


def test_chat_on_a_terminal(babbler: list[str]) -> None:
    command = [*OURS, "chat", *babbler, "--chat-template", "plain"]
    said = on_terminal(command, "Hi\n/exit\n")
    assert len(said) > 200 and not orders(said), said
