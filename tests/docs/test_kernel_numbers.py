"""The sizes that docs/how tells are those of the kernels' sources."""

from __future__ import annotations

import re

import pytest

from tests.paths import REPOSITORY

# A constant in a file of csrc, and how its page says it.
NUMBERS = [
    ("cpu/attention_tile.h", r"Queries = 96;", "attention", "each query tile of 96 rows"),
    ("cpu/attention_tile.h", r"Keys = 128;", "attention", "each key tile of 128 keys"),
    ("cpu/attention_tile.h", r"kBlock\w* = 24;", "attention", "A block of 24 rows"),
    ("cpu/attention_tile.h", r"kBlock\w* = 32;", "attention", "(32 with AMX)"),
    ("cpu/attention_row.h", r"kSlack = 5\.5;", "attention", "more than 5.5"),
    ("constants.h", r"kFewRows = 8;", "attention_decode", "Up to 8 rows"),
    ("cpu/attention_decode.cpp", r" = 4 \* k\w*Keys;", "attention_decode", "a chunk of 512 keys"),
    ("constants.h", r"kPageUnit = 16;", "attention_decode", "each group of 16 keys"),
    ("cpu/attention_few.h", r"Together = 4;", "attention_decode", "serves up to 4 rows"),
    ("cpu/cross_entropy_*.h", r"kBlock = 1024;", "cross_entropy", "blocks of 1,024 logits"),
    ("cpu/cross_entropy_row.h", r"kSlack = 8;", "cross_entropy", "by more than 8"),
    ("cpu/cross_entropy.cpp", r"kTileRows = 16;", "cross_entropy", "16 tokens at a time"),
    ("cpu/*_block.h", r"kBlockClasses = 480;", "linear_cross_entropy", "block of 480 classes"),
    ("cpu/*_plan.h", r"kItemRows = 192;", "linear_cross_entropy", "up to 192 rows"),
    ("cpu/linear_*.h", r"kMinBudget = 16 << 20", "linear_cross_entropy", "16 MiB are always"),
    ("cpu/linear_*.h", r"kMaxBudget = 512 << 20", "linear_cross_entropy", "512 MiB are the most"),
    ("cpu/*_block.h", r"kCodesPerUnit = 128;", "linear_cross_entropy", "steps of 1/128"),
    ("cpu/**/*.h", r" / 4;  // 24 accumulators of 32", "products", "| 8 × 48 | 24 of 32 |"),
    ("cpu/**/*.h", r"32 registers, 12 of 16", "products", "| 4 × 24 | 12 of 16 |"),
    ("cpu/**/*.h", r"kTileRows = 6, |kBlockTileRows = 6;", "products", "a register tile is 6 × 64"),
    ("cpu/**/*.h", r"Steps = 256, |RegisterSteps = 256;", "products", "After 256\nsteps the sums"),
    ("cpu/**/*.h", r"kDepth = 512;|kCacheSteps = 512;", "products", "512 steps of A"),
    ("cpu/**/*.h", r"kRun\w* = 64;", "products", "runs of 64"),
    ("cpu/rms_norm.cpp", r"kRowBlocks = 128;|Blocks = 128;", "row_ops", "at most 128 blocks"),
    ("cpu/rms_norm.cpp", r"Rows = 64;", "row_ops", "strips of 64 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "constant", "page", "words"), NUMBERS)
def test_number_is_that_of_the_source(source, constant, page, words):
    files = list((REPOSITORY / "csrc").glob(source))
    assert any(re.search(constant, file.read_text()) for file in files), constant
    text = (REPOSITORY / "docs" / "how" / f"{page}.md").read_text()
    assert " ".join(words.split()) in " ".join(text.split())
