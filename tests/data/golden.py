"""Writes the ids that the open tokenizers give llama.cpp's strings, for ``tests/data/files``.

    python -m tests.data.golden

By Hugging Face's tokenizers, which share no code with SentencePiece and tiktoken, which the package
uses; where those disagree, an id is not written.
"""

from __future__ import annotations

import base64
import itertools
import sys
from pathlib import Path

import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.data.make import FILES
from tests.packages import open_tokenizer

GOLDEN = FILES / "tokenizers" / "golden"
SEPARATOR = "\n__ggml_vocab_test__\n"
# github.com/meta-llama/llama-models, models/llama3/tokenizer.py
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def texts() -> list[str]:
    """The strings."""
    content = (GOLDEN / "ggml-vocab-llama-spm.gguf.inp").read_bytes().decode("utf-8")
    return content.removesuffix(SEPARATOR).split(SEPARATOR)


def by_pieces(path: Path) -> Tokenizer:
    """A SentencePiece BPE as merges in the order of the scores of what they make."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    size = model.vocab_size()
    pieces = {model.id_to_piece(i): i for i in range(size)}
    merges = []
    for piece, number in pieces.items():
        if model.is_control(number) or model.is_unknown(number) or model.is_byte(number):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-model.get_score(number), pieces[left], pieces[right], left, right))
    made = Tokenizer(
        models.BPE(
            pieces, [pair[3:] for pair in sorted(merges)], unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    made.add_special_tokens([AddedToken(name, special=True) for name in ("<s>", "</s>")])
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


def by_ranks(path: Path) -> Tokenizer:
    """A rank file as merges of bytes: each token is made last of the two that its ranks imply."""
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    alphabet = bytes_as_characters()
    written = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            found = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
            if min(found) >= rank:
                break
            i = found.index(min(found))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((rank, *(written[part] for part in parts)))
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    made = Tokenizer(
        models.BPE(vocabulary, [pair[1:] for pair in sorted(merges)], ignore_merges=True)
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def bytes_as_characters() -> dict[int, str]:
    """GPT-2's printable characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def main() -> int:
    """Write both files; 1 where the libraries disagree."""
    pieces, ranks = open_tokenizer("mistral"), open_tokenizer("tekken")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    content = {}
    for line in ranks.read_bytes().splitlines():
        token, rank = line.split()
        content[base64.b64decode(token)] = int(rank)
    encoding = tiktoken.Encoding(
        "open", pat_str=LLAMA3_SPLIT, mergeable_ranks=content, special_tokens={}
    )
    wrong = 0
    for name, made, other in (
        ("mistral", by_pieces(pieces), processor.encode),
        ("tekken", by_ranks(ranks), encoding.encode_ordinary),
    ):
        ids = [made.encode(text, add_special_tokens=False).ids if text else [] for text in texts()]
        for text, found in zip(texts(), ids, strict=True):
            if found != other(text):
                print(f"{name}: {text!r}: {found}, {other(text)}", file=sys.stderr)
                wrong = 1
        lines = "".join(" ".join(map(str, found)) + "\n" for found in ids)
        (GOLDEN / f"{name}.ids").write_text(lines)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
