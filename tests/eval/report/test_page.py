"""The page in a real browser: what it shows, on a desk and on a phone, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_fast._format import fixed
from llama_fast.eval.intervals import interval_of_share
from llama_fast.eval.report import Run, read_run
from llama_fast.eval.report.html import write_page
from llama_fast.eval.report.suites import columns_of
from llama_fast.eval.suite import paper_table
from tests.eval.report.browser import Browser, Drive, find_browser
from tests.eval.report.runs import BFLOAT16, FLOAT32, QUESTIONS, SUITE, suite_with_zeros

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "<!--<script>${document.title='owned'}\u2028\"'`&amp;"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return find_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    a, b = read_run(FLOAT32), read_run(BFLOAT16)
    return {
        "one": write_page(folder / "one.html", a),
        "two": write_page(folder / "two.html", a, b),
        "suite": write_page(folder / "suite.html", suite_with_zeros(folder / "zeros")),
        "hostile": write_page(folder / "hostile.html", hostile(folder / "hostile"), b),
    }


def hostile(folder: Path) -> Run:
    """The float32 run with text that wants out of its place, everywhere."""
    shutil.copytree(FLOAT32, folder)
    for path in folder.glob("samples_*.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        for sample in samples:
            for argument in sample["arguments"].values():
                argument["arg_0"] = HOSTILE + argument["arg_0"]
                if isinstance(argument["arg_1"], str):
                    argument["arg_1"] += HOSTILE
            if "gsm8k" in path.name:
                sample["resps"] = [[HOSTILE]]
                sample["target"] = HOSTILE
        path.write_text("\n".join(map(json.dumps, samples)) + "\n")
    results = json.loads((folder / "results.json").read_text())
    facts = results["llama_fast"]
    facts["not_scored"] = {HOSTILE: HOSTILE}
    for key in ("model", "command", "machine", HOSTILE):
        facts[key] = HOSTILE
    # A task's name reaches bars, tables and lists.
    results["results"][HOSTILE] = {"acc,none": 0.5, "alias": HOSTILE}
    group = f"group {HOSTILE}"
    results["groups"] = {group: {"acc,none": 0.25, "acc_stderr,none": 0.1, "sample_len": 22}}
    results["group_subtasks"] = {group: ["piqa", "winogrande"]}
    (folder / "results.json").write_text(json.dumps(results))
    return read_run(folder)


def test_the_file_stands_alone_and_its_console_is_quiet(
    browser: Browser, pages: dict[str, Path]
) -> None:
    document, console = browser.run(pages["two"].as_uri())
    assert 'data-ready="yes"' in document and console == []
    for page in pages.values():
        text = page.read_text()
        assert not re.findall(r"\b(?:src|href)\s*=\s*[\"']?\s*(?:https?:|//)", text)
        assert "default-src &#x27;none&#x27;" in text


# What is done on the pages; all in one start of the browser, which takes longer than the rest.
COUNTS = """
said.counts = {};
for (const task of ["", ...TASKS]) {
  await set("task", task);
  said.counts[task] = [await set("show", "all"), await set("show", "right"),
    await set("show", "wrong")];
}
"""
LOOK = """
said.shown = {};
await set("task", "");
for (const show of ["changed", "won", "lost"]) said.shown[show] = await set("show", show);
said.conditions = [find("#conditions").hidden, find("#conditions").textContent];
said.notices = all("#notices li").length;
said.lost = all("#list .question").map((item) => item.textContent);
await set("show", "all");
said.search = await set("search", "AIR  Conditioner");
const item = find("#list .question");
item.open = true;
await wait(() => item.querySelector(".option"));
said.options = all(".option", item).map((option) => option.textContent);
said.gold = all(".option", item).map((option) => option.classList.contains("gold"));
said.nothing = await set("search", "no such words anywhere");
said.count = find("#count").textContent;
"""
CHARTS = """
const number = (of, name) => Number(of.getAttribute(name));
said.circles = all("#radar circle").map((circle) =>
  [circle.querySelector("title").textContent, number(circle, "cx"), number(circle, "cy")]);
said.box = find("#radar svg").getAttribute("viewBox").split(" ").map(Number);
said.rings = all("#radar polygon").slice(0, 4).map((ring) => ring.getAttribute("points"));
const place = (what, of) => all(what, of).map((one) =>
  [one.style.left, one.style.width].map((value) => parseFloat(value || "0")));
said.rows = all("#bars .row").map((row) => [row.querySelector(".name").textContent,
  place(".bar", row), place(".whisker", row), place(".tick", row)]);
said.ece = find("#diagrams strong").textContent;
all("#rows button").find((button) => button.textContent === "Llama 2 70B").click();
said.after = all("#columns th").map((cell) => cell.textContent);
"""
WIDTH = """
for (const item of all("details").slice(0, 40)) item.open = true;
await wait(() => all(".question[open] pre").length > 5);
said.opened = all(".question[open] pre").length;
said.visible = page.documentElement.clientWidth;
said.width = page.documentElement.scrollWidth;
said.wide = all("body *").filter((one) => !one.closest(".scroll")
  && one.getBoundingClientRect().right > said.visible + 1).map((one) => one.outerHTML.slice(0, 99));
"""
SIDEWAYS = """
for (const item of all("details")) item.open = true;
said.size = [page.documentElement.clientWidth, page.documentElement.scrollWidth];
"""
GROUPS = """
said.rows = all("#bars > *").map((row) => [row.classList.contains("head"),
  all("summary", row).concat(row.matches("details") ? [] : all(".name, .about", row), [row])
    .slice(0, row.matches(".row") ? 2 : 1).map((one) => one.textContent).join(" ").trim(),
  all(".value > div", row).slice(0, 2).map((value) => value.textContent),
  all(".levels", row).map((one) => one.textContent)[0]]);
"""
INJECT = """
said.text = [];
for (const task of ["piqa", "gsm8k"]) {
  await set("task", task);
  const item = find("#list .question");
  item.open = true;
  await wait(() => item.querySelector("pre"));
  said.text.push(item.textContent);
}
said.text.push(find("#facts").textContent, find("#bars").textContent);
said.images = all("img").length;
said.before = page.title;
// What gets in by another way does not run either.
const script = page.createElement("script");
script.textContent = "document.title = 'owned'";
page.body.append(script);
await wait(() => !find("#trouble").hidden);
said.title = page.title;
"""


@pytest.fixture(scope="module")
def said(browser: Browser, pages: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """What the scripts found; the console stays quiet meanwhile."""
    text = {name: page.read_text() for name, page in pages.items()}
    drives = {
        "counts": Drive(text["one"], COUNTS.replace("TASKS", json.dumps(list(QUESTIONS)))),
        "look": Drive(text["two"], LOOK),
        "charts": Drive(text["one"], CHARTS),
        "phone one": Drive(text["one"], WIDTH, 360),
        "phone two": Drive(text["two"], WIDTH, 360),
        "phone hostile": Drive(text["hostile"], WIDTH, 360),
        "groups": Drive(text["suite"], GROUPS),
        "groups of two": Drive(text["hostile"], GROUPS),
        "groups phone": Drive(text["suite"], SIDEWAYS, 360),
    }
    found, console = browser.drive(list(drives.values()))
    assert console == [] and [one["trouble"] for one in found] == [""] * len(drives)
    return dict(zip(drives, found, strict=True))


def test_every_question_is_there(said: dict[str, dict[str, Any]]) -> None:
    counts = said["counts"]["counts"]
    run = read_run(FLOAT32)
    right = {
        task: sum(s.get("acc_norm", s.get("acc", s.get("exact_match"))) for s in run.samples(task))
        for task in QUESTIONS
    }
    for task, n in QUESTIONS.items():
        assert counts[task] == [n, right[task], n - right[task]]
    n, yes = sum(QUESTIONS.values()), sum(right.values())
    assert counts[""] == [n, yes, n - yes]


def test_two_runs_question_by_question(said: dict[str, dict[str, Any]]) -> None:
    found = said["look"]
    assert (found["shown"]["won"], found["shown"]["lost"]) == (0, 2)
    assert found["shown"]["changed"] == changed(read_run(FLOAT32), read_run(BFLOAT16))
    assert any("piqa #33" in text for text in found["lost"])
    assert any("winogrande" in text for text in found["lost"])
    assert found["conditions"] == [False, "The runs differ in dtype (A float32, B bfloat16)"]
    assert found["notices"] == 0
    assert found["search"] == 1 and found["nothing"] == 0 and "0 of 43" in found["count"]
    assert found["gold"] == [True, False]
    # Softmax of the logged log-probabilities, A before B; the arrow is what acc_norm picks.
    assert re.search(r"◀ 30 %\s*27 %", found["options"][0])
    assert re.search(r"70 %\s*◀ 73 %", found["options"][1])


def changed(a: Run, b: Run) -> int:
    """Questions whose picked option or text differ, from the samples as they are logged."""
    found = 0
    for task in QUESTIONS:
        for x, y in zip(a.samples(task), b.samples(task), strict=True):
            if x["filter"] == "flexible-extract":
                continue
            found += answer(x) != answer(y)
    return found


def answer(sample: dict[str, Any]) -> object:
    if sample["metrics"] == ["exact_match"]:
        return sample["resps"]
    scores = [float(response[0]) for response in sample["filtered_resps"]]
    if "acc_norm" in sample["metrics"]:
        texts = [argument["arg_1"].strip() for argument in sample["arguments"].values()]
        scores = [score / len(text) for score, text in zip(scores, texts, strict=True)]
    return scores.index(max(scores))


def test_charts_show_the_numbers(said: dict[str, dict[str, Any]]) -> None:
    charts = said["charts"]
    paper = {row.name: row.scores for row in paper_table().rows}
    run = read_run(FLOAT32)
    scores = {task: run.results["results"][task] for task in QUESTIONS}
    parts = [scores[task]["acc_norm,none"] for task in ("piqa", "hellaswag", "arc_easy")]
    parts.append(scores["winogrande"]["acc,none"])
    commonsense = 100 * sum(parts) / 4
    # The outermost ring is at 80: distances from the middle give the values back.
    ring = [tuple(map(float, point.split(","))) for point in charts["rings"][3].split(" ")]
    cx, cy = charts["box"][2] / 2, charts["box"][3] / 2
    scale = 80 / (cy - ring[0][1])
    columns = list(paper["Llama 2 7B"])
    seen = {}
    for title, x, y in charts["circles"]:
        name, value = title.split(": ")
        column = next(column for column in columns if value.startswith(column))
        distance = scale * ((x - cx) ** 2 + (y - cy) ** 2) ** 0.5
        assert distance == pytest.approx(float(value.removeprefix(column)), abs=0.06)
        direction = ring[columns.index(column)]
        assert (x - cx) * (direction[1] - cy) == pytest.approx(
            (y - cy) * (direction[0] - cx), abs=1e-6
        )
        seen[name, column] = distance
    for name in ("Llama 1 7B", "Llama 2 7B"):
        for column in columns:
            assert seen.pop((name, column)) == pytest.approx(paper[name][column])
    # Groups without a score have no point.
    assert list(seen) == [(run.name, "Commonsense Reasoning")]
    assert seen[run.name, "Commonsense Reasoning"] == pytest.approx(commonsense)

    rows = {name.split("acc")[0].split("exact")[0]: rest for name, *rest in charts["rows"]}
    bars, whiskers, ticks = rows["Commonsense Reasoning"]
    assert bars == [[0, pytest.approx(commonsense)]]
    assert sorted(ticks) == [[60.8, 0], [63.9, 0]]
    bars, whiskers, ticks = rows["piqa"]
    value, error = (scores["piqa"][f"acc_norm{e},none"] for e in ("", "_stderr"))
    interval = interval_of_share(value, error, 12)
    assert interval is not None
    value, low, high = (100 * x for x in (value, *interval))
    assert bars == [[0, pytest.approx(value)]] and ticks == []
    # The browser gives lengths back with six digits.
    assert whiskers == [[pytest.approx(low, rel=1e-4), pytest.approx(high - low, rel=1e-4)]]
    assert charts["ece"].startswith("ECE ") and "Llama 2 70B" in charts["after"]


@pytest.mark.parametrize("which", ["one", "two", "hostile"])
def test_a_phone_shows_it_without_scrolling_sideways(
    said: dict[str, dict[str, Any]], which: str
) -> None:
    phone = said[f"phone {which}"]
    assert phone["opened"] > 5
    assert phone["visible"] == 360 and phone["width"] == 360 and phone["wide"] == []


def test_groups_are_heads_of_their_tasks(said: dict[str, dict[str, Any]]) -> None:
    rows = said["groups"]["rows"]
    score = read_run(SUITE).results["groups"]["mmlu_5shot"]
    value, error = 100 * score["acc,none"], 100 * score["acc_stderr,none"]
    at = next(at for at, row in enumerate(rows) if row[1].startswith("mmlu_5shot"))
    name = f"mmlu_5shot acc · 57 tasks · {score['sample_len']:,} questions"
    levels = f"chance 25.0 · headroom {fixed(89.8 - value, 1)}"
    assert rows[at] == [True, name, [f"{fixed(value, 1)} ± {fixed(error, 1)}"], levels]
    assert rows[at - 1][:2] == [True, "MMLU"]  # the suite's column
    column = next(one for one in columns_of(read_run(SUITE)) if one.column == "MMLU")
    assert column.value is not None  # weighted by the subjects' own sizes
    assert rows[at - 1][3] == f"chance 25.0 · headroom {fixed(89.8 - column.value, 1)}"
    assert rows[at + 1][1] == "57 tasks"  # folded
    at = next(at for at, row in enumerate(rows) if row[1].startswith("minerva_math"))
    assert rows[at - 1][1].startswith("gsm8k_cot") and not rows[at - 1][0]
    assert rows[at + 1][:2] == [False, "7 tasks, all 0.0"]
    at = next(at for at, row in enumerate(rows) if row[1].startswith("agieval_nous"))
    assert all(row[1].startswith("agieval_") and not row[0] for row in rows[at + 1 : at + 9])
    assert said["groups phone"]["size"] == [360, 360]
    # A group that only one of two runs has.
    rows = said["groups of two"]["rows"]
    at = next(at for at, row in enumerate(rows) if row[1].startswith("group </script>"))
    assert rows[at][1].endswith("acc · 2 tasks · 22 and – questions")
    assert rows[at][2] == ["25.0 ± 10.0", "–"]
    assert [row[1].split(" acc")[0] for row in rows[at + 1 : at + 3]] == ["piqa", "winogrande"]


def test_text_is_only_ever_text(browser: Browser, pages: dict[str, Path]) -> None:
    (found,), console = browser.drive([Drive(pages["hostile"].read_text(), INJECT)])
    assert found["images"] == 0
    assert found["before"].startswith("Evaluation of </script>")
    assert found["title"] == found["before"]
    # The script that the test put in was refused.
    assert "blocked script-src" in found["trouble"] and len(console) == 1
    for text in found["text"]:
        assert HOSTILE in text


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    a, b = read_run(FLOAT32), read_run(BFLOAT16)
    page = write_page(tmp_path / "few.html", a, b, max_questions=4).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert [block["shown"] for block in data["questions"]] == [4, 4, 4, 4, 3]
    assert [block["total"] for block in data["questions"]] == list(QUESTIONS.values())
    assert "19 of the run's 43 questions: at most 4 of a task" in data["limits"][0]
    # Differences are over all questions all the same.
    assert data["compared"]["overall"][0]["n"] == 43
    whole = write_page(tmp_path / "whole.html", a, b).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', whole)[1])  # type: ignore[index]
    assert not any("of a task" in limit for limit in data["limits"])


def test_notes_and_earlier_commands_are_lists(tmp_path: Path) -> None:
    run = read_run(SUITE)
    run.results["llama_fast"]["earlier_commands"] = ["llama-fast eval a --tasks piqa"]
    page = write_page(tmp_path / "page.html", run).read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["runs"][0]  # type: ignore[index]
    assert shown["notes"] == run.metadata["notes"].split("; ")
    assert any("rc.nocontext stands in" in note for note in shown["notes"])
    assert shown["earlierCommands"] == run.metadata["earlier_commands"]
    assert not {"Notes", "Earlier commands"} & {name for name, _ in shown["facts"]}


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows: expected some of MPT 7B, .*, got Llama 9"):
        write_page(tmp_path / "page.html", read_run(FLOAT32), rows=["Llama 9"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write_page(tmp_path / "file" / "page.html", read_run(FLOAT32))
