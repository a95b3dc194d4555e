"""Model-written SQL does what it says and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from llama_fast.eval.scenarios import sql
from llama_fast.eval.scenarios.sql import (
    MAX_SECONDS,
    QueryError,
    extract_query,
    is_ordered,
    normalize_query,
    run_query,
    same_rows,
)
from tests.paths import ORIGINALS, extra, mirror

GEOQUERY = "scenarios/semantic_parsing/geoquery"
NUMBERS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)"
DOUBLED = "SELECT 'ten chars.' AS x"
for _ in range(30):  # 10 GB
    DOUBLED = f"SELECT x || x AS x FROM ({DOUBLED})"


def chain(links: int, body: str) -> str:
    """A short query that grows twofold with each link, most of it before the first step."""
    ctes = "".join(f", t{i + 1}(x) AS ({body.format(f't{i}')})" for i in range(links))
    return f"WITH t0(x) AS (SELECT 1){ctes} SELECT x FROM t{links}"


CHAINS = [
    chain(18, "SELECT x FROM {0} UNION ALL SELECT x FROM {0}"),
    chain(16, "SELECT a.x FROM {0} a, {0} b"),
    chain(22, "SELECT x + x FROM {0}"),
]

HOSTILE = [
    *CHAINS,
    "DROP TABLE city",
    "DELETE FROM city",
    "UPDATE city SET population = 0",
    "INSERT INTO lake VALUES ('a', 1, 'usa', 'b')",
    "REPLACE INTO lake VALUES ('a', 1, 'usa', 'b')",
    "CREATE TABLE x (a)",
    "CREATE TEMP TABLE x AS SELECT * FROM city",
    "CREATE TEMP VIEW x AS SELECT * FROM city",
    "ALTER TABLE city RENAME TO town",
    "ATTACH DATABASE '{folder}/new.db' AS x",
    "DETACH DATABASE main",
    "VACUUM",
    "VACUUM INTO '{folder}/copy.db'",
    "REINDEX",
    "ANALYZE",
    "BEGIN EXCLUSIVE",
    "SAVEPOINT x",
    "PRAGMA writable_schema = 1",
    "PRAGMA journal_mode = wal",
    "PRAGMA temp_store_directory = '{folder}'",
    "PRAGMA hard_heap_limit = 1",
    "SELECT * FROM pragma_table_info('city')",
    "SELECT 1; DROP TABLE city",
    "WITH x AS (SELECT 1) DELETE FROM city",
    "SELECT load_extension('{folder}/x.so')",
    "SELECT writefile('{folder}/x', 'y')",
    "SELECT length(zeroblob(1000000000))",
    "SELECT length(randomblob(1000000000))",
    "SELECT length(printf('%*d', 1000000000, 1))",
    "SELECT length(replace(city_name, 'a', city_name)) FROM city",
    "SELECT length(group_concat(a.city_name)) FROM city a, city b",
    DOUBLED.replace("SELECT x || x", "SELECT length(x) AS x, x || x", 1),
    f"{NUMBERS} SELECT count(*) FROM t",
    f"{NUMBERS} SELECT n FROM t",
    f"{NUMBERS} SELECT n FROM t LIMIT 1",
    "SELECT count(*) FROM city a, city b, city c, city d, city e",
    "SELECT a.city_name FROM city a, city b, city c, city d ORDER BY c.population + d.population",
    "SELECT a.city_name FROM city a, city b",  # 148,996 rows
    "SELECT count(DISTINCT a.population * b.population * c.population) FROM city a, city b, city c",
    "SELECT ?",
    "SELECT city_name FROM town",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT '" + "a" * 20_000 + "'",
    "no SQL at all",
    "",
    "-- nothing",
    "SELECT 1\0",
    "SELECT '\ud800'",
]


@pytest.fixture
def database(tmp_path):
    """A copy in a folder that can be written, so that only the guards are in the way."""
    source = mirror() / GEOQUERY / "geography-db.added-in-2020.sqlite"
    target = tmp_path / "geography #1?.sqlite"  # characters that mean something in a URI
    shutil.copyfile(source, target)
    target.chmod(0o644)
    return target


@pytest.mark.parametrize("query", HOSTILE, ids=lambda query: ascii(query[:40]))
def test_a_hostile_query_is_refused_and_changes_nothing(database, query):
    folder = database.parent
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    start = time.monotonic()
    with pytest.raises(QueryError):
        run_query(database, query.replace("{folder}", str(folder)))
    assert time.monotonic() - start < MAX_SECONDS
    assert list(folder.iterdir()) == [database]
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*) FROM state", [(51,)]),
        ('SELECT capital FROM state WHERE state_name = "texas"', [("austin",)]),
        ("WITH x AS (SELECT 1 AS a) SELECT a + 1 FROM x", [(2,)]),
        (
            "SELECT upper(substr(state_name, 1, 3)) FROM state WHERE state_name LIKE 'tex%'",
            [("TEX",)],
        ),
        ("SELECT CASE WHEN 1 < 2 THEN round(2.46, 1) END UNION SELECT 2.5", [(2.5,)]),
        (
            "SELECT state_name FROM (SELECT state_name, rank() OVER (ORDER BY area DESC) AS place "
            "FROM state) WHERE place = 1",
            [("alaska",)],
        ),
        ("SELECT 1 WHERE 0", []),
    ],
)
def test_ordinary_selects_run(database, query, rows):
    assert run_query(database, query) == rows


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: /proc")
@pytest.mark.parametrize("query", CHAINS, ids=["union", "join", "sum"])
def test_a_query_takes_little_memory(database, query):
    sql._process.end()  # so that the largest size is that of this query
    before = largest_size("self")
    with pytest.raises(QueryError, match=r"more than 64 MiB of memory"):
        run_query(database, query)
    assert largest_size("self") < before + 50
    assert largest_size(sql._process.process.pid) < 64 + 50  # Python takes some 20


def largest_size(pid):
    """MiB of memory that a process held at once so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) // 1024


def test_a_query_that_is_ended_leaves_the_next_alone(database, monkeypatch):
    slow = "SELECT count(*) FROM city a, city b, city c"
    with monkeypatch.context() as patch:
        patch.setattr(sql, "MAX_SECONDS", 0.0)
        with pytest.raises(QueryError, match=r"longer than 0.0 s"):
            run_query(database, slow)
    assert run_query(database, "SELECT 2") == [(2,)]
    sql._process.process.kill()
    sql._process.process.wait()
    assert run_query(database, "SELECT 3") == [(3,)]


def test_values_come_back_as_sqlite_gives_them(database):
    query = "SELECT 1, -9223372036854775808, 0.1, 1e999, NULL, 'é', x'00ff'"
    expected = sqlite3.connect(":memory:").execute(query).fetchall()
    assert run_query(database, query) == expected
    with pytest.raises(QueryError, match="16 MiB"):
        run_query(database, f"SELECT '{'a' * 9000}' FROM city a, city b LIMIT 9999")


@pytest.mark.parametrize(
    ("whole", "counts"),
    [(False, (28, 1, 1)), pytest.param(True, (872, 5, 28), marks=extra(GEOQUERY))],
)
def test_all_gold_queries_give_what_an_unguarded_connection_gives(tmp_path, whole, counts):
    folder = (ORIGINALS if whole else mirror()) / GEOQUERY
    entries = json.loads((folder / "geography.json").read_text())
    database = tmp_path / "geography.sqlite"
    shutil.copyfile(folder / "geography-db.added-in-2020.sqlite", database)
    plain = sqlite3.connect(database)
    ran = empty = refused = 0
    for entry in entries:
        for sentence in entry["sentences"]:
            query = entry["sql"][0]
            for name, value in sentence["variables"].items():
                query = query.replace(f'"{name}"', f'"{value}"')
            try:
                expected = plain.execute(query).fetchall()
            except sqlite3.OperationalError:
                refused += 1
                with pytest.raises(QueryError):
                    run_query(database, query)
                continue
            ran += 1
            empty += not expected
            assert run_query(database, query) == expected
    plain.close()
    assert (ran, refused, empty) == counts


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        (" SELECT a FROM b", "SELECT a FROM b"),
        ("SELECT a\n  FROM b ;\nThis gives a.", "SELECT a FROM b"),
        ("Here it is:\n```sql\nSELECT a\nFROM b;\n```\nDone", "SELECT a FROM b"),
        ("```\nSELECT a FROM b", "SELECT a FROM b"),
        ("""SELECT ";" , ';' FROM b; DROP""", """SELECT ";" , ';' FROM b"""),
        ('SELECT "open FROM b; c', 'SELECT "open FROM b'),
        ("", ""),
    ],
)
def test_the_query_is_cut_out_of_an_answer(answer, query):
    assert extract_query(answer) == query


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("SELECT a.B FROM c AS a ;", "select A.b\nfrom C as A", True),
        ("SELECT MAX( a ) FROM b WHERE c>=1", "select max(a) from b where c >= 1;", True),
        ("SELECT a WHERE b = 'texas'", 'SELECT a WHERE b = "texas"', True),
        ('SELECT a WHERE b = "texas"', 'SELECT a WHERE b = "Texas"', False),
        ('SELECT a WHERE b = "new york"', 'SELECT a WHERE b = "newyork"', False),
        ("SELECT a, b FROM c", "SELECT b, a FROM c", False),
        ("SELECT a FROM b", "SELECT DISTINCT a FROM b", False),
    ],
)
def test_exact_match_sees_past_layout_only(one, other, same):
    assert (normalize_query(one) == normalize_query(other)) == same


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM b ORDER BY a", True),
        ("SELECT max(a) FROM b order\n by a LIMIT 1", True),
        ("SELECT a FROM b WHERE a IN (SELECT a FROM (SELECT 1) ORDER BY a)", False),
        ("SELECT a FROM b WHERE a = ' ORDER BY '", False),
    ],
)
def test_order_matters_where_the_outer_query_orders(query, ordered):
    assert is_ordered(query) == ordered


def test_rows_are_compared_as_a_multiset_or_as_a_list():
    assert same_rows([(1, "a"), (2, None)], [(2, None), (1, "a")], ordered=False)
    assert not same_rows([(1, "a"), (2, None)], [(2, None), (1, "a")], ordered=True)
    assert not same_rows([(1,), (1,)], [(1,)], ordered=False)
    assert not same_rows([(1, 2)], [(2, 1)], ordered=False)
    assert not same_rows([("1",)], [(1,)], ordered=False)
    assert same_rows([(0.1 + 0.2,)], [(0.3,)], ordered=True)
    assert same_rows([(3.0,)], [(3,)], ordered=False)
