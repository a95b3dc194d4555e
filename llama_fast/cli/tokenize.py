"""`llama-fast tokenize`: texts and chats to token shards."""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_fast.cli.command import Command
from llama_fast.cli.exit_codes import ExitCode
from llama_fast.cli.options import add_out, add_tokenizer

if TYPE_CHECKING:
    from llama_fast.data import ChatTemplate
    from llama_fast.data.documents import Document
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
            help=".txt, .jsonl (also .gz), .parquet, a folder of them, or hf:NAME[:CONFIG[:SPLIT]]",
        )
        add_out(parser, "new folder for the shards", required=True)
        add_tokenizer(parser, default="byte")
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
            help="field of a row that contains the text or the chat (default: %(default)s)",
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
            help="encoding of .txt files, such as latin-1 (default: %(default)s)",
        )
        parser.add_argument(
            "--follow-links",
            action="store_true",
            help="follow symbolic links that lead out of a folder",
        )
        parser.add_argument(
            "--chat-template",
            metavar="NAME",
            help="template for chats: chatml, llama3, plain, or a file with Jinja; only the "
            "answers are trained on",
        )
        parser.add_argument(
            "--shard-tokens",
            type=int,
            default=1 << 27,
            metavar="N",
            help="tokens of a shard (default: %(default)s)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Write the shards, and print what they contain."""
        from llama_fast.data import ChatTemplate, ShardWriter, TokenShards

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
        return ExitCode.OK


def encode(
    document: Document, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[list[int], list[bool] | None]:
    """Return the ids of a document, with begin and end, and which of a chat's ids are answers.

    Raises:
        ValueError: `document` is a chat and there is no template, or the reverse.
    """
    if isinstance(document, str):
        if template is not None:
            raise ValueError("--chat-template: expected chats, got a text")
        return tokenizer.encode_document(document), None
    if template is None:
        raise ValueError("--chat-template: expected one for chats, got none")
    ids, answer = template.encode(document, tokenizer)
    begun = tokenizer.prepend_bos(ids)  # as in a prompt
    return begun, [False] * (len(begun) - len(ids)) + answer


def _documents(args: argparse.Namespace) -> Iterator[Document]:
    from llama_fast.data import read_documents

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
    """Return the tokenizer and its index entry; write a new tokenizer to the folder `learned`."""
    from llama_fast._reading import file_sha256
    from llama_fast.models.loading import locate
    from llama_fast.tokenizers import load_tokenizer, tokenizer_file

    if args.train_bpe is not None:
        from llama_fast.tokenizers.train_bpe import train_bpe

        if args.out.exists():
            raise FileExistsError(f"--out: exists already: {args.out}")
        texts = (
            text
            for document in _documents(args)
            for text in ([document] if isinstance(document, str) else _contents(document))
        )
        new = train_bpe(texts, args.train_bpe, learned)
        return new, {"path": "tokenizer", "sha256": file_sha256(learned / "tokenizer.json")}
    if args.tokenizer == "byte":
        return load_tokenizer("byte"), {"path": "byte"}
    path = locate(args.tokenizer, argument="--tokenizer").resolve()
    return load_tokenizer(path), {"path": str(path), "sha256": file_sha256(tokenizer_file(path))}


def _contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message.get("content") or "" for message in messages]


COMMAND = Tokenize()
