"""A whole evaluation, without the command line."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from llama_fast.eval.harness import HarnessModel
from llama_fast.eval.limits import Limits
from llama_fast.eval.report import read_run
from llama_fast.eval.report.suites import metric_keys
from llama_fast.eval.request_cache import CacheError
from llama_fast.eval.run import Outcome, evaluate_tasks, load
from llama_fast.eval.suite import sandbox
from llama_fast.eval.suite.mirror import Mirror, MissingDataError
from tests import paths
from tests.paths import data_file


def test_a_task_without_a_score_is_named_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ToxiGen's texts have no score without its classifier; GSM8K's are longer than the model."""
    monkeypatch.setattr("llama_fast.eval.suite.toxigen.CLASSIFIER", str(tmp_path / "none"))
    stories = data_file("checkpoints/stories260k") / "stories260K.bin"
    lm = HarnessModel(str(stories), device="cpu", max_length=200)
    names = ["toxigen_generation", "gsm8k_cot", "arc_easy"]
    loaded = load(names, paths.mirror())
    outcome = evaluate_tasks(
        lm, loaded, tmp_path, limits=Limits(2), keys=metric_keys("llama2-paper")
    )
    assert outcome.failed == ["gsm8k_cot"]
    assert outcome.not_scored.keys() == {"toxigen_generation", "gsm8k_cot"}
    assert "not scored" in outcome.not_scored["toxigen_generation"]
    assert outcome.not_scored["gsm8k_cot"].startswith("max_gen_toks: expected less than the model")
    run = read_run(tmp_path)
    assert run.metadata["device"] == "cpu" and run.metadata["quantization"] is None
    assert abs(run.metadata["date"] - run.path.stat().st_mtime) < 3600
    assert run.metadata["not_scored"] == outcome.not_scored and run.metadata["notes"] is None
    assert len(list(run.samples("toxigen_generation"))) == 2  # kept all the same
    assert run.results["results"]["arc_easy"]["acc_norm,none"] in (0, 0.5, 1)
    said = capsys.readouterr()
    assert "toxigen_generation: no score" in said.out and said.err == ""


@pytest.fixture(scope="module")
def stories() -> HarnessModel:
    return HarnessModel(str(data_file("checkpoints/stories260k") / "stories260K.bin"), device="cpu")


@pytest.fixture
def mirror() -> Path:
    return paths.mirror()


def test_an_os_error_of_a_task_is_that_task_s(
    stories: HarnessModel, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sandbox breaks at the third program."""
    programs = []

    def run(program: str, limits: sandbox.Limits, tests: str) -> sandbox.Outcome:
        programs.append(program)
        if len(programs) == 3:
            raise sandbox.SandboxError("the sandbox did not start")
        return sandbox.Outcome("failed", "not run in this test", 0.0)

    monkeypatch.setattr(sandbox, "measures", dict)
    monkeypatch.setattr(sandbox, "run", run)
    loaded = load(["mbpp", "piqa"], mirror, allow_code=True)
    outcome = evaluate_tasks(stories, loaded, tmp_path, limits=Limits(4))
    assert len(programs) == 3 and outcome.failed == ["mbpp"]
    assert outcome.not_scored == {"mbpp": "SandboxError: the sandbox did not start"}
    run_of = read_run(tmp_path)
    assert run_of.tasks == ["piqa"] and run_of.metadata["not_scored"] == outcome.not_scored


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), MemoryError, "gsm8k_cot: .*smaller budget"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
    ],
)
def test_what_would_end_every_task_ends_the_run(
    stories: HarnessModel, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, kind: type[Exception], message: str,
) -> None:  # fmt: skip
    def run(requests: object) -> list[str]:
        raise error

    loaded = load(["piqa", "gsm8k_cot", "openbookqa"], mirror)
    monkeypatch.setattr(stories, "generate_until", run)
    with pytest.raises(kind, match=message):
        evaluate_tasks(stories, loaded, tmp_path, limits=Limits(2))
    assert read_run(tmp_path).tasks == ["piqa"]


def test_one_run_at_a_time_in_a_folder(stories: HarnessModel, mirror: Path, tmp_path: Path) -> None:
    holds = "import sys, time; from llama_fast._lock import hold; from pathlib import Path\n"
    holds += "hold(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    command = [sys.executable, "-c", holds, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "\n"
            with pytest.raises(OSError, match="is in use by another run"):
                evaluate_tasks(stories, load(["piqa"], mirror), tmp_path, limits=Limits(2))
        finally:
            other.kill()
    evaluate_tasks(stories, load(["piqa"], mirror), tmp_path, limits=Limits(2))
    assert read_run(tmp_path).tasks == ["piqa"]


def test_a_task_whose_questions_fail_is_named(
    stories: HarnessModel, mirror: Path, tmp_path: Path
) -> None:
    loaded = load(["arc_easy", "piqa"], mirror)
    task = loaded["tasks"]["arc_easy"]
    task.config.process_docs = lambda rows: rows.map(lambda row: {"x": row["no_such_field"]})
    outcome = evaluate_tasks(stories, loaded, tmp_path, limits=Limits(2))
    assert outcome.failed == ["arc_easy"] and "no_such_field" in outcome.not_scored["arc_easy"]
    assert read_run(tmp_path).tasks == ["piqa"]


def test_answers_that_cannot_be_kept_end_the_run(
    mirror: Path, tmp_path: Path, stories: HarnessModel
) -> None:
    lm = HarnessModel(stories.name, device="cpu", cache=tmp_path / "requests.sqlite")
    loaded = load(["piqa", "arc_easy"], mirror)
    assert lm.cache is not None
    lm.cache.close()
    with pytest.raises(CacheError, match=r"requests\.sqlite: answers cannot be read"):
        evaluate_tasks(lm, loaded, tmp_path, limits=Limits(2))


def test_a_second_run_stands_beside_the_first(
    stories: HarnessModel, mirror: Path, tmp_path: Path
) -> None:
    def ask(*names: str, command: str, **options: Any) -> Outcome:
        facts = {"command": command, "preset": options.pop("preset", None)}
        loaded = load(names, mirror)
        loaded["missing"] |= options.pop("missing", {})
        return evaluate_tasks(stories, loaded, tmp_path, metadata=facts, **options)

    two, three = Limits(2), Limits(3)
    ask(
        "piqa", "triviaqa_wiki_5shot", command="first", preset="llama2-paper", limits=two,
        missing={"quac": "no data", "winogrande": "no data"},
    )  # fmt: skip
    before = read_run(tmp_path)
    assert ask("winogrande", command="second", limits=three).notes == []
    run = read_run(tmp_path)
    assert run.tasks == ["piqa", "triviaqa_wiki_5shot", "winogrande"]
    assert run.results["results"]["piqa"] == before.results["results"]["piqa"]
    assert [len(list(run.samples(task))) for task in run.tasks] == [2, 2, 3]
    facts = run.metadata
    assert (facts["command"], facts["earlier_commands"]) == ("second", ["first"])
    assert facts["preset"] == "llama2-paper" and facts["not_scored"] == {"quac": "no data"}
    assert "rc.nocontext stands in for rc.wikipedia.nocontext" in facts["notes"]
    # Asked once more, a task takes the place of what it was.
    ask("winogrande", command="second", limits=three)
    assert read_run(tmp_path).tasks == run.tasks
    assert read_run(tmp_path).metadata["earlier_commands"] == ["first"]
    assert not list(tmp_path.glob("earlier-*"))


def test_results_of_other_settings_are_moved_aside(
    stories: HarnessModel, mirror: Path, tmp_path: Path
) -> None:
    def ask(names: list[str], shots: int | None = None, **options: Any) -> list[str]:
        loaded = load(names, mirror, num_fewshot=shots)
        return evaluate_tasks(stories, loaded, tmp_path, **options).notes

    def there() -> list[list[str]]:
        return [read_run(p).tasks for p in (tmp_path, *sorted(tmp_path.glob("earlier-*")))]

    moved = "results of another {} were there: moved to earlier-{}"
    two = Limits(2)
    assert ask(["piqa"], limits=two) == []
    first = read_run(tmp_path)
    texts = list(first.samples("piqa"))
    (tmp_path / "report.html").write_text("the first")
    notes = ask(["winogrande"], limits=two, system="Answer.")
    assert notes == [moved.format("system (none, now Answer.)", 1)]
    assert read_run(tmp_path).metadata["notes"] == notes[0]
    assert there() == [["winogrande"], ["piqa"]]
    aside = read_run(tmp_path / "earlier-1")
    assert aside.results == first.results and list(aside.samples("piqa")) == texts
    assert (tmp_path / "earlier-1" / "report.html").read_text() == "the first"
    # The same task with another number of questions or examples is another result.
    notes = ask(["winogrande"], limits=Limits(3), system="Answer.")
    assert notes == [moved.format("number of questions of winogrande (2, now 3)", 2)]
    notes = ask(["winogrande"], shots=1, limits=Limits(3), system="Answer.")
    assert notes == [moved.format("number of examples of winogrande (0, now 1)", 3)]
    (tmp_path / "results.json").write_text("{")
    notes = ask(["piqa"], limits=two)
    assert notes == ["a damaged results.json was there: moved to earlier-4"]
    bfloat16 = HarnessModel(stories.name, dtype="bfloat16", device="cpu")
    notes = evaluate_tasks(bfloat16, load(["boolq"], mirror), tmp_path, limits=two).notes
    assert notes[0].startswith("results of another model (") and "earlier-5" in notes[0]


def test_drawn_questions_are_recorded_and_groups_count_by_size(
    stories: HarnessModel, mirror: Path, tmp_path: Path
) -> None:
    def ask(limits: Limits) -> Outcome:
        return evaluate_tasks(stories, load(["agieval_nous"], mirror), tmp_path, limits=limits)

    outcome = ask(Limits.parse("4,agieval_sat_en=6", seed=3))
    run = read_run(tmp_path)
    for task in run.tasks:
        drawn = run.results["drawn"][task]
        assert drawn["how"] == "drawn" and drawn["seed"] == 3
        assert [sample["doc_id"] for sample in run.samples(task)] == drawn["ids"]
        assert run.results["n-samples"][task]["effective"] == len(drawn["ids"])
    sizes = {task: run.results["n-samples"][task]["original"] for task in run.tasks}
    values = {task: run.results["results"][task]["acc_norm,none"] for task in run.tasks}
    group = run.results["groups"]["agieval_nous"]
    expected = sum(sizes[task] * values[task] for task in sizes) / sum(sizes.values())
    assert group["acc_norm,none"] == pytest.approx(expected)
    assert group["sample_len"] == 4 * 7 + 6 and "agieval_nous" in outcome.results["groups"]
    errors = {task: run.results["results"][task]["acc_norm_stderr,none"] for task in run.tasks}
    variance = sum((sizes[task] * errors[task]) ** 2 for task in sizes)
    assert group["acc_norm_stderr,none"] == pytest.approx(variance**0.5 / sum(sizes.values()))
    # The same again is added; other questions move the results aside.
    assert ask(Limits.parse("4,agieval_sat_en=6", seed=3)).notes == []
    (note,) = ask(Limits.parse("4,agieval_sat_en=6", is_first=True)).notes
    assert note.startswith("results of another choice of questions of agieval_")
    first = read_run(tmp_path).results["drawn"]["agieval_sat_en"]
    assert first == {"how": "first", "seed": None, "by": [], "ids": [0, 1, 2, 3, 4, 5]}


def test_question_answering_needs_no_folder(monkeypatch: pytest.MonkeyPatch, mirror: Path) -> None:
    """Its data are on the hub; those of the other scenarios are files alone."""
    monkeypatch.setattr("llama_fast.eval.suite.mirror._ONLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda p, n: Mirror(mirror).load(p, n, None, {}))
    assert list(load(["scenario_qa"], None)["tasks"]) == ["scenario_nq_open", "scenario_squad"]
    with pytest.raises(MissingDataError, match=r"multi30k: name the folder .* with data_dir"):
        load(["scenario_translation"], None)
