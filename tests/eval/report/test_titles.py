"""Titles of questions: the question itself, whatever stands around it in the prompt."""

from __future__ import annotations

import pytest

from llama_fast.eval.report import read_run
from llama_fast.eval.report.questions import read_questions
from llama_fast.eval.report.scores import score_of
from llama_fast.eval.report.titles import SHARED, heading, titles
from tests.eval.report.runs import FLOAT32, QUESTIONS

HUMANEVAL = '''from typing import List


def separate(text: str) -> List[str]:
    """ Split the groups of nested parentheses
    in a text. Ignore spaces.
    >>> separate('( ) (( ))')
    ['()', '(())']
    True
    """
'''
MBPP = (
    "You are an expert Python programmer, and here is your task: Write a function to add. Your "
    "code should pass these tests:\n\nassert add(1, 1) == 2\n[BEGIN]\ndef add(): ...\n[DONE]\n\n"
    "You are an expert Python programmer, and here is your task: Write a function to sort. Your "
    "code should pass these tests:\n\nassert sort([2, 1]) == [1, 2]\n[BEGIN]\n"
)
MMLU = (
    "The following are multiple choice questions.\n\nWhat is 1 + 1?\nA. 2\nB. 3\nAnswer: A\n\n"
    "Read this.\nWhat follows from it?\nA. this\nB. that\nC. both\nD. none\nAnswer:"
)
MATH = (
    "Problem:\nFind $x$.\n\nSolution: 1\n\n"
    "Problem:\nFind $y$.\n\n[asy]\ndraw(1);\n[/asy]\n\nSolution:"
)
SQUAD = "Title: Rivers\n\nBackground: The Rhine is long.\n\nQuestion: How long is it?\n\nAnswer:"
AGIEVAL = (
    "A long passage about rivers.Q: Which one is long? Answer Choices: (A)Rhine (B)Ill\n"
    "A: Among A through B, the answer is"
)
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: Why?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\nQuestion: Why?\nAnswer:<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize(
    ("prompt", "title", "begin"),
    [
        (HUMANEVAL, "separate: Split the groups of nested parentheses in a text.", "def separate"),
        (
            MBPP,
            "Write a function to sort. Your code should pass these tests:",
            "You are an expert Python programmer, and here is your task: Write a function to sort",
        ),
        (MMLU, "What follows from it?", "Read this."),
        (MATH, "Find $y$.", "Problem:\nFind $y$."),
        (SQUAD, "How long is it?", "Question: How"),
        (AGIEVAL, "Which one is long?", "A long passage"),
        ("Q: a?\nA: 1\nQ: b?\nA:", "b?", "Q: b?"),
        ("Q: Question: Ann lies.\nA:", "Ann lies.", "Q: Question"),
        ("Canoeing: Two women", "Canoeing: Two women", "Canoeing"),
        (CHATML, "Why?", "Q: Why?"),
        (LLAMA_3, "Why?", "Question: Why?"),
        ("[INST] What is it? [/INST]", "What is it?", "What is it?"),
        ("<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n", "Why?", "Why?"),
        ("", "", ""),
        ("\n\nAnswer:", "Answer:", "Answer:"),
    ],
)
def test_the_question_itself(prompt: str, title: str, begin: str) -> None:
    found = heading(prompt)
    assert found.title == title and prompt[found.start :].startswith(begin)


def test_titles_of_a_task_differ_where_its_questions_do() -> None:
    prompts = [
        f"Q: Which sentence has the correct adjective order:\nOptions:\n(A) {one}\n(B) x\nA:"
        for one in ("old gray cat", "gray old cat")
    ]
    first, second = titles([heading(prompt) for prompt in prompts])
    assert first == "… old gray cat (B) x" and second == "… gray old cat (B) x"
    long = "The following paragraphs describe objects in a fixed order. "
    assert len(long) > SHARED
    shown = titles([heading(f"Q: {long}{birds}\nA:") for birds in ("Five owls.", "Six owls.")])
    assert shown == ["… Five owls.", "… Six owls."]
    assert titles([heading("Q: Why?\nA:"), heading("Q: Where?\nA:")]) == ["Why?", "Where?"]
    assert titles([heading("Q: Why?\nA:")] * 2) == ["Why?", "Why?"]


@pytest.mark.parametrize("task", QUESTIONS)
def test_titles_of_real_questions(task: str) -> None:
    run = read_run(FLOAT32)
    score = score_of(run.results["results"][task])
    assert score is not None
    questions = read_questions(run, task, score)
    for question, title in zip(
        questions, titles([heading(one.prompt) for one in questions]), strict=True
    ):
        assert len(title.split()) >= 2 and title.lstrip("… ") in question.prompt
        assert not title.startswith(("Answer", "A:", "Question:"))
