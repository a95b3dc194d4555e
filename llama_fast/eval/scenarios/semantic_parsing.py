"""Questions about US geography to SQL, scored with exact match and execution match.

GeoQuery: Zelle and Mooney 1996, with the SQL and the two splits of Finegan-Dollak et al. 2018,
"Improving Text-to-SQL Evaluation Methodology" (arXiv:1806.09029). In the question split a test
question may have a query that training questions have with other values; in the query split no
query of the test, whatever its values, is in the training part.
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
    """Questions of the test part of a split, 10 examples of its train part, all of other queries.

    Args:
        data_dir: the folder that holds ``scenarios/``.
        name: of the task.
        split: "question-split" or "query-split".
    """
    folder = folder_in(data_dir, FOLDER)
    database = folder / DATABASE
    schema = read_schema(database)
    parts = read_geoquery(folder / "geography.json", split)
    # One question for each query, so that the examples differ.
    examples = {doc["canonical"]: doc for doc in reversed(parts["train"])}
    return ScenarioTask(
        name,
        dataset=FOLDER,
        documents=parts["test"],
        pool=list(reversed(examples.values())),
        num_fewshot=10,
        description=f"Write an SQLite query that answers the question. Tables:\n{schema}\n\n",
        prompt="Question: {{question}}\nSQL:",
        # A blank line, and not the end of a line, so that queries over several lines count.
        until=["\n\n", "\nQuestion:"],
        max_gen_toks=384,
        metrics={"exact_match": "mean", "execution_match": "mean"},
        score=partial(score, database=database),
        metadata={"split": split},
    )


def score(doc: Document, answer: str, *, database: Path) -> dict[str, float]:
    """Exact and execution match of an answer.

    exact_match: the query equals one of the gold queries but for case, spaces, kind of quotes and
    a final semicolon. execution_match: it does, or it gives the same rows as the first gold query
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
    """Part of the split to documents, values put into questions and queries.

    A document has the question, the gold `queries` (the first is the `target`), and `canonical`,
    the first with the names of the variables.
    """
    parts: dict[str, list[Document]] = {"train": [], "dev": [], "test": []}
    entries = read_json(existing(path), expected_type=None)
    try:
        for entry in entries:
            for sentence in entry["sentences"]:
                values = sentence["variables"]
                queries = [_without_end(_put_in(sql, values)) for sql in entry["sql"]]
                document = {
                    "question": _put_in(sentence["text"], values),
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
    """One line a table, ``TABLE(COLUMN, ...)``, of an SQLite file.

    Raises:
        MissingDataError: no such file.
        ValueError: not an SQLite file.
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
    """The rows of the first gold query that runs, and whether it orders them; None if none runs."""
    for query in queries:
        try:
            return run_query(database, query), is_ordered(query)
        except QueryError:
            continue
    return None


def _put_in(text: str, values: dict[str, str]) -> str:
    """`text` with values in place of the variables' names."""
    return re.sub(r"\w+", lambda word: values.get(word.group(), word.group()), text)


def _without_end(query: str) -> str:
    return query.strip().removesuffix(";").rstrip()


TASKS: dict[str, Callable[[Path | None], ScenarioTask]] = {
    name: partial(geoquery_task, name=name, split=split)
    for name, split in (
        ("scenario_geoquery", "question-split"),
        ("scenario_geoquery_query_split", "query-split"),
    )
}
