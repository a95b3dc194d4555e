"""The scenarios' tasks as the harness runs them: prompts, scores, groups, data."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from sacrebleu.metrics import BLEU, CHRF
from torchmetrics.functional.text import squad

from llama_fast.eval.scenarios import SCENARIOS, scenario_groups, scenario_tasks
from llama_fast.eval.scenarios.question_answering import score
from llama_fast.eval.scenarios.translation import signatures
from llama_fast.eval.suite import MissingDataError
from llama_fast.tokenizers import load_tokenizer
from tests.paths import extra, tokenizer_model

LIMIT = 40
EMPTY = {"scenario_nq_open": 0}
TASKS = [task for scenario in SCENARIOS.values() for task in scenario.tasks]
# What shows a document in a prompt. Passages and dialogues are the long ones of their documents.
SHOWN = {"source", "question", "context", "dialogue"}


class Answers(LM):
    """A model that answers from a list: `reply(task, index of the document)`."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def generate_until(self, requests):
        return [self.reply(request.task_name, request.doc_id) for request in requests]

    def loglikelihood(self, requests):
        raise AssertionError("every scenario generates")

    def loglikelihood_rolling(self, requests):
        raise AssertionError("every scenario generates")


@pytest.fixture(scope="module")
def run(tasks):
    """The harness's evaluation of replies on the first documents of every task."""

    def evaluated(reply):
        return evaluate(
            Answers(reply),
            {"tasks": tasks, "groups": scenario_groups(tasks)},
            limit=LIMIT,
            bootstrap_iters=0,
        )

    return evaluated


@pytest.fixture(scope="module")
def targets(tasks):
    return {name: list(task.eval_docs["target"]) for name, task in tasks.items()}


@pytest.fixture(scope="module")
def before(run, targets):
    """Every document gets the answer of the one before."""
    return run(lambda task, i: targets[task][i - 1])


def scores(task, answers):
    """Aggregated metrics of answers to all documents of a task."""
    values = [
        task.process_results(doc, [answer])
        for doc, answer in zip(task.eval_docs, answers, strict=True)
    ]
    return {
        metric: aggregate([value[metric] for value in values])
        for metric, aggregate in task.aggregation().items()
    }


@pytest.mark.parametrize("task", [task for task in TASKS if task != "scenario_dialogsum"])
def test_right_answers_get_full_marks(tasks, targets, task):
    found = scores(tasks[task], [f" {target}" for target in targets[task]])
    assert found == dict.fromkeys(group(task).metrics, pytest.approx(group(task).perfect))


@pytest.mark.parametrize("task", TASKS)
def test_wrong_answers_get_few_points_and_silence_none(tasks, targets, task):
    wrong = scores(tasks[task], [targets[task][i - 1] for i in range(len(targets[task]))])
    silent = scores(tasks[task], [""] * len(targets[task]))
    for metric in group(task).metrics:
        assert wrong[metric] < 0.25 * group(task).perfect
        # SQuAD's normalisation leaves nothing of answers such as "---" and "A+".
        assert silent[metric] == EMPTY.get(task, 0) / len(targets[task])


def test_the_harness_runs_all_tasks_to_the_same_scores(tasks, before, targets):
    for name, task in tasks.items():
        docs = list(task.eval_docs)[:LIMIT]
        for metric, aggregate in task.aggregation().items():
            values = [
                task.process_results(doc, [targets[name][i - 1]])[metric]
                for i, doc in enumerate(docs)
            ]
            assert before["results"][name][f"{metric},none"] == aggregate(values)


def test_document_counts(tasks):
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "scenario_multi30k_en_de": 48,
        "scenario_multi30k_en_fr": 48,
        "scenario_multi30k_de_en": 48,
        "scenario_multi30k_fr_en": 48,
        "scenario_nq_open": 80,  # of 180, 100 of them for examples
        "scenario_squad": 166,  # of 240, 74 of them for examples
        "scenario_dialogsum": 8,
        "scenario_geoquery": 13,
        "scenario_geoquery_query_split": 5,
    }


@extra("scenarios")
def test_document_counts_of_the_whole_sets(whole_dir):
    tasks = scenario_tasks(whole_dir)
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {
        "scenario_multi30k_en_de": 1000,
        "scenario_multi30k_en_fr": 1000,
        "scenario_multi30k_de_en": 1000,
        "scenario_multi30k_fr_en": 1000,
        "scenario_nq_open": 3510,  # of 3,610, 100 of them for examples
        "scenario_squad": 1116,  # of 1,190, 74 of them for examples
        "scenario_dialogsum": 500,
        "scenario_geoquery": 279,
        "scenario_geoquery_query_split": 182,
    }


def test_a_group_is_the_plain_mean_of_its_tasks(before):
    for name, scenario in SCENARIOS.items():
        assert scenario.main_metric in scenario.metrics
        for metric in scenario.metrics:
            values = [before["results"][task][f"{metric},none"] for task in scenario.tasks]
            expected = pytest.approx(sum(values) / len(values))
            assert before["groups"][name][f"{metric},none"] == expected


def test_a_group_needs_all_its_tasks(tasks):
    assert scenario_groups({"scenario_nq_open": tasks["scenario_nq_open"]}) == {}


@pytest.mark.parametrize("task", TASKS)
def test_no_scored_document_is_in_a_prompt(tasks, task):
    found = tasks[task]
    documents, pool = list(found.eval_docs), list(found.dataset["examples"])
    shots = found.config.num_fewshot
    headers = set()
    for doc in documents[:20]:
        prompt = found.fewshot_context(doc, num_fewshot=shots)
        own = found.doc_to_text(doc)
        assert prompt.endswith(f"\n\n{own}")
        headers.add(prompt.removesuffix(own))
    (header,) = headers  # the same examples for every document
    for example in pool[:shots]:
        assert f"{found.doc_to_text(example)} {example['target']}\n\n" in header
    for doc in documents:
        for key in SHOWN & doc.keys():
            assert doc[key] not in header


def test_the_query_split_has_other_queries_in_its_examples(tasks):
    for name, apart in (("scenario_geoquery", False), ("scenario_geoquery_query_split", True)):
        scored = set(tasks[name].eval_docs["canonical"])
        examples = list(tasks[name].dataset["examples"]["canonical"])
        assert len(set(examples)) == len(examples)
        assert scored.isdisjoint(examples) == apart


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_can_be_generated(tasks, targets, task):
    """None has a stop string in it or longer than the limit, in tokens of Mistral's."""
    tokenizer = load_tokenizer(tokenizer_model("mistral"))
    settings = tasks[task].config.generation_kwargs
    for target in targets[task]:
        assert not any(stop in f" {target}" for stop in settings["until"])
    longest = max(targets[task], key=len)
    assert len(tokenizer.encode(longest)) < settings["max_gen_toks"]


def test_bleu_and_chrf_are_sacrebleus_with_the_signature_in_the_results(targets, before):
    task = "scenario_multi30k_en_fr"
    references = targets[task][:LIMIT]
    answers = [targets[task][i - 1] for i in range(LIMIT)]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        expected = metric.corpus_score(answers, [references])
        assert before["results"][task][f"{name},none"] == pytest.approx(expected.score)
        recorded = before["configs"][task]["metadata"]["signatures"][name]
        assert recorded == signatures()[name] == str(metric.get_signature())


def test_bleu_and_chrf_by_hand(tasks):
    aggregate = tasks["scenario_multi30k_en_de"].aggregation()
    # All n-grams are right, brevity penalty exp(1 - 5/4).
    assert aggregate["bleu"]([("a b c d e", "a b c d")]) == pytest.approx(100 * math.exp(-0.25))
    # Of 1-, 2- and 3-grams 2/3, 1/2 and 0 are right; precision and recall are the same.
    assert aggregate["chrf"]([("abd", "abc")]) == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


def test_question_answering_metrics_are_those_of_torchmetrics(tasks):
    documents = list(tasks["scenario_squad"].eval_docs)
    half = len(documents) // 2
    guesses = [doc["context"].split(".")[0] for doc in documents[:half]]
    guesses += [f"The {doc['target'].upper()}, indeed" for doc in documents[half:]]
    for doc, guess in zip(documents, guesses, strict=True):
        answers = {"text": doc["answers"], "answer_start": [0]}
        expected = squad({"prediction_text": guess, "id": "1"}, {"answers": answers, "id": "1"})
        assert score(doc, guess) == {
            "exact_match": expected["exact_match"].item() / 100,
            "f1": pytest.approx(expected["f1"].item() / 100),
        }


def test_question_answering_by_hand():
    doc = {"answers": ["the Eiffel Tower", "La Tour Eiffel"]}
    assert score(doc, " Eiffel tower!") == {"exact_match": 1.0, "f1": 1.0}
    # Against the first: shared "eiffel", "tower"; 3 words and 2 words.
    assert score(doc, "tall Eiffel Tower") == {"exact_match": 0.0, "f1": 0.8}


@extra("scenarios/summarization/dialogsum")
def test_rouge_gives_the_agreement_of_people_in_the_papers_table(whole_dir):
    """Each reference against the other two: 53.35 and 26.72 in Chen et al. 2021."""
    (task,) = scenario_tasks(whole_dir, ["scenario_dialogsum"]).values()
    totals = {"rouge1": 0.0, "rouge2": 0.0}
    documents = list(task.eval_docs)
    for doc in documents:
        for i, summary in enumerate(doc["references"]):
            others = doc["references"][:i] + doc["references"][i + 1 :]
            scores = task.process_results({**doc, "references": others}, [summary])
            for metric in totals:
                totals[metric] += 100 * scores[metric] / (3 * len(documents))
    assert totals == {
        "rouge1": pytest.approx(53.35, abs=0.05),
        "rouge2": pytest.approx(26.72, abs=0.05),
    }


def test_rouge_by_hand(tasks):
    doc = {"references": ["the cat sat", "a dog ran"]}
    scores = tasks["scenario_dialogsum"].process_results(doc, [" The cats slept."])
    # Against the first, "the" and the stemmed "cat" of 3 and 3 words; nothing against the second.
    assert scores == {
        "rouge1": pytest.approx(1 / 3),
        "rouge2": pytest.approx(1 / 4),
        "rougeL": pytest.approx(1 / 3),
    }


def test_execution_match_takes_another_query_with_the_same_rows(tasks):
    task = tasks["scenario_geoquery"]
    doc = next(d for d in task.eval_docs if d["question"] == "what is the biggest city in kansas")
    same = "SELECT city_name FROM city WHERE state_name = 'kansas' ORDER BY population DESC LIMIT 1"
    other = same.replace("DESC", "ASC")
    assert task.process_results(doc, [same]) == {"exact_match": 0.0, "execution_match": 1.0}
    assert task.process_results(doc, [other]) == {"exact_match": 0.0, "execution_match": 0.0}
    assert task.process_results(doc, ["DROP TABLE city"])["execution_match"] == 0.0
    fenced = f"```sql\n{doc['target'].lower()};\n```"
    assert task.process_results(doc, [fenced]) == {"exact_match": 1.0, "execution_match": 1.0}


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_file_is_named_in_one_line(tmp_path, task):
    with pytest.raises(MissingDataError, match=r"^no (file|data for) \S+") as caught:
        scenario_tasks(tmp_path, [task])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_needed_for_what_is_not_on_the_hub():
    with pytest.raises(MissingDataError, match="scenarios/translation/multi30k: name the folder"):
        scenario_tasks(None, ["scenario_translation"])


@pytest.mark.parametrize(
    ("task", "relative", "text", "message"),
    [
        (
            "scenario_squad",
            "hub/lighteval/squad_v2/default/validation.jsonl",
            '{"title": "only"}\n',
            r"squad_v2, validation: expected rows with a field '\w+', got \['title'\]",
        ),
        (
            "scenario_dialogsum",
            "scenarios/summarization/dialogsum/dialogsum.dev.jsonl",
            '{"dialogue": "", "summary": ""}\n{}}\n',
            r"dev\.jsonl:2: not JSON: Extra data",
        ),
        (
            "scenario_multi30k_fr_en",
            "scenarios/translation/multi30k/val.fr",
            "une seule ligne\n",
            r"val\.en: expected as many lines as val\.fr has, 1, got 16",
        ),
        (
            "scenario_geoquery",
            "scenarios/semantic_parsing/geoquery/geography.json",
            "[{}]",
            r"geography\.json: expected the text2sql-data format, got KeyError",
        ),
        (
            "scenario_geoquery",
            "scenarios/semantic_parsing/geoquery/geography-db.added-in-2020.sqlite",
            "no database",
            r"2020\.sqlite: expected an SQLite database",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, data_dir, task, relative, text, message):
    folder = (tmp_path / relative).parent
    shutil.copytree((data_dir / relative).parent, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (tmp_path / relative).write_text(text)
    with pytest.raises(ValueError, match=message):
        scenario_tasks(tmp_path, [task])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (3, "expected questions to score in google-research-datasets/nq_open, got none"),
        (100, "expected questions to score"),
    ],
)
def test_too_few_rows_are_said(tmp_path, data_dir, lines, message):
    relative = "hub/google-research-datasets/nq_open/default/validation.jsonl"
    (tmp_path / relative).parent.mkdir(parents=True)
    head = (data_dir / relative).read_text().splitlines()[:lines]
    (tmp_path / relative).write_text("\n".join(head))
    with pytest.raises(ValueError, match=message):
        scenario_tasks(tmp_path, ["scenario_nq_open"])


def test_the_number_of_examples_can_be_set(data_dir):
    for shots in (0, 7):
        (task,) = scenario_tasks(data_dir, ["scenario_squad"], num_fewshot=shots).values()
        prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
        assert prompt.count("Question:") == shots + 1
    for shots in (-1, 75):
        with pytest.raises(ValueError, match=f"expected 0 to 74 for scenario_squad, got {shots}"):
            scenario_tasks(data_dir, ["scenario_squad"], num_fewshot=shots)


def test_an_unknown_name_gets_the_nearest(data_dir):
    with pytest.raises(ValueError, match="got 'scenario_translate'; nearest: scenario_translation"):
        scenario_tasks(data_dir, ["scenario_translate"])


def test_results_can_be_written_as_json(before):
    written = json.loads(json.dumps(before["configs"], default=str))
    assert written["scenario_geoquery"]["metadata"] == {"version": 1.0, "split": "question-split"}


def group(task):
    return next(scenario for scenario in SCENARIOS.values() if task in scenario.tasks)
