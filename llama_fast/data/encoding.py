"""Encodes documents as token ids and masks of answers, in several processes."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llama_fast.data.chat import ChatTemplate
from llama_fast.data.rows import DataError, Document, Messages, PromptCompletion
from llama_fast.tokenizers import Tokenizer

BATCH = 1 << 18  # characters sent to another process at a time
ALONE = 1 << 21  # characters encoded before other processes are started, which takes a second


class Encoded(NamedTuple):
    """A document as tokens: ids int64, and for each whether it is a target (None: no mask)."""

    ids: npt.NDArray[np.int64]
    answer: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class _Packed:
    """Documents one after the other: few objects to send between processes.

    Attributes:
        ids, answer: of all documents; uint32, and bool or None.
        ends: the end of each document in them.
    """

    ids: npt.NDArray[np.uint32]
    answer: npt.NDArray[np.bool_] | None
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, documents: list[Encoded]) -> _Packed:
        """Pack documents, all with or all without a mask."""
        ids = np.concatenate([document.ids for document in documents]).astype(np.uint32)
        masks = [document.answer for document in documents if document.answer is not None]
        ends = np.cumsum([len(document.ids) for document in documents])
        return cls(ids, np.concatenate(masks) if masks else None, ends)

    def __iter__(self) -> Iterator[Encoded]:
        ids, begin = self.ids.astype(np.int64), 0
        for end in self.ends.tolist():
            answer = None if self.answer is None else self.answer[begin:end]
            yield Encoded(ids[begin:end], answer)
            begin = end


class Encoder:
    """Turns documents of one kind into tokens.

    Args:
        tokenizer: the tokenizer.
        template: renders chats; None if there is none.
        with_answers: whether the documents are chats, or prompts with answers, of which only the
            answers are targets; else they are texts.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, with_answers: bool
    ) -> None:
        self.tokenizer, self.template, self.with_answers = tokenizer, template, with_answers

    def encode(self, document: Document) -> Encoded:
        """Return the tokens of a document, with begin and end.

        A prompt and its completion as texts become a chat of two messages if there is a template,
        else the text of both, followed by the end of a document.

        Raises:
            ValueError: the document is of the other kind, a chat has no template, or the template
                refuses it.
        """
        if isinstance(document, str):
            if self.with_answers:
                raise ValueError("--chat-template: expected chats, got a text")
            return Encoded(np.asarray(self.tokenizer.encode_document(document)), None)
        if not self.with_answers:
            raise ValueError("expected a text, as before, got a chat")
        if isinstance(document, PromptCompletion):
            ids, answer = self._prompt_completion(document)
        else:
            ids, answer = self._chat(document)
        return Encoded(np.asarray(ids), np.asarray(answer, dtype=np.bool_))

    def _chat(self, messages: Messages) -> tuple[list[int], list[bool]]:
        if self.template is None:
            raise ValueError(
                "--chat-template: expected one for chats, got none, and the tokenizer has none"
            )
        ids, answer = self.template.encode(messages, self.tokenizer)
        begun = self.tokenizer.prepend_bos(ids)  # as in a prompt
        return begun, [False] * (len(begun) - len(ids)) + answer

    def _prompt_completion(self, document: PromptCompletion) -> tuple[list[int], list[bool]]:
        prompt, completion = document
        if isinstance(prompt, str) and isinstance(completion, str):
            if self.template is None:
                # Apart, because a model that answers sees the prompt's tokens as they are alone.
                head = self.tokenizer.encode_document(prompt, end=False)
                tail = self.tokenizer.encode(completion, continues=True)
                end = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
                return [*head, *tail, *end], [False] * len(head) + [True] * len(tail + end)
            question = {"role": "user", "content": prompt}
            return self._chat([question, {"role": "assistant", "content": completion}])
        assert isinstance(prompt, list) and isinstance(completion, list)
        ids, answer = self._chat([*prompt, *completion])
        assert self.template is not None
        # Earlier answers in the prompt are no targets.
        head = self.template.prompt(prompt, self.tokenizer)
        if ids[: len(head)] != head:
            raise ValueError(
                "chat_template: expected one that renders a prompt alike alone and before its "
                "completion"
            )
        return ids, [False] * len(head) + answer[len(head) :]

    def encode_batch(self, batch: list[tuple[str, Document]]) -> list[Encoded]:
        """Return the tokens of documents; errors name the document's place.

        Raises:
            ValueError: see :meth:`encode`.
        """
        result = []
        for place, document in batch:
            try:
                result.append(self.encode(document))
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None
        return result


def encode_all(
    documents: Iterable[tuple[str, Document]], encoder: Encoder, workers: int = 1
) -> Iterator[Encoded]:
    """Yield the tokens of each document, in order, whatever the number of processes.

    Args:
        documents: (place, document) of each; see
            :func:`llama_fast.data.documents.read_placed_documents`.
        encoder: encodes them.
        workers: number of processes that encode. Small data is encoded in this one.

    Raises:
        ValueError: see :meth:`Encoder.encode`; the message names the place.
        RuntimeError: a process ended, for example because memory ran out.
    """
    batches = _batches(documents)
    alone = 0
    for batch in batches:
        yield from encoder.encode_batch(batch)
        alone += sum(_size(document) for _, document in batch)
        if workers > 1 and alone >= ALONE:
            break
    first = list(itertools.islice(batches, 2))
    if len(first) < 2:  # too little for more than one process
        for batch in first:
            yield from encoder.encode_batch(batch)
        return
    yield from _in_processes(itertools.chain(first, batches), encoder, workers)


def _in_processes(
    batches: Iterator[list[tuple[str, Document]]], encoder: Encoder, workers: int
) -> Iterator[Encoded]:
    executor = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),  # fork is unsafe once a library has threads
        initializer=_start_worker,
        initargs=(encoder,),
    )
    waiting: deque[Future[_Packed]] = deque()
    try:
        for batch in itertools.chain(batches, [None] * 2 * workers):
            if batch is not None:
                waiting.append(executor.submit(_encode_in_worker, batch))
            if waiting and (batch is None or len(waiting) == 2 * workers):
                yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise RuntimeError(
            "--workers: a process ended before its work was done (out of memory?); fewer processes "
            "need less"
        ) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


_encoder: Encoder  # of a worker process


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _encode_in_worker(batch: list[tuple[str, Document]]) -> _Packed:
    return _Packed.of(_encoder.encode_batch(batch))


def _batches(
    documents: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    batch: list[tuple[str, Document]] = []
    size = 0
    for item in documents:
        batch.append(item)
        size += _size(item[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(document: Document | Any) -> int:
    """Number of characters in a document."""
    if isinstance(document, str):
        return len(document)
    if isinstance(document, dict):
        return sum(map(_size, document.values()))
    return sum(map(_size, document)) if isinstance(document, list | tuple) else 1
