"""The interface of all tokenizers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice

Span = tuple[int, int]  # (begin, end) in characters

# How Llama 3 splits a text into words before BPE: English contractions; letters after at most one
# other character; one to three digits; punctuation with the line breaks after it; line
# breaks; other white space. Source: github.com/meta-llama/llama-models, models/llama3/tokenizer.py
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Names of control tokens that end a turn, as in llama.cpp: files often do not declare them.
TURN_ENDS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_turn|>", "<|end|>",
)  # fmt: skip

# Characters. No token of a language is longer, and splitting one takes quadratic time.
MAX_TOKEN_LENGTH = 8192
MAX_SPECIAL_CHARACTERS = 1 << 20  # in all control tokens' names, which form one regex
MAX_VOCAB_SIZE = 1 << 24  # a huge id in a file would create a list of that length

# Characters that are in hardly any text: some that are in no word, and letters, never escaped.
PRIVATE_USE = range(0xF0000, 0xFFFFE)
RARE_LETTERS = range(0x20000, 0x2A6D7)  # CJK, extension B


class TokenizerError(ValueError):
    """A tokenizer file is damaged or in an unknown format, or its package is not installed."""


class Tokenizer(ABC):
    """Converts text to token ids and back.

    Attributes:
        vocab_size: number of token ids.
        bos_id, eos_id: ids that begin and end a text, or None. :meth:`encode` adds neither;
            :meth:`encode_prompt` and :meth:`encode_document` do.
        end_ids: ids at which a generated text ends: `eos_id`, control tokens that end a turn
            (``TURN_ENDS``), and others that the model's files name.
        special: name of each control token -> its id, for example ``{"<|im_end|>": 2}``.
        special_pattern: matches these names in a text.
        add_bos: whether the model expects `bos_id` before each text.
        chat_template: Jinja source that renders a chat as text, or None.
    """

    add_bos = False
    chat_template: str | None = None

    def __init__(
        self, vocab_size: int, bos_id: int | None, eos_id: int | None, special: Mapping[str, int]
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.special = dict(special)
        if sum(map(len, self.special)) > MAX_SPECIAL_CHARACTERS:
            raise TokenizerError(
                "tokenizer: expected control tokens whose names have together at most "
                f"{MAX_SPECIAL_CHARACTERS:,} characters, got more"
            )
        longest_first = sorted(self.special, key=len, reverse=True)
        self.special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.end_ids: tuple[int, ...] = ()
        self.add_end_ids(eos_id)
        # Where <|return|> ends a turn, <|end|> separates an answer from its reasoning.
        inner = {"<|end|>"} if "<|return|>" in self.special else set()
        names = [name for name in TURN_ENDS if name in self.special and name not in inner]
        self.add_end_ids([self.special[name] for name in names])

    def add_end_ids(self, ids: int | Sequence[int] | None) -> None:
        """Add one id, several, or none to `end_ids`."""
        more = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
        self.end_ids = tuple(dict.fromkeys((*self.end_ids, *map(int, more))))

    @property
    def bos_token(self) -> str:
        """Name of `bos_id` for templates; empty if there is none."""
        return self._name(self.bos_id)

    @property
    def eos_token(self) -> str:
        """Name of `eos_id` for templates; empty if there is none."""
        return self._name(self.eos_id)

    def _name(self, token: int | None) -> str:
        return next((name for name, i in self.special.items() if i == token), "")

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        """Return the ids of a text, without BOS and EOS.

        Args:
            text: any string; lone surrogates are replaced by U+FFFD.
            special: whether names of control tokens in the text become these tokens. By default
                they are ordinary text, so that a user's input cannot end a turn.
            continues: whether the text continues another one. If not, SentencePiece puts a space
                before it.

        Raises:
            TypeError: ``text`` is not a string.
        """
        text = valid_text(text)
        return self._encode_special(text, continues) if special else self._encode(text, continues)

    def encode_with_offsets(
        self, text: str, *, literal: Sequence[Span] = ()
    ) -> tuple[list[int], list[Span]]:
        """Return the ids of a text in which names of control tokens become these tokens.

        Args:
            text: any string without lone surrogates.
            literal: spans (begin, end) in characters in which such names are ordinary text.

        Returns:
            The ids, and for each its span (begin, end) in `text`. Tokens that share a character,
            such as the bytes of one character, have the same span.
        """
        ids: list[int] = []
        offsets: list[Span] = []

        def add(begin: int, end: int) -> None:
            part_ids, spans = self._encode_with_offsets(text[begin:end])
            ids.extend(part_ids)
            offsets.extend((begin + first, begin + last) for first, last in spans)

        start = 0
        for begin, end in self._special_spans(text, literal):
            add(start, begin)
            ids.append(self.special[text[begin:end]])
            offsets.append((begin, end))
            start = end
        add(start, len(text))
        return ids, offsets

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """Ids that the model expects before each text: `bos_id` if `add_bos` is set, else none."""
        return (self.bos_id,) if self.add_bos and self.bos_id is not None else ()

    def prepend_bos(self, ids: Sequence[int]) -> list[int]:
        """Return `begin_ids` and then the ids; only the ids if they already start with them."""
        head = list(self.begin_ids)
        return list(ids) if list(ids[: len(head)]) == head else [*head, *ids]

    def encode_prompt(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text that a model is to continue, after `begin_ids`.

        For an empty text this is `bos_id`, even if the model does not expect it before other texts.

        Args:
            text, special: see :meth:`encode`.

        Raises:
            ValueError: the text is empty and there is no `bos_id`.
        """
        ids = self.prepend_bos(self.encode(text, special=special))
        if not ids and self.bos_id is not None:
            return [self.bos_id]
        if not ids:
            raise ValueError(
                "prompt: expected a text, because the tokenizer has no BOS token, got ''"
            )
        return ids

    def encode_document(self, text: str, *, end: bool = True) -> list[int]:
        """Return the ids of a training document: `bos_id`, the text, `eos_id`.

        If the tokenizer has these ids they are always added, even if `add_bos` is not set, so that
        documents in one row are separated.

        Args:
            text: see :meth:`encode`.
            end: whether to append `eos_id`.
        """
        first = [] if self.bos_id is None else [self.bos_id]
        last = [self.eos_id] if end and self.eos_id is not None else []
        return [*first, *self.encode(text), *last]

    def _special_spans(self, text: str, literal: Sequence[Span] = ()) -> Iterator[Span]:
        """Yield the spans of control tokens' names, except those that overlap a literal span."""
        position = 0
        spans = sorted(literal)
        # The furthest end among the spans that begin before a position.
        begins, reach = [begin for begin, _ in spans], list(accumulate((e for _, e in spans), max))
        while (match := self.special_pattern.search(text, position)) is not None:
            before = bisect_left(begins, match.end())
            if before and reach[before - 1] > match.start():
                position = match.start() + 1
            else:
                yield match.span()
                position = match.end()

    def _encode_special(self, text: str, continues: bool) -> list[int]:
        """Return the ids of a text in which names of control tokens stand for these tokens."""
        ids: list[int] = []
        start = 0
        for begin, end in self._special_spans(text):
            ids += self._encode(text[start:begin], continues)
            ids.append(self.special[text[begin:end]])
            start, continues = end, False
        return ids + self._encode(text[start:], continues)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without control tokens; invalid UTF-8 becomes U+FFFD.

        Raises:
            IndexError: an id is outside [0, vocab_size).
        """
        ids = [int(i) for i in ids]
        for position, i in enumerate(ids):
            if not 0 <= i < self.vocab_size:
                raise IndexError(
                    f"ids: expected ids in [0, {self.vocab_size}), got {i} at position {position}"
                )
        control = set(self.special.values())
        return self._decode([i for i in ids if i not in control])

    @abstractmethod
    def _encode(self, text: str, continues: bool) -> list[int]: ...

    @abstractmethod
    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


def valid_text(text: str) -> str:
    """Replace lone surrogates in a text by U+FFFD; raise TypeError if it is not a string."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def in_characters(text: str, spans: Sequence[Span]) -> list[Span]:
    """Convert spans of UTF-8 bytes to spans of the characters that they belong to."""
    if text.isascii():
        return list(spans)
    ends = list(accumulate(len(character.encode("utf-8")) for character in text))
    return [
        (bisect_right(ends, begin), bisect_right(ends, end - 1) + 1 if end > begin else
         bisect_right(ends, begin))
        for begin, end in spans
    ]  # fmt: skip


def unused_characters(text: str, count: int, among: Iterable[int] = RARE_LETTERS) -> str:
    """Return `count` characters that do not occur in a text.

    Args:
        text: the text.
        count: number of characters.
        among: code points to choose from.

    Raises:
        TokenizerError: fewer than `count` such characters do not occur in the text.
    """
    unused = "".join(islice((c for c in map(chr, among) if c not in text), count))
    if len(unused) < count:
        raise TokenizerError("text: expected one that does not contain all characters")
    return unused
