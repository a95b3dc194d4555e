"""From tokens to text while they come: whole characters only, and no stop string."""

from __future__ import annotations

from collections.abc import Sequence

from llama_fast.tokenizers import Tokenizer

INCOMPLETE = "\ufffd"  # what bytes that are no UTF-8, or not yet, decode to
CONTEXT = 8  # tokens of the prompt that the first new one is decoded with


class TextStream:
    """The text that new tokens add to a prompt.

    Args:
        tokenizer: that of the model.
        prompt: what comes before; a SentencePiece token begins with a space or not, depending on
            it.
        stop: the text ends before the first of these strings.

    Attributes:
        text: all text so far that is sure to stay.
        stopped: whether a stop string was found.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.text = ""
        self.stopped = False
        self._ids = list(prompt[-CONTEXT:])
        self._known = tokenizer.decode(self._ids).rstrip(INCOMPLETE)
        self._whole = len(self._ids)  # ids whose text is `_known`
        self._held = ""  # may be the beginning of a stop string

    def add(self, token: int) -> str:
        """The text that is sure by one more token: what `text` grew by."""
        if token >= self.tokenizer.vocab_size:  # a row that pads the head stands for no text
            return ""
        self._ids.append(token)
        found = self.tokenizer.decode(self._ids)
        if found.endswith(INCOMPLETE):
            return ""
        new = found[len(self._known) :]
        # Only the last whole piece stays as context.
        self._ids = self._ids[self._whole :]
        self._whole, self._known = len(self._ids), self.tokenizer.decode(self._ids)
        return self._take(new)

    def finish(self) -> str:
        """What was held back, at the end of generation."""
        if self.stopped:
            return ""
        new = self.tokenizer.decode(self._ids)[len(self._known) :]
        sure = self._take(new) + self._held
        self.text += self._held
        self._held = ""
        return sure

    def _take(self, new: str) -> str:
        text = self._held + new
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, sure, self._held = True, text[: min(found)], ""
        else:
            held = max((_overlap(text, s) for s in self.stop), default=0)
            sure, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += sure
        return sure


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, short of all of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
