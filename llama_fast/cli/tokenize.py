"""`llama-fast tokenize`: texts and chats to token shards."""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_fast._reading import file_sha256
from llama_fast.data import ChatTemplate, DataError, ShardWriter, TokenShards, read_documents
from llama_fast.data.chat import TEMPLATES
from llama_fast.data.documents import Document
from llama_fast.tokenizers import Tokenizer, load_tokenizer, tokenizer_file

HELP = "turn text, JSONL, Parquet or datasets into memory-mapped token shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's options."""
    parser.add_argument(
        "source",
        nargs="+",
        help=".txt, .jsonl (also .gz), .parquet, a folder of them, or hf:NAME[:CONFIG[:SPLIT]]",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to be made")
    parser.add_argument(
        "--tokenizer",
        default="byte",
        metavar="FILE",
        help="tokenizer.json, tokenizer.model, tok*.bin, .gguf, a folder with one (default: byte)",
    )
    parser.add_argument(
        "--train-bpe",
        type=int,
        metavar="N",
        help="first learn a byte-level BPE of N tokens from the texts; kept in DIR/tokenizer",
    )
    parser.add_argument(
        "--key", default="text", help="field of a row that holds the text or the chat"
    )
    parser.add_argument(
        "--separator", metavar="TEXT", help="what divides the documents of a .txt file"
    )
    parser.add_argument("--encoding", default="utf-8", help="of .txt files, such as latin-1")
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="read what links in a folder lead to outside of it",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help=f"of chats: {', '.join(TEMPLATES)}, or a file with Jinja; answers alone are learned",
    )
    parser.add_argument(
        "--shard-tokens", type=int, default=1 << 27, metavar="N", help="size of a shard"
    )


def run(args: argparse.Namespace) -> int:
    """Write the shards; prints what they hold."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llama-fast-") as learned:
        tokenizer, identity = _tokenizer(args, Path(learned))
        template = ChatTemplate.from_name(args.chat_template) if args.chat_template else None
        if template is not None:
            identity["chat_template"] = template.source
        with ShardWriter(
            args.out,
            vocab_size=tokenizer.vocab_size,
            tokenizer=identity,
            shard_tokens=args.shard_tokens,
            with_answers=template is not None,
        ) as writer:
            for document in _documents(args):
                writer.add(*encode(document, tokenizer, template))
            if args.train_bpe is not None:
                shutil.copytree(learned, writer.partial / identity["path"])
    shards = TokenShards(args.out)
    seconds = time.perf_counter() - begin
    print(
        f"{args.out}: {len(shards):,} documents, {shards.num_tokens:,} tokens, "
        f"{len(shards.shards)} shards, {shards.num_tokens / seconds:,.0f} tokens/s\n"
        f"sha256 {shards.content_sha256}"
    )
    return 0


def encode(
    document: Document, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[list[int], list[bool] | None]:
    """Ids of a document with its begin and end, and, of a chat, which of them are answers.

    Raises:
        DataError: a chat and no template, or the reverse.
    """
    if isinstance(document, str):
        if template is not None:
            raise DataError("chat_template: expected chats, got a text")
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        return begin + tokenizer.encode(document) + end, None
    if template is None:
        raise DataError("chat_template: expected one for chats, got none (--chat-template)")
    ids, answer = template.encode(document, tokenizer)
    begun = tokenizer.begin(ids)  # as the model is asked later
    return begun, [False] * (len(begun) - len(ids)) + answer


def _documents(args: argparse.Namespace) -> Iterator[Document]:
    return itertools.chain.from_iterable(
        read_documents(
            source,
            key=args.key,
            separator=args.separator,
            encoding=args.encoding,
            follow_links=args.follow_links,
        )
        for source in args.source
    )


def _tokenizer(args: argparse.Namespace, learned: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what the index keeps of it; one that is learned is put into `learned`."""
    if args.train_bpe is not None:
        from llama_fast.tokenizers.train_bpe import train_bpe

        if args.out.exists():
            raise FileExistsError(f"folder: exists already: {args.out}")
        texts = (
            text
            for document in _documents(args)
            for text in ([document] if isinstance(document, str) else _contents(document))
        )
        new = train_bpe(texts, args.train_bpe, learned)
        return new, {"path": "tokenizer", "sha256": file_sha256(learned / "tokenizer.json")}
    tokenizer = load_tokenizer(args.tokenizer)
    if args.tokenizer == "byte":
        return tokenizer, {"path": "byte"}
    path = Path(args.tokenizer).resolve()
    return tokenizer, {"path": str(path), "sha256": file_sha256(tokenizer_file(path))}


def _contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message.get("content") or "" for message in messages]
