"""Decodes tokens to text one by one, up to a stop string and without incomplete characters."""

from __future__ import annotations

from collections.abc import Sequence

from llama_fast.tokenizers import Tokenizer

INCOMPLETE = "\ufffd"  # invalid or incomplete UTF-8 decodes to this
CONTEXT = 8  # number of prompt tokens that the first new token is decoded with


class TextStream:
    """The text that new tokens add to a prompt.

    Args:
        tokenizer: the tokenizer of the model.
        prompt: ids of the prompt; whether the first new SentencePiece token begins with a space
            depends on them.
        stop: the text ends before the first of these strings.

    Attributes:
        text: the text so far, without what is held back.
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._ids = list(prompt[-CONTEXT:])
        self._known = tokenizer.decode(self._ids).rstrip(INCOMPLETE)
        self._whole = len(self._ids)  # number of ids whose text is `_known`
        self._held = ""  # text that may begin a stop string

    def add(self, token: int) -> str:
        """Add a token; return the text that is final now and was not before."""
        if token >= self.tokenizer.vocab_size:  # a padding row of the head: no text
            return ""
        self._ids.append(token)
        decoded = self.tokenizer.decode(self._ids)
        if decoded.endswith(INCOMPLETE):
            return ""
        new = decoded[len(self._known) :]
        # Only the ids of the last complete piece stay as context.
        self._ids = self._ids[self._whole :]
        self._whole, self._known = len(self._ids), self.tokenizer.decode(self._ids)
        return self._take(new)

    def finish(self) -> str:
        """Return the text that was held back, at the end of generation."""
        if self.stopped:
            return ""
        new = self.tokenizer.decode(self._ids)[len(self._known) :]
        final = self._take(new) + self._held
        self.text += self._held
        self._held = ""
        return final

    def _take(self, new: str) -> str:
        text = self._held + new
        starts = [start for s in self.stop if (start := text.find(s)) >= 0]
        if starts:
            self.stopped, final, self._held = True, text[: min(starts)], ""
        else:
            held = max((_overlap(text, s) for s in self.stop), default=0)
            final, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += final
        return final


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
