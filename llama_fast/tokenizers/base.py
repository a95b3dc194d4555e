"""What every tokenizer offers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

# How Llama 3 cuts a text into words before BPE: English contractions; letters with at most one
# other character in front; one to three digits; punctuation with the line breaks after it; line
# breaks; other white space. Source: github.com/meta-llama/llama-models, models/llama3/tokenizer.py
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerError(ValueError):
    """A tokenizer file is damaged, of an unknown kind, or its package is not installed."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        vocab_size: number of ids.
        bos_id, eos_id: ids that begin and end a text, or None; :meth:`encode` adds neither.
        end_ids: ids at which a generated text ends: `eos_id`, and others that come with the model.
        special: control tokens by name, for example ``{"<|im_end|>": 2}``.
        special_pattern: finds these names in a text.
        add_bos: whether the model expects `bos_id` before each text.
        chat_template: Jinja source that makes a text of a chat, or None.
    """

    add_bos = False
    chat_template: str | None = None

    def __init__(
        self, vocab_size: int, bos_id: int | None, eos_id: int | None, special: Mapping[str, int]
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids: tuple[int, ...] = () if eos_id is None else (eos_id,)
        self.special = dict(special)
        longest_first = sorted(self.special, key=len, reverse=True)
        self.special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def end_also_at(self, ids: int | Sequence[int] | None) -> None:
        """Add to `end_ids` what a model's files say: one id, several, or none."""
        more = () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)
        self.end_ids = tuple(dict.fromkeys((*self.end_ids, *map(int, more))))

    @property
    def bos_token(self) -> str:
        """Name of `bos_id`, for templates; empty if there is none."""
        return self._name(self.bos_id)

    @property
    def eos_token(self) -> str:
        """Name of `eos_id`, for templates; empty if there is none."""
        return self._name(self.eos_id)

    def _name(self, token: int | None) -> str:
        return next((name for name, i in self.special.items() if i == token), "")

    def encode(self, text: str, *, special: bool = False, continues: bool = False) -> list[int]:
        """Ids of a text, without begin or end.

        Args:
            text: any string; lone surrogates count as U+FFFD.
            special: whether names of control tokens in the text stand for these tokens. By default
                they are text as any other, so that a user's input can't end a turn.
            continues: whether the text goes on after another one. SentencePiece puts a space before
                a text that does not.

        Raises:
            TypeError: ``text`` is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not special:
            return self._encode(text, continues)
        ids: list[int] = []
        start = 0
        for match in self.special_pattern.finditer(text):
            ids += self._encode(text[start : match.start()], continues)
            ids.append(self.special[match.group()])
            start, continues = match.end(), False
        return ids + self._encode(text[start:], continues)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control tokens are left out, bytes that are no UTF-8 become U+FFFD.

        Raises:
            IndexError: an id outside [0, vocab_size).
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
    def _decode(self, ids: list[int]) -> str: ...
