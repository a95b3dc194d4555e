"""`llama-fast tokenize`: texts and chats to token shards."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast._format import counted
from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_out, add_tokenizer

if TYPE_CHECKING:
    from llama_fast.data import ChatTemplate
    from llama_fast.data.rows import Document
    from llama_fast.tokenizers import Tokenizer


class Tokenize(Command):
    """Writes token shards."""

    name = "tokenize"
    help = "convert text, JSON Lines, Parquet or data sets to memory-mapped token shards"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument(
            "source",
            metavar="SOURCE",
            nargs="+",
            help=".txt, .md, .jsonl (also .gz), .parquet, a folder of them, or "
            "hf:NAME[:CONFIG[:SPLIT]]",
        )
        add_out(parser, "new folder for the shards", required=True)
        add_tokenizer(parser, default="byte")
        parser.set_defaults(tokenizer=None)  # to tell it from one that was given
        parser.add_argument(
            "--train-bpe",
            type=int,
            metavar="N",
            help="first train a byte-level BPE of N tokens on the texts; saved in DIR/tokenizer",
        )
        parser.add_argument(
            "--key",
            default="text",
            metavar="FIELD",
            help="field of a row that contains the text or the chat (default: %(default)s; else "
            "messages, conversations, prompt and completion, or instruction and output)",
        )
        parser.add_argument(
            "--separator",
            metavar="TEXT",
            help="text between the documents of a .txt file (default: a file is one document)",
        )
        parser.add_argument(
            "--encoding",
            default="utf-8",
            metavar="NAME",
            help="encoding of text files, such as latin-1 (default: %(default)s)",
        )
        parser.add_argument(
            "--follow-links",
            action="store_true",
            help="follow symbolic links that lead out of a folder",
        )
        parser.add_argument(
            "--chat-template",
            metavar="NAME",
            help="template for chats: chatml, llama3, plain, or a file with Jinja (default: the "
            "tokenizer's own); none: prompts and completions as they are. Only the answers are "
            "trained on",
        )
        parser.add_argument(
            "--shard-tokens",
            type=int,
            default=1 << 27,
            metavar="N",
            help="tokens of a shard (default: %(default)s)",
        )

        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="processes that encode (default: the number of cores, 1 for bytes); the result is "
            "the same",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Write the shards, and print what they contain."""
        from llama_fast.data import ShardWriter, TokenShards
        from llama_fast.data.encoding import Encoder, encode_all

        if args.workers is not None and args.workers < 1:
            raise ValueError(f"--workers: expected at least 1, got {args.workers}")
        if args.train_bpe is not None and args.tokenizer is not None:
            raise ValueError(
                f"--train-bpe: expected no --tokenizer beside it, got {args.tokenizer}"
            )
        begin, without = time.perf_counter(), 0
        with tempfile.TemporaryDirectory(prefix="llama-fast-") as learned:
            tokenizer, identity = _tokenizer(args, Path(learned))
            documents = _documents(args)
            first = next(documents, None)
            if first is None:
                raise ValueError(
                    f"{', '.join(args.source)}: expected at least one document, got none"
                )
            has_chats = not isinstance(first[1], str)
            template = _template(args.chat_template, tokenizer, has_chats)
            if template is not None:
                identity["chat_template"] = template.source
            encoder = Encoder(tokenizer, template, has_chats or template is not None)
            with ShardWriter(
                args.out,
                vocab_size=tokenizer.vocab_size,
                tokenizer=identity,
                shard_tokens=args.shard_tokens,
                with_answers=encoder.with_answers,
            ) as writer:
                placed = itertools.chain([first], documents)
                with _progress(begin) as update:
                    for encoded in encode_all(placed, encoder, _workers(args, tokenizer)):
                        writer.add(*encoded)
                        if encoded.answer is not None and not encoded.answer.any():
                            without += 1
                        update(len(encoded.ids))
                if args.train_bpe is not None:
                    shutil.copytree(learned, writer.partial / identity["path"])
        shards = TokenShards(args.out)
        if without:
            warnings.warn(
                f"{counted(without, 'chat')} of {len(shards):,} without an answer, which is what a "
                "model learns",
                stacklevel=2,
            )
        seconds = time.perf_counter() - begin
        print(
            f"{args.out}: {counted(len(shards), 'document')}, "
            f"{counted(shards.num_tokens, 'token')}, "
            f"{counted(len(shards.shards), 'shard')}, {shards.num_tokens / seconds:,.0f} tokens/s\n"
            f"sha256 {shards.content_sha256}"
        )
        return ExitCode.OK


def _template(name: str | None, tokenizer: Tokenizer, has_chats: bool) -> ChatTemplate | None:
    """Return the template that the user named, or for chats the tokenizer's own if it has one."""
    from llama_fast.data import ChatTemplate

    if name is not None:
        return None if name == "none" else ChatTemplate.from_name(name)
    if has_chats and tokenizer.chat_template is not None:
        return ChatTemplate.from_model(tokenizer.chat_template)
    return None


def _workers(args: argparse.Namespace, tokenizer: Tokenizer) -> int:
    """Return the number of processes; one for bytes, which take longer to send than to encode."""
    from llama_fast.tokenizers import ByteTokenizer

    if args.workers is not None:
        return int(args.workers)
    return 1 if isinstance(tokenizer, ByteTokenizer) else _cores()


def _cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))


@contextlib.contextmanager
def _progress(begin: float) -> Iterator[Callable[[int], None]]:
    """Show documents, tokens and speed in the last line of a terminal.

    Args:
        begin: when the command began, by `time.perf_counter`.

    Yields:
        A function to call with the number of tokens of each document.
    """
    documents = tokens = 0
    shown = begin
    is_terminal = sys.stderr is not None and sys.stderr.isatty()

    def update(more: int) -> None:
        nonlocal documents, tokens, shown
        documents, tokens, now = documents + 1, tokens + more, time.perf_counter()
        if is_terminal and now - shown > 0.5:
            shown = now
            speed = tokens / (now - begin) / 1000
            line = f"{documents:,} documents, {tokens / 1e6:,.1f} M tokens, {speed:,.0f} k tokens/s"
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield update
    finally:
        if shown != begin:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _documents(args: argparse.Namespace) -> Iterator[tuple[str, Document]]:
    """Yield the place of each document, for messages, and the document."""
    from llama_fast.data.documents import read_placed_documents

    return itertools.chain.from_iterable(
        read_placed_documents(
            source,
            key=args.key,
            separator=args.separator,
            encoding=args.encoding,
            follow_links=args.follow_links,
        )
        for source in args.source
    )


def _tokenizer(args: argparse.Namespace, learned: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer and its index entry; write a new tokenizer to the folder `learned`."""
    from llama_fast._reading import file_sha256
    from llama_fast.models.loading import locate
    from llama_fast.tokenizers import load_tokenizer, tokenizer_file

    if args.train_bpe is not None:
        from llama_fast.tokenizers.train_bpe import train_bpe

        if args.out.exists():
            raise FileExistsError(f"--out: exists already: {args.out}")
        texts = (text for _, document in _documents(args) for text in _strings(document))
        new = train_bpe(texts, args.train_bpe, learned)
        return new, {"path": "tokenizer", "sha256": file_sha256(learned / "tokenizer.json")}
    name = args.tokenizer or "byte"
    if name == "byte":
        return load_tokenizer(name), {"path": "byte"}
    path = locate(name, argument="--tokenizer").resolve()
    return load_tokenizer(path), {"path": str(path), "sha256": file_sha256(tokenizer_file(path))}


def _strings(document: Document | dict[str, Any]) -> Iterator[str]:
    """Yield the texts in a document: itself, or the contents of its messages."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        yield document.get("content") or ""
    else:
        for part in document:
            yield from _strings(part)


COMMAND = Tokenize()
