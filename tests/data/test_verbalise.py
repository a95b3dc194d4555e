"""The rows of the suite's benchmarks as text: the suite's own prompts and answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_fast.data.questions import read_questions
from llama_fast.data.verbalise import FORMS, verbalise
from tests.paths import mirror

# Benchmark -> a file of the mirror, and the suite's task that asks its rows.
SUITE = {
    "HellaSwag": ("Rowan/hellaswag/default/validation", "hellaswag"),
    "PIQA": ("baber/piqa/default/validation", "piqa"),
    "SIQA": ("lighteval/siqa/default/validation", "social_iqa_norm"),
    "WinoGrande": ("allenai/winogrande/winogrande_xl/validation", "winogrande"),
    "OpenBookQA": ("allenai/openbookqa/main/validation", "openbookqa_ratio"),
    "CommonsenseQA": ("tau/commonsense_qa/default/validation", "commonsense_qa_7shot"),
    "ARC": ("allenai/ai2_arc/ARC-Challenge/test", "arc_challenge"),
    "MMLU": ("cais/mmlu/astronomy/test", "mmlu_5shot_astronomy"),
    "AGIEval": ("hails/agieval-sat-math/default/test", "agieval_sat_math"),
    "BoolQ": ("aps/super_glue/boolq/validation", "boolq_ratio"),
    "SQuAD": ("lighteval/squad_v2/default/validation", "squadv2"),
    "TriviaQA": ("mandarjoshi/trivia_qa/rc.nocontext/validation", "triviaqa_wiki_5shot"),
    "NaturalQuestions": ("google-research-datasets/nq_open/default/validation", "nq_open_5shot"),
    "GSM8K": ("openai/gsm8k/main/test", "gsm8k_cot"),
    "MATH": ("EleutherAI/hendrycks_math/algebra/test", "minerva_math_algebra"),
    "BBH": ("SaylorTwift/bbh/navigate/test", "bbh_3shot_navigate"),
    "TruthfulQA": ("truthfulqa/truthful_qa/multiple_choice/validation", "truthfulqa_mc2"),
    # Their targets in the suite are tests; the right answer is the solution in the row.
    "HumanEval": ("openai/openai_humaneval/default/test", "humaneval"),
    "MBPP": ("google-research-datasets/mbpp/full/test", "mbpp"),
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    pytest.importorskip("lm_eval")
    from llama_fast.eval.suite import load_tasks

    names = [task for _, task in SUITE.values()]
    return load_tasks(names, data_dir=mirror(), allow_code=True)["tasks"]


def asked(task: Any, doc: dict[str, Any]) -> set[str]:
    """The suite's prompt, without examples, with each of the right answers."""
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if "canonical_solution" in doc:
        return {text + doc["canonical_solution"]}
    if "test_list" in doc:
        return {text + doc["code"]}
    between = task.config.target_delimiter
    if "mc2_targets" in doc:
        right = zip(task.doc_to_choice(doc), doc["mc2_targets"]["labels"], strict=True)
        return {text + between + choice for choice, label in right if label}
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        if isinstance(text, int):  # the beginnings differ, and the end is the same
            return {choices[text] + between + target}
        if isinstance(target, list):
            target = target[0]
        return {text + between + (choices[target] if isinstance(target, int) else target)}
    targets = target if isinstance(target, list) else [target]
    return {text.rstrip() + " " + str(one).strip() for one in targets}


def test_every_benchmark_is_compared() -> None:
    assert {form.name for form in FORMS} == SUITE.keys()


@pytest.mark.parametrize("name", SUITE)
def test_is_the_prompt_of_the_suite_with_the_right_answer(name: str, tasks: dict[str, Any]) -> None:
    file, task_name = SUITE[name]
    task = tasks[task_name]
    questions = list(read_questions(mirror() / "hub" / f"{file}.jsonl"))
    assert {question.benchmark for question in questions} == {name}
    docs = list(task.eval_docs)
    assert len(docs) == len(questions) or name in ("MBPP", "SQuAD")
    compared = 0
    for doc, question in list(zip(docs, questions, strict=False))[:40]:
        texts = {text.strip() for text in asked(task, doc)}
        if name == "TruthfulQA":  # without the six questions that come before each
            texts = {"Q: " + text.rpartition("\n\nQ: ")[2] for text in texts}
        if name == "MATH" and question.text not in texts:
            # The suite's answer has lost spaces and units; the prompt is the same.
            texts = {question.text for text in texts if question.text.startswith(
                task.doc_to_text(doc))}  # fmt: skip
        elif name == "TriviaQA" and question.text not in texts:
            # The entity's own name, where it is none of the aliases.
            assert question.text.startswith(task.doc_to_text(doc))
            continue
        assert question.text in texts
        compared += 1
    assert compared > min(len(docs), 40) / 2


def test_a_right_answer_that_is_withheld_is_left_out() -> None:
    row = {"activity_label": "Roofing", "ctx_a": "A man sits.", "ctx_b": "he",
           "ctx": "A man sits. he", "endings": ["falls.", "eats."], "label": ""}  # fmt: skip
    assert verbalise(row) == ("HellaSwag", ["Roofing: A man sits. He", "A man sits. he"])
    assert verbalise({**row, "label": "1"}) == (
        "HellaSwag",
        ["Roofing: A man sits. He eats.", "A man sits. he eats."],
    )
    assert verbalise({**row, "label": 7}) == verbalise(row)
    arc = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]},
           "answerKey": ""}  # fmt: skip
    assert verbalise(arc) == ("ARC", ["Question: Why?\nAnswer:"])
    assert verbalise({**arc, "answerKey": "2"}) == ("ARC", ["Question: Why?\nAnswer: b"])


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "She."},
        {"question": "Who?", "answer": []},
        {"question": "Who?", "choices": ["a", 1], "answer": 0},
        {"question": "Who?", "choices": {"text": ["a"], "label": []}, "answerKey": "A"},
        {"input": "a", "target": "b", "instruction": "c"},
        {"input": "a", "target": 1},
        {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"},
        {"text": "a document"},
        {},
    ],
    ids=json.dumps,
)
def test_other_rows_are_of_no_benchmark(row: dict[str, Any]) -> None:
    assert verbalise(row) is None


def test_the_sanitized_mbpp_has_another_field() -> None:
    row = {"text": "Add.", "code": "def f(): ...", "test_list": ["assert f()"]}
    sanitized = {"prompt": row["text"], **{k: v for k, v in row.items() if k != "text"}}
    assert verbalise(sanitized) == verbalise(row)
    assert verbalise(row) is not None


def test_the_original_boolq_and_nested_braces() -> None:
    row = {"question": "is it", "passage": "It is.", "answer": True}
    assert verbalise(row) == ("BoolQ", ["It is.\nQuestion: is it?\nAnswer: yes"])
    math = {"problem": "P", "level": "Level 1", "solution": r"\boxed{1}, so \boxed{\frac{1}{2}}."}
    assert verbalise(math) == ("MATH", ["Problem:\nP\n\nSolution: \\frac{1}{2}"])
