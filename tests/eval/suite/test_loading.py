"""Every task of the paper's preset, built offline from the mirror of real data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from llama_fast.eval.suite import LoadedTasks, MissingDataError, load_tasks, suite
from llama_fast.eval.suite.code import CodeEval
from tests.paths import extra, original

# Of the whole sets, as the benchmarks' authors count them; those of SQuAD and QuAC are subsets.
# Then what the mirror has, of which some are whole.
QUESTIONS = {
    "HumanEval": (164, 9),
    "MBPP": (500, 5),
    "PIQA": (1838, 1838),
    "SIQA": (1954, 1954),
    "HellaSwag": (10042, 10042),
    "WinoGrande": (1267, 100),
    "ARC-Easy": (2376, 60),
    "ARC-Challenge": (1172, 60),
    "OpenBookQA": (500, 500),
    "CommonsenseQA": (1221, 1221),
    "NaturalQuestions": (3610, 180),
    "TriviaQA": (7993, 7993),
    "SQuAD": (1190, 240),
    "QuAC": (41, 41),
    "BoolQ": (3270, 40),
    "GSM8K": (1319, 250),
    "MATH": (5000, 112),
    "MMLU": (14042, 342),
    "BBH": (6511, 216),
    "AGIEval": (2546, 61),
    "MC2": (817, 40),
    "Toxic": (6514, 39),
    "Sentiment": (23679, 389),
}
PARTS = {part.name: part for part in suite("llama2-paper").parts}


def test_the_whole_preset_is_there(suite_tasks: LoadedTasks) -> None:
    assert suite_tasks["missing"] == {}
    assert PARTS.keys() == QUESTIONS.keys()
    wanted = {task for part in PARTS.values() for task in part.tasks}
    assert wanted == set(suite_tasks["tasks"])


@pytest.mark.parametrize("name", PARTS)
def test_a_benchmark_has_its_questions_shots_and_metric(
    name: str, suite_tasks: LoadedTasks
) -> None:
    part = PARTS[name]
    tasks = [suite_tasks["tasks"][task] for task in part.tasks]
    assert sum(len(task.eval_docs) for task in tasks) == QUESTIONS[name][1]
    metric = part.metric.split(",")[0].replace("pass@1", "pass_at_k")
    for task in tasks:
        assert task.config.num_fewshot == part.shots
        assert metric in task.aggregation()


@extra("hub")
def test_the_whole_sets_have_all_questions() -> None:
    tasks = load_tasks(["llama2-paper"], data_dir=original("hub"), allow_code=True)["tasks"]
    counts = {n: sum(len(tasks[t].eval_docs) for t in part.tasks) for n, part in PARTS.items()}
    assert counts == {name: whole for name, (whole, _) in QUESTIONS.items()}


def prompt(task: Any, doc: Any) -> str:
    return task.fewshot_context(doc, task.config.num_fewshot)


def test_a_prompt_holds_as_many_examples_as_it_should(suite_tasks: LoadedTasks) -> None:
    for name, part in PARTS.items():
        if not part.shots or name in ("MBPP", "BBH"):  # theirs are counted below
            continue
        task = suite_tasks["tasks"][part.tasks[0]]
        task.set_fewshot_seed(1234)
        doc = task.eval_docs[0]
        head = prompt(task, doc).split(task.doc_to_text(doc))[0]
        start = task.doc_to_text(doc)[:2]
        blocks = [b for b in head.split(task.config.fewshot_delimiter) if b.strip()]
        if name in ("MMLU", "NaturalQuestions"):  # a line of instruction comes first
            blocks = blocks[1:]
        if name == "MMLU":
            assert len(blocks) == 5 and all("\nAnswer: " in block for block in blocks), head
        else:
            assert sum(block.startswith(start) for block in blocks) == part.shots, head
    mbpp = suite_tasks["tasks"]["mbpp_sampled"]
    assert prompt(mbpp, mbpp.eval_docs[0]).count("[DONE]") == 3
    navigate = suite_tasks["tasks"]["bbh_3shot_navigate"]
    assert prompt(navigate, navigate.eval_docs[0]).count("\nA:") == 4


@pytest.mark.parametrize(
    "name",
    # The last one is asked about its test split, which is all that the mirror has of it.
    ["commonsense_qa_7shot", "nq_open_5shot", "triviaqa_wiki_5shot", "hendrycks_math_precalc"],
)
def test_a_question_is_never_its_own_example(name: str, mirror: Path, no_network: None) -> None:
    task = load_tasks([name], data_dir=mirror, num_fewshot=10)["tasks"][name]
    # As many examples as there can be: without care, the question would be among them.
    pool = [dict(doc) for doc in task.eval_docs][:12]
    task.sampler.replace_df(pool)
    for doc in pool:
        text = task.fewshot_context(doc, 10)
        assert text.count(task.doc_to_text(doc).strip()) == 1


def test_the_same_seed_draws_the_same_examples(mirror: Path, no_network: None) -> None:
    def draw(seed: int) -> list[str]:
        tasks = load_tasks(["commonsense_qa_7shot"], data_dir=mirror, fewshot_seed=seed)["tasks"]
        task = tasks["commonsense_qa_7shot"]
        return [prompt(task, task.eval_docs[i]) for i in range(3)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_number_of_examples_can_be_set_but_not_where_it_is_fixed(
    mirror: Path, no_network: None
) -> None:
    tasks = load_tasks(["piqa", "quac"], data_dir=mirror, num_fewshot=4)["tasks"]
    assert tasks["piqa"].config.num_fewshot == 4
    assert tasks["quac"].config.num_fewshot == 0


def test_the_unconditional_requests_follow_answer(suite_tasks: LoadedTasks) -> None:
    task = suite_tasks["tasks"]["openbookqa_ratio"]
    doc = task.eval_docs[0]
    requests = task.construct_requests(doc, "Question", metadata=("openbookqa_ratio", 0, 1))
    choices = [f" {text}" for text in doc["choices"]["text"]]
    assert [r.arguments for r in requests] == [
        *[("Question", choice) for choice in choices],
        *[("Answer:", choice) for choice in choices],
    ]
    gold = "ABCD".index(doc["answerKey"])
    # The right choice gains most over what it is worth by itself, though it is the least likely.
    given = [(-9.0 if i == gold else -5.0, False) for i in range(4)]
    alone = [(-12.0 if i == gold else -5.0, False) for i in range(4)]
    scores = task.process_results(doc, given + alone)
    assert (scores["acc"], scores["acc_mutual_info"]) == (0.0, 1.0)


def test_code_needs_permission(mirror: Path, no_network: None) -> None:
    with pytest.raises(ValueError, match=r"humaneval runs programs .* --allow-code"):
        load_tasks(["humaneval"], data_dir=mirror)


def test_a_metric_that_was_loaded_before_is_not_used(mirror: Path, no_network: None) -> None:
    load_tasks(["mbpp"], data_dir=mirror, allow_code=True)
    sys.modules["lm_eval.tasks.mbpp.utils"].pass_at_k = "one that runs programs unguarded"
    load_tasks(["mbpp"], data_dir=mirror, allow_code=True)
    assert isinstance(sys.modules["lm_eval.tasks.mbpp.utils"].pass_at_k, CodeEval)


@pytest.mark.parametrize("name", ["humaneval", "humaneval_sampled", "mbpp", "mbpp_sampled"])
def test_programs_need_permission(mirror: Path, name: str) -> None:
    """Variants too, which the harness's index does not have."""
    with pytest.raises(ValueError, match="runs programs that the model writes: allow it with"):
        load_tasks([name], data_dir=mirror)


def test_a_preset_without_permission_leaves_code_out(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "baber" / "piqa" / "default"
    folder.mkdir(parents=True)
    source = mirror / "hub/baber/piqa/default/validation.jsonl"
    (folder / "validation.jsonl").write_bytes(source.read_bytes())
    loaded = load_tasks("llama2", data_dir=tmp_path)
    assert list(loaded["tasks"]) == ["piqa"]
    assert "--allow-code" in loaded["missing"]["humaneval_sampled"]
    assert "Rowan/hellaswag" in loaded["missing"]["hellaswag"]
    assert loaded["missing"].keys() == {p.load for p in PARTS.values()} - {"piqa"}


@pytest.mark.parametrize(
    ("name", "near"), [("helaswag", "hellaswag"), ("quak", "quac"), ("mmlu_5shots", "mmlu_5shot")]
)
def test_an_unknown_task_is_answered_with_the_nearest_names(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown task '{name}'; .*{near}"):
        load_tasks([name])


def test_an_unknown_preset_is_answered_with_the_presets() -> None:
    with pytest.raises(ValueError, match=r"expected one of llama2-paper, lm-eval.*llama2"):
        suite("llama3")


def test_a_task_of_the_harness_can_be_named(mirror: Path, no_network: None) -> None:
    loaded = load_tasks(["mmlu_stem", "truthfulqa_gen"], data_dir=mirror)
    assert len(loaded["tasks"]) == 19 + 1
    assert list(loaded["groups"]) == ["mmlu_stem"]
    assert len(loaded["group_map"]["mmlu_stem"]) == 19


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"baber/piqa: there is no .*validation.* in "):
        load_tasks(["piqa"], data_dir=tmp_path)
    with pytest.raises(MissingDataError, match="expected a folder"):
        load_tasks(["piqa"], data_dir=tmp_path / "nothing")


def test_white_space_around_an_answer_does_not_matter(mirror: Path, no_network: None) -> None:
    task = load_tasks(["bbh_3shot_navigate"], data_dir=mirror)["tasks"]["bbh_3shot_navigate"]
    task.build_all_requests(limit=1)
    request = task.instances[0]
    right = task.doc_to_target(request.doc)
    for answer, score in ((right, 1), (f" {right}\n", 1), (f"\n{right}", 1), (f"not {right}", 0)):
        request.resps = [answer]
        task.apply_filters()
        found = task.process_results(request.doc, [request.filtered_resps["strip"]])
        assert found == {"exact_match": score}, answer


def test_each_evaluation_draws_the_same_examples(mirror: Path) -> None:
    """Evaluating the same tasks again starts the draw anew, also with a seed set in between."""
    task = load_tasks(["nq_open_5shot"], data_dir=mirror)["tasks"]["nq_open_5shot"]

    def prompts() -> list[str]:
        task.build_all_requests(limit=3)
        return [instance.args[0] for instance in task.instances]

    first = prompts()
    assert len(set(first)) == 3 and prompts() == first
    task.set_fewshot_seed(seed=7)
    other = prompts()
    assert other != first and prompts() == other
