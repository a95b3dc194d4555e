"""Questions about US geography to SQL, scored with exact match and execution match.

GeoQuery: Zelle and Mooney 1996, with the SQL and the two splits of Finegan-Dollak et al. 2018,
"Improving Text-to-SQL Evaluation Methodology" (arXiv:1806.09029). In the question split, a test
query may occur in the training part with other values; in the query split it may not.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from llama_fast._reading import read_json

from .sql import (
    QueryError,
    Rows,
    extract_query,
    is_ordered,
    normalize_query,
    run_query,
    same_rows,
)
from .task import Document, ScenarioTask, existing, folder_in

FOLDER = "scenarios/semantic_parsing/geoquery"
DATABASE = "geography-db.added-in-2020.sqlite"


def geoquery_task(data_dir: Path | None, *, name: str, split: str) -> ScenarioTask:
    """The test questions of a split, with 10 training examples of distinct queries.

    Args:
        data_dir: the folder with ``scenarios/``.
        name: name of the task.
        split: "question-split" or "query-split".
    """
    folder = folder_in(data_dir, FOLDER)
    database = folder / DATABASE
    schema = read_schema(database)
    parts = read_geoquery(folder / "geography.json", split)
    # One question for each query.
    examples = {doc["canonical"]: doc for doc in reversed(parts["train"])}
    return ScenarioTask(
        name,
        dataset=FOLDER,
        documents=parts["test"],
        pool=list(reversed(examples.values())),
        num_fewshot=10,
        description=f"Write an SQLite query that answers the question. Tables:\n{schema}\n\n",
        prompt="Question: {{question}}\nSQL:",
        # A blank line instead of the end of a line, so that a query may have several lines.
        until=["\n\n", "\nQuestion:"],
        max_gen_toks=384,
        metrics={"exact_match": "mean", "execution_match": "mean"},
        score=partial(score, database=database),
        metadata={"split": split},
    )


def score(doc: Document, answer: str, *, database: Path) -> dict[str, float]:
    """Exact and execution match of an answer.

    exact_match: the query equals a gold query up to case, spaces, type of quotes and a final
    semicolon. execution_match: exact_match, or it returns the same rows as the first gold query
    that runs on SQLite, in any order unless that query orders them.
    """
    query = extract_query(answer)
    exact = normalize_query(query) in {normalize_query(gold) for gold in doc["queries"]}
    gold = _gold_rows(database, tuple(doc["queries"]))
    executed = exact
    if not exact and gold is not None:
        try:
            executed = same_rows(run_query(database, query), gold[0], ordered=gold[1])
        except QueryError:
            executed = False
    return {"exact_match": float(exact), "execution_match": float(executed)}


def read_geoquery(path: Path, split: str) -> dict[str, list[Document]]:
    """Documents by part of the split, with values substituted in questions and queries.

    A document has the question, the gold `queries` (the first is the `target`), and `canonical`,
    the first query with variable names in place of values.
    """
    parts: dict[str, list[Document]] = {"train": [], "dev": [], "test": []}
    entries = read_json(existing(path), expected_type=None)
    try:
        for entry in entries:
            for sentence in entry["sentences"]:
                values = sentence["variables"]
                queries = [_strip_semicolon(_substitute(sql, values)) for sql in entry["sql"]]
                document = {
                    "question": _substitute(sentence["text"], values),
                    "queries": queries,
                    "target": queries[0],
                    "canonical": entry["sql"][0],
                }
                parts[{**sentence, "query-split": entry["query-split"]}[split]].append(document)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: expected the text2sql-data format, got {type(error).__name__}: {error}"
        ) from None
    return parts


def read_schema(database: Path) -> str:
    """The tables of an SQLite file, one line ``TABLE(COLUMN, ...)`` each.

    Raises:
        MissingDataError: there is no such file.
        ValueError: the file is not an SQLite database.
    """
    uri = f"{existing(database).resolve().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True)
    try:
        columns = connection.execute(
            "SELECT m.name, group_concat(c.name, ', ') FROM sqlite_master m, "
            "pragma_table_info(m.name) c WHERE m.type = 'table' GROUP BY m.name ORDER BY m.name"
        ).fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{database}: expected an SQLite database, got: {error}") from None
    finally:
        connection.close()
    return "\n".join(f"{table}({names})".upper() for table, names in columns)


@lru_cache(maxsize=4096)
def _gold_rows(database: Path, queries: tuple[str, ...]) -> tuple[Rows, bool] | None:
    """Rows of the first gold query that runs, and whether it orders them; None if none runs."""
    for query in queries:
        try:
            return run_query(database, query), is_ordered(query)
        except QueryError:
            continue
    return None


def _substitute(text: str, values: dict[str, str]) -> str:
    """`text` with values in place of variable names."""
    return re.sub(r"\w+", lambda word: values.get(word.group(), word.group()), text)


def _strip_semicolon(query: str) -> str:
    return query.strip().removesuffix(";").rstrip()


TASKS: dict[str, Callable[[Path | None], ScenarioTask]] = {
    name: partial(geoquery_task, name=name, split=split)
    for name, split in (
        ("scenario_geoquery", "question-split"),
        ("scenario_geoquery_query_split", "query-split"),
    )
}
