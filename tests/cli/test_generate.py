"""`llama-fast generate` and `llama-fast chat` as a person uses them."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llama_fast.cli import main as cli
from llama_fast.data.chat import ChatTemplate, end_of_turn
from llama_fast.models import LLaMA, LlamaConfig, save
from llama_fast.tokenizers import ByteTokenizer
from tests.paths import data_file, smollm2

FOLDER = "checkpoints/stories260k"


def stories(*arguments: str) -> list[str]:
    folder = data_file(FOLDER)
    return [str(folder / "stories260K.bin"), "--tokenizer", str(folder / "tok512.bin"), *arguments]


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_golden_story(capsys: pytest.CaptureFixture[str]) -> None:
    found = out(capsys, "generate", *stories("--max-new-tokens", "256"))
    fence = (data_file(FOLDER) / "stories260K.md").read_text(encoding="utf-8").split("```")[3]
    assert found == fence.partition("-t 0.0\n")[2]


def test_it_needs_no_package_of_evaluation_or_training() -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['rich', 'lm_eval', 'datasets', 'jsonargparse', 'pyarrow'])\n"
        "from llama_fast.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "generate", *stories("--max-new-tokens", "3")]
    subprocess.run(command, check=True, capture_output=True)


def test_a_prompt_is_continued_up_to_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    found = out(capsys, "generate", *stories("Once upon a time", "--stop", "park", "--stop", "!"))
    assert found == (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the \n"
    )


def test_prompts_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    prompts = ["Once upon", "The cat", "Lily saw a"]
    lines.write_text("\n\n".join(prompts) + "\n")
    objects.write_text('{"prompt": "Once upon", "id": 1}\n"The cat"\n\n{"prompt": "Lily saw a"}')
    options = ("--max-new-tokens", "15", "--batch", "2")
    alone = [out(capsys, "generate", *stories(p, *options)) for p in prompts]
    together = out(capsys, "generate", *stories("--prompts", str(lines), *options))
    assert together == "\n".join(alone)
    answers = out(capsys, "generate", *stories("--prompts", str(objects), *options, "--json"))
    for n, line in enumerate(answers.splitlines()):
        found = json.loads(line)
        assert (found["index"], found["prompt"]) == (n, prompts[n])
        assert found["prompt"] + found["text"] + "\n" == alone[n]
        assert (found["tokens"], found["finish_reason"]) == (15, "length")


def test_the_seed_repeats_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    def text(seed: int) -> str:
        options = ("--temperature", "1", "--top-p", "0.9", "--top-k", "99", "--min-p", "0.01")
        return out(capsys, "generate", *stories("One day", *options, "--seed", str(seed)))

    assert text(1) == text(1) != text(2)


def test_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time"))
    assert out(capsys, "generate", *stories("-", "--max-new-tokens", "3")).startswith("Once upon a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "0"], "--top-p: expected a number in (0, 1], got 0.0"),
        (["--batch", "0"], "--batch: expected at least 1, got 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected at least 1, got 0"),
        (["--stop", ""], "--stop: expected a text of at least one character, got ''"),
        (["--prompts", "BAD.jsonl"], "BAD.jsonl:2: not JSON: Expecting value"),
        (["--prompts", "LIST.jsonl"], "LIST.jsonl:1: expected a string, or"),
        (["--prompts", "EMPTY.txt"], "EMPTY.txt: expected at least one prompt, got none"),
        (["--prompts", "LATIN.txt"], "LATIN.txt:1: not UTF-8"),
        (["--prompts", "NONE.txt"], "No such file or directory"),
        (["text", "--prompts", "BAD.jsonl"], "prompt: expected none with --prompts"),
        (["x " * 600], "prompt: expected a prompt shorter than the model's context of 512"),
        (["--prompts", "LONG.txt"], "LONG.txt:3: expected a prompt shorter than the model's"),
        (["--device", "cuda:x"], "device: expected"),
        (["hi", "--chat"], "--chat-template: expected chatml, llama3, plain or a file, because"),
        (["--chat"], "prompt: expected a message with --chat, got none"),
        (["hi", "--system", "Be brief."], "--system: expected --chat beside it, got none"),
        (["hi", "--chat-template", "plain"], "--chat-template: expected --chat beside it"),
        (["hi", "--chat", "--special"], "--special: expected none with --chat"),
        (["hi", "--chat", "--chat-template", "chatmI"], "--chat-template: expected chatml, llama3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("BAD.jsonl").write_text('"fine"\nnot json\n')
    Path("LIST.jsonl").write_text("[1]\n")
    Path("EMPTY.txt").write_text("\n \n")
    Path("LONG.txt").write_text("fine\n\n" + "x " * 600 + "\nfine\n")
    Path("LATIN.txt").write_bytes(b"caf\xe9\n")
    assert cli.main(["generate", *stories(*arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_answers_of_an_instruct_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each prompt is the first message of a chat of its own: the answer is that of `chat`."""
    questions = ["What is the capital of France?", "Name a colour."]
    options = [str(smollm2()), "--system", "Answer with one word.", "--max-new-tokens", "24"]
    expected = []
    for question in questions:
        monkeypatch.setattr(sys, "stdin", io.StringIO(question + "\n"))
        expected.append(out(capsys, "chat", *options).strip())
    assert "Paris" in expected[0]
    assert out(capsys, "generate", *options, "--chat", questions[0]) == expected[0] + "\n"
    (tmp_path / "prompts.txt").write_text("\n".join(questions))
    options += ["--chat", "--prompts", str(tmp_path / "prompts.txt"), "--batch", "1"]
    found = out(capsys, "generate", *options)
    assert (
        found
        == "\n\n".join(
            f"> {question}\n{answer}" for question, answer in zip(questions, expected, strict=True)
        )
        + "\n"
    )
    rows = [json.loads(line) for line in out(capsys, "generate", *options, "--json").splitlines()]
    assert [row["text"] for row in rows] == expected
    assert {row["finish_reason"] for row in rows} == {"stop"}


def test_the_short_name_of_smollm2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    smollm2()  # so that it is in the cache
    (tmp_path / "text.txt").write_text("Once upon a time")
    command = ["tokenize", str(tmp_path / "text.txt"), "--tokenizer", "smollm2"]
    assert "6 tokens" in out(capsys, *command, "--out", str(tmp_path / "shards"))
    export = ["export", "smollm2", "--to", "gguf", "--out", str(tmp_path / "copy.gguf")]
    assert "134.5 M weights" in out(capsys, *export, "--dtype", "bfloat16")
    options = ["The capital of France is", "--max-new-tokens", "1"]
    assert out(capsys, "generate", "smollm2", *options).endswith(" Paris\n")


# --- chat ------------------------------------------------------------------------------------


def test_end_of_turn() -> None:
    class Words(ByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.special = {"<|im_end|>": 1, "<|im_start|>": 2}
            import re

            self.special_pattern = re.compile(r"<\|im_end\|>|<\|im_start\|>")

    assert end_of_turn(ChatTemplate("chatml"), Words()) == (1, None)
    assert end_of_turn(ChatTemplate("plain"), ByteTokenizer()) == (None, "\nuser:")


def converse(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    *options: str,
) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return out(capsys, "chat", str(smollm2()), "--max-new-tokens", "24", *options).splitlines()


@pytest.mark.slow
def test_turns_are_remembered_until_reset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hello, ask = "My name is Zeno.", "What is my name?"
    lines = [hello, ask, "/nonsense", "/reset", ask, "/exit", hello]
    found = converse(capsys, monkeypatch, lines)
    assert len(found) == 4
    assert "Zeno" in found[1]
    assert found[2].startswith("no such command: /nonsense")
    assert "Zeno" not in found[3]
    assert found[3] == converse(capsys, monkeypatch, [ask])[0]


def tiny_chat_model(folder: Path) -> list[str]:
    torch.manual_seed(0)
    save(LLaMA(LlamaConfig(257, 64, 4, 2, max_seq_len=100_000)), folder)
    return [str(folder), "--tokenizer", "byte", "--chat-template", "plain"]


def test_a_chat_longer_than_the_context(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(LLaMA(LlamaConfig(257, 64, 4, 2, max_seq_len=64)), tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 80 + "\n"))
    found = out(capsys, "chat", str(tmp_path), "--tokenizer", "byte", "--chat-template", "plain")
    assert found.startswith("the chat is longer than the model's context of 64 tokens")


def test_chat_without_a_template(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, *rest = tiny_chat_model(tmp_path)
    assert cli.main(["chat", model, *rest[:2]]) == 2
    assert "chat-template: expected chatml, llama3, plain or a file" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    """On a terminal: an answer without end, interrupted twice."""
    options = [*tiny_chat_model(tmp_path), "--max-new-tokens", "90000"]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llama_fast", "chat", *options]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        os.close(theirs)
        seen = ""

        def wait_for(text: str, seconds: float = 60) -> None:
            nonlocal seen
            end = time.monotonic() + seconds
            while text not in seen:
                assert time.monotonic() < end, f"no {text!r} in {seen[-300:]!r}"
                seen += os.read(ours, 4096).decode("utf-8", "replace")
            seen = seen.partition(text)[2]

        wait_for("/reset starts a new conversation")
        for _ in range(2):
            wait_for("> ")
            os.write(ours, b"hello\n")
            wait_for("hello")
            while len(seen) < 200:  # it is answering
                seen += os.read(ours, 4096).decode("utf-8", "replace")
            process.send_signal(signal.SIGINT)
            wait_for("[stopped]")
        wait_for("> ")
        os.write(ours, b"/exit\n")
        assert process.wait(60) == 0
    os.close(ours)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gemma2"])
def test_models_of_other_architectures(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is that of transformers' own greedy generation, in `generate` and in `chat`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
        **({"final_logit_softcapping": None} if architecture == "gemma2" else {}),
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():  # far from ties
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    prompt = torch.tensor([ByteTokenizer().encode_prompt("Once upon")])
    with torch.no_grad():
        tokens = model.generate(prompt, max_new_tokens=8, do_sample=False)[0].tolist()
    new = tokens[prompt.shape[1] :]
    expected = new[: new.index(256)] if 256 in new else new  # the end of text
    command = ["generate", str(tmp_path), "Once upon", "--tokenizer", "byte"]
    found = json.loads(out(capsys, *command, "--max-new-tokens", "8", "--json"))
    assert found["text"] == ByteTokenizer().decode(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("Hello\n"))
        chat = ["chat", str(tmp_path), "--tokenizer", "byte", "--chat-template", "plain"]
        assert cli.main([*chat, "--max-new-tokens", "4"]) == 0


def test_errors_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {"cudda": "expected cpu, cuda or auto", "mps": "torch cannot use 'mps'"}
    for device, reason in reasons.items():
        for command in ("generate", "chat", "eval"):
            more = ["--tasks", "arc_easy"] if command == "eval" else []
            assert cli.main([command, str(tmp_path), "--device", device, *more]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"llama-fast: error: --device: {reason}"), error
            assert error.count("\n") == 1
