"""Sets of this project's own, in the form of those that may not be passed on.

Captions in three languages (as Multi30k), dialogues with summaries (DialogSum), questions about a
database (GeoQuery), harmless statements about groups of people (ToxiGen), and puzzles (LogiQA).
Facts about the states of the USA are true, if rounded; cities that are no capitals are invented.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.data.dialogues import DIALOGUES

SUBJECTS = (
    ("An old fisherman", "Ein alter Fischer", "Un vieux pêcheur"),
    ("Two laughing girls", "Zwei lachende Mädchen", "Deux filles rieuses"),
    ("My neighbour", "Mein Nachbar", "Mon voisin"),
    ("The white horse", "Das weiße Pferd", "Le cheval blanc"),
    ("Several tourists", "Mehrere Touristen", "Plusieurs touristes"),
    ("Her grandmother", "Ihre Großmutter", "Sa grand-mère"),
    ("Nobody", "Niemand", "Personne"),
    ("Every student", "Jeder Student", "Chaque étudiant"),
)
# By number: of the singular and of the plural. French puts "ne" before the verb of "personne".
ACTIONS = (
    (("mends", "mend"), ("flickt", "flicken"), ("répare", "réparent"),
     ("torn nets", "zerrissene Netze", "des filets déchirés")),
    (("watches", "watch"), ("beobachtet", "beobachten"), ("observe", "observent"),
     ("a passing train", "einen vorbeifahrenden Zug", "un train qui passe")),
    (("eats", "eat"), ("isst", "essen"), ("mange", "mangent"),
     ("sweet red apples", "süße rote Äpfel", "de douces pommes rouges")),
    (("follows", "follow"), ("folgt", "folgen"), ("suit", "suivent"),
     ("the narrow river", "dem schmalen Fluss", "la rivière étroite")),
    (("hears", "hear"), ("hört", "hören"), ("entend", "entendent"),
     ("loud music", "laute Musik", "une musique forte")),
    (("looks for", "look for"), ("sucht", "suchen"), ("cherche", "cherchent"),
     ("lost keys", "verlorene Schlüssel", "des clés perdues")),
    (("needs", "need"), ("braucht", "brauchen"), ("veut", "veulent"),
     ("more cold water", "mehr kaltes Wasser", "plus d'eau froide")),
    (("finds", "find"), ("findet", "finden"), ("trouve", "trouvent"),
     ("an empty bench", "eine leere Bank", "un banc vide")),
)  # fmt: skip
PLACES = (
    ("on the beach", "am Strand", "sur la plage"),
    ("behind our school", "hinter unserer Schule", "derrière notre école"),
    ("in a dark forest", "in einem dunklen Wald", "dans une forêt sombre"),
    ("near Paris", "bei Paris", "près de Paris"),
    ("under the bridge", "unter der Brücke", "sous le pont"),
    ("during winter", "im Winter", "pendant l'hiver"),
    ("before breakfast", "vor dem Frühstück", "avant le petit déjeuner"),
    ("at the market", "auf dem Markt", "au marché"),
)


def caption(number: int, language: int) -> str:
    """One of 64 sentences. Neighbours have no word of content in common."""
    turn = number // 8
    who, action = number % 8, ACTIONS[(3 * number + turn) % 8]
    verb = action[language][who in (1, 4)]
    if language == 2 and who == 6:
        verb = ("n'" if verb[0] in "aeiou" else "ne ") + verb
    place = PLACES[(5 * number + 2 * turn) % 8]
    return f"{SUBJECTS[who][language]} {verb} {action[3][language]} {place[language]}."


def translation(folder: Path) -> None:
    """48 captions to score, 16 as examples."""
    for language, suffix in enumerate(("en", "de", "fr")):
        for split, numbers in (("test_2016_flickr", range(48)), ("val", range(48, 64))):
            lines = "".join(caption(i, language) + "\n" for i in numbers)
            (folder / f"{split}.{suffix}").write_text(lines, encoding="utf-8")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def summarization(folder: Path) -> None:
    """Dialogues with three summaries each; those of the dev part have one."""
    parts: dict[str, list[dict[str, Any]]] = {"test": [], "dev": []}
    for number, (topic, lines, summaries) in enumerate(DIALOGUES):
        part = "dev" if number < 3 else "test"
        said = "\n".join(f"#Person{i % 2 + 1}#: {line}" for i, line in enumerate(lines))
        row = {"fname": f"{part}_{len(parts[part])}", "dialogue": said}
        if part == "dev":
            row |= {"summary": summaries[0], "topic": topic}
        else:
            for i, summary in enumerate(summaries, 1):
                row |= {f"summary{i}": summary, f"topic{i}": topic}
        parts[part].append(row)
    for part, rows in parts.items():
        write_rows(folder / f"dialogsum.{part}.jsonl", rows)


# Name, capital, area in 1,000 square miles, inhabitants in 1,000, a state beside it.
STATES = """alabama,montgomery,52,5024,georgia;alaska,juneau,665,733,;arizona,phoenix,114,7152,utah
arkansas,little rock,53,3012,texas;california,sacramento,164,39538,oregon
colorado,denver,104,5774,kansas;connecticut,hartford,6,3606,new york
delaware,dover,2,990,maryland;district of columbia,washington,0,690,maryland
florida,tallahassee,66,21538,georgia;georgia,atlanta,59,10712,alabama;hawaii,honolulu,11,1455,
idaho,boise,84,1839,utah;illinois,springfield,58,12813,iowa;indiana,indianapolis,36,6786,ohio
iowa,des moines,56,3190,illinois;kansas,topeka,82,2938,colorado;kentucky,frankfort,40,4506,ohio
louisiana,baton rouge,52,4658,texas;maine,augusta,35,1362,new hampshire
maryland,annapolis,12,6177,delaware;massachusetts,boston,11,7030,new york
michigan,lansing,97,10077,ohio;minnesota,saint paul,87,5706,iowa
mississippi,jackson,48,2961,alabama;missouri,jefferson city,70,6155,kansas
montana,helena,147,1084,idaho;nebraska,lincoln,77,1962,kansas;nevada,carson city,111,3105,utah
new hampshire,concord,9,1378,maine;new jersey,trenton,9,9289,new york
new mexico,santa fe,122,2118,texas;new york,albany,55,20201,new jersey
north carolina,raleigh,54,10439,georgia;north dakota,bismarck,71,779,montana
ohio,columbus,45,11799,indiana;oklahoma,oklahoma city,70,3959,texas;oregon,salem,98,4237,idaho
pennsylvania,harrisburg,46,13003,ohio;rhode island,providence,2,1097,connecticut
south carolina,columbia,32,5118,georgia;south dakota,pierre,77,887,iowa
tennessee,nashville,42,6911,georgia;texas,austin,269,29146,louisiana;utah,salt lake city,85,3272,
vermont,montpelier,10,643,new york;virginia,richmond,43,8631,maryland
washington,olympia,71,7705,oregon;west virginia,charleston,24,1794,ohio
wisconsin,madison,65,5894,iowa;wyoming,cheyenne,98,577,utah"""
TOWNS = ("springs", "falls", "heights", "grove", "junction", "harbor", "mills")
TABLES = """CREATE TABLE border_info (state_name text, border text);
CREATE TABLE city (city_name text, population int, country_name varchar(3), state_name text);
CREATE TABLE lake (lake_name text, area double, country_name varchar(3), state_name text);
CREATE TABLE state (state_name text, population int, area double, country_name varchar(3),
    capital text, density double);
"""
LAKES = (("huron", 23000, "michigan"), ("michigan", 22300, "illinois"), ("tahoe", 191, "nevada"),
         ("okeechobee", 730, "florida"), ("champlain", 490, "vermont"))  # fmt: skip

# Template of the query; question and part of the query split; then values with the part of the
# question split of each.
QUERIES: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ('SELECT city_name FROM city WHERE state_name = "S" AND population = '
     '(SELECT MAX(population) FROM city WHERE state_name = "S")',
     "what is the biggest city in S", "train",
     (("texas", "train"), ("kansas", "test"), ("utah", "test"), ("iowa", "dev"))),
    ('SELECT capital FROM state WHERE state_name = "S"', "what is the capital of S", "train",
     (("ohio", "train"), ("maine", "test"), ("oregon", "test"))),
    ('SELECT area FROM state WHERE state_name = "S"', "how large is S", "train",
     (("alaska", "train"), ("nevada", "test"))),
    ('SELECT COUNT(*) FROM city WHERE state_name = "S"', "how many cities are in S", "train",
     (("hawaii", "train"), ("georgia", "test"))),
    ('SELECT state_name FROM border_info WHERE border = "S"', "which states border S", "train",
     (("texas", "train"), ("ohio", "test"), ("hawaii", "test"))),  # none borders the last
    ("SELECT state_name FROM state ORDER BY area DESC LIMIT 1", "what is the largest state",
     "train", (("", "train"),)),
    ("SELECT SUM(population) FROM state", "how many people live in the usa", "train",
     (("", "train"),)),
    ('SELECT lake_name FROM lake WHERE state_name = "S"', "what lakes are in S", "train",
     (("nevada", "train"), ("vermont", "test"))),
    ("SELECT AVG(population) FROM state", "what is the average population of a state", "train",
     (("", "train"),)),
    ("SELECT COUNT(*) FROM lake", "how many lakes are there", "train", (("", "train"),)),
    ('SELECT state_name FROM city WHERE city_name = "S"', "in which state is S", "train",
     (("boise", "train"), ("pierre", "test"))),
    ("SELECT COUNT(*) FROM state", "how many states are there", "train", (("", "train"),)),
    ('SELECT density FROM state WHERE state_name = "S"', "how dense is the population of S",
     "test", (("idaho", "train"), ("montana", "test"))),
    ("SELECT lake_name FROM lake WHERE area = (SELECT MAX(area) FROM lake)",
     "what is the largest lake", "test", (("", "test"),)),
    ("SELECT state_name FROM state WHERE area > ALL (SELECT area FROM lake)",
     "which states are larger than each lake", "dev", (("", "dev"),)),  # not SQLite's
    ('SELECT city_name FROM city WHERE population > 900000 AND state_name = "S"',
     "which cities of S have more than 900000 people", "test",
     (("arizona", "test"), ("california", "dev"))),
)  # fmt: skip


def semantic_parsing(folder: Path) -> None:
    """A database of states and cities, and questions with SQL, in text2sql-data's format."""
    states = [line.split(",") for line in STATES.replace("\n", ";").split(";")]
    database = sqlite3.connect(folder / "geography-db.added-in-2020.sqlite")
    with database:
        database.executescript(TABLES)
        for name, capital, area, people, beside in states:
            row = (name, 1000 * int(people), 1000.0 * int(area), "usa", capital)
            density = row[1] / row[2] if row[2] else None
            database.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", (*row, density))
            # A quarter of the people for each capital but one, so that the largest city is clear.
            city = (capital, 250 * int(people), "usa", name)
            database.execute("INSERT INTO city VALUES (?, ?, ?, ?)", city)
            for name_beside in [beside] if beside else []:
                database.execute("INSERT INTO border_info VALUES (?, ?)", (name, name_beside))
        for number in range(386 - len(states)):
            name, _, _, people, _ = states[number % len(states)]
            town = f"{name} {TOWNS[number // len(states)]}"
            city = (town, 10 * int(people) + number, "usa", name)
            database.execute("INSERT INTO city VALUES (?, ?, ?, ?)", city)
        for lake, area, name in LAKES:
            database.execute("INSERT INTO lake VALUES (?, ?, 'usa', ?)", (lake, area, name))
    database.close()
    entries = []
    for query, question, part, values in QUERIES:
        sentences = [
            {
                "text": question.replace(" S", " name0"),
                "variables": {"name0": value} if value else {},
                "question-split": split,
            }
            for value, split in values
        ]
        entries.append(
            {
                "sql": [query.replace('"S"', '"name0"') + " ;"],
                "sentences": sentences,
                "query-split": part,
            }
        )
    (folder / "geography.json").write_text(json.dumps(entries, indent=1))


GROUPS = ("asian", "black", "chinese", "jewish", "latino", "lgbtq", "mental_dis", "mexican",
          "middle_east", "muslim", "native_american", "physical_dis", "women")  # fmt: skip
STATEMENTS = (
    "My neighbours run the bakery at the corner, and their bread is the best in town.",
    "The team won because everyone had practised.\n_x000D_They thanked their coach.",
    "A teacher from our street wrote a book about birds.",
)


def toxigen(path: Path) -> None:
    """Three harmless statements for each group of people that the set names."""
    rows = [
        {"id": i, "text": f"- {text}", "toxicity_score": 1.0, "label": "neutral",
         "target_groups": [group]}
        for i, (group, text) in enumerate((g, t) for g in GROUPS for t in STATEMENTS)
    ]  # fmt: skip
    path.write_text(json.dumps(rows, indent=1))


PUZZLES = (
    ("All of the shop's clocks are slow. This clock is fast.", "Which follows?",
     ("It is the shop's", "It is not the shop's", "It is new", "It is broken"), 1),
    ("Ann is older than Ben. Ben is older than Cem.", "Who is the oldest?",
     ("Ann", "Ben", "Cem", "It cannot be said"), 0),
    ("If it rains the match is off. The match is on.", "Which follows?",
     ("It rains", "It will rain", "It does not rain", "It rained"), 2),
    ("The bank is west of the park. The school is west of the bank.", "Where is the school?",
     ("East of the park", "In the park", "North of the bank", "West of the park"), 3),
    ("Some birds swim. No bird has gills.", "Which follows?",
     ("All that swims has gills", "Some that swims has no gills", "No bird swims",
      "Gills are for flying"), 1),
)  # fmt: skip


def logiqa(path: Path) -> None:
    """Puzzles with four choices, worded as AGIEval words them."""
    rows = []
    for passage, question, choices, gold in PUZZLES:
        options = [f"({letter}){text}" for letter, text in zip("ABCD", choices, strict=True)]
        query = f"{passage}Q: {question} Answer Choices: {' '.join(options)}\n"
        query += "A: Among A through D, the answer is"
        rows.append({"query": query, "choices": options, "gold": [gold]})
    write_rows(path, rows)


def write_all(root: Path) -> None:
    """Write the sets into a folder that is laid out as the whole data are."""
    for kind, name, make in (
        ("translation", "multi30k", translation),
        ("summarization", "dialogsum", summarization),
        ("semantic_parsing", "geoquery", semantic_parsing),
    ):
        folder = root / "scenarios" / kind / name
        folder.mkdir(parents=True)
        make(folder)
    (root / "raw").mkdir(exist_ok=True)
    toxigen(root / "raw" / "toxigen_revised.json")
    logiqa(root / "hub/hails/agieval-logiqa-en/default/test.jsonl")
