"""Which characters of a rendered chat an assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from llama_fast.data.documents import DataError, Messages
from llama_fast.tokenizers.base import Span, unused_characters

Run = Callable[[Messages, bool, dict[str, Any]], str]


class Rendering(NamedTuple):
    """A chat and the template that makes a text of it.

    Attributes:
        messages: as the template sees them.
        variables: what it sees beside them.
        run: (messages, whether a prompt for an answer ends the text, variables) to the text.
    """

    messages: Messages
    variables: dict[str, Any]
    run: Run

    def text(self, prompt: bool) -> str:
        """The chat as one text, with or without a prompt for an answer at the end."""
        return self.run(self.messages, prompt, self.variables)

    def text_if_any(self, prompt: bool) -> str | None:
        """The same; None where the template refuses the chat."""
        try:
            return self.text(prompt)
        except DataError:
            return None

    def before(self, count: int) -> Rendering:
        """The first messages alone."""
        return self._replace(messages=self.messages[:count])

    def with_content(self, number: int, content: str, prompt: bool = False) -> str:
        """The text with another content of a message; of a call of tools, with another string."""
        message = self.messages[number]
        changed = {**message, "content": content}
        if not message.get("content") and message.get("tool_calls"):
            calls, _ = _with_last_string(message["tool_calls"], content)
            changed = {**message, "tool_calls": calls}
        messages = [*self.messages[:number], changed, *self.messages[number + 1 :]]
        return self.run(messages, prompt, self.variables)

    def map(self, change: Callable[[str], str]) -> Rendering:
        """The chat with every string that is no role changed."""
        messages = [
            {**map_strings(message, change), "role": message["role"]} for message in self.messages
        ]
        return self._replace(messages=messages, variables=map_strings(self.variables, change))

    def map_messages(self, change: Callable[[str], str]) -> Rendering:
        """The chat with every text of a message changed, roles and names of fields left out."""
        messages = [
            {k: v if k == "role" else map_strings(v, change, keys=False) for k, v in each.items()}
            for each in self.messages
        ]
        return self._replace(messages=messages)

    @property
    def strings(self) -> list[str]:
        """All strings of the chat, in the order of :meth:`map`."""
        return [*_strings_in(self.messages), *_strings_in(self.variables)]


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _strings_in(pair)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings_in(item)


def map_strings(value: Any, change: Callable[[str], str], keys: bool = True) -> Any:
    """A copy of what JSON may hold, with every string in it changed, by default keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {
            change(k) if keys and isinstance(k, str) else k: map_strings(v, change, keys)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [map_strings(item, change, keys) for item in value]
    return value


def _with_last_string(value: Any, text: str) -> tuple[Any, bool]:
    """With another text for the last string in it; whether there was one."""
    if isinstance(value, str):
        return text, True
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value or ()))
    for key, item in reversed(items) if isinstance(value, (dict, list)) else ():
        changed, found = _with_last_string(item, text)
        if found:
            whole = dict(items) | {key: changed}
            return (whole if isinstance(value, dict) else list(whole.values())), True
    return value, False


def marked_spans(rendering: Rendering, text: str, prompt: bool) -> list[Span]:
    """What a template writes within ``{% generation %}``.

    Raises:
        DataError: the template changes a block's text behind it.
    """
    from llama_fast.data.template_language import generation_marks

    marks = unused_characters("".join([text, *rendering.strings]), 2)
    reset = generation_marks.set(marks)
    try:
        pieces = re.split(f"([{marks}])", rendering.text(prompt))
    finally:
        generation_marks.reset(reset)
    if "".join(pieces[::2]) != text:
        raise DataError(
            "chat_template: expected {% generation %} around what is written, got a template that "
            "changes the block's text afterwards"
        )
    edges = list(accumulate(map(len, pieces[::2])))
    spans: list[Span] = []
    depth = start = 0
    for edge, mark in zip(edges, pieces[1::2], strict=False):
        depth += 1 if mark == marks[0] else -1
        if depth == 1 and mark == marks[0]:
            start = edge
        elif depth == 0:
            spans.append((start, edge))
    return spans


def answers_by_comparison(
    rendering: Rendering, text: str, prompt: bool, names: re.Pattern[str]
) -> list[Span]:
    """What each assistant's message adds to the chat before it with a prompt for an answer.

    Args:
        rendering: the chat.
        text: of the whole chat.
        prompt: whether a prompt for an answer ends `text`.
        names: finds names of control tokens, none of which is cut in two.

    Raises:
        DataError: it cannot be found in the text of the whole chat.
    """
    mark = unused_characters("".join([text, *rendering.strings]), 1)
    spans = []
    for number, message in enumerate(rendering.messages):
        if message["role"] == "assistant":
            found = _as_it_grows(rendering, text, number)
            spans.append(found or _by_its_content(rendering, text, prompt, number, mark, names))
    return spans


def _as_it_grows(rendering: Rendering, text: str, number: int) -> Span | None:
    """For a template that adds each turn to the text before it."""
    after = rendering.before(number + 1).text(False)
    if not text.startswith(after):
        return None
    before = rendering.before(number).text_if_any(True)  # some want a message of the user first
    if before is None or not after.startswith(before):
        return None
    return len(before), len(after)


def _by_its_content(
    rendering: Rendering, text: str, prompt: bool, number: int, mark: str, names: re.Pattern[str]
) -> Span:
    """For a template that writes a turn in another way when others follow.

    A content's end is where the text goes on as it does behind a mark in the content's place.
    """

    def behind(chat: Rendering, which: int, prompt: bool) -> str | None:
        found = chat.with_content(which, mark, prompt).rpartition(mark)
        return found[2] if found[1] else None

    rest = behind(rendering, number, prompt)
    end_of_turn = behind(rendering.before(number + 1), number, False)
    if rest is None or end_of_turn is None or not text.endswith(rest):
        raise DataError(
            "chat_template: expected one that writes each answer's content and then what does not "
            f"depend on it, so that answers can be told apart; got another for message {number}"
        )
    content_end = len(text) - len(rest)
    common = _common(end_of_turn, rest)
    for match in names.finditer(rest):
        if match.start() < common < match.end():
            common = match.start()
    marked = rendering.with_content(number, mark, prompt)
    content_begin = marked.index(mark)
    if text[:content_begin] != marked[:content_begin]:
        content_begin = content_end  # the content decides on what is before it
    # The answer begins where the prompt for one ends, behind the last content that is written.
    start, expected = 0, None
    for earlier in reversed(range(number)):
        rest = behind(rendering, earlier, prompt)
        if rest is not None and text.endswith(rest):
            start = len(text) - len(rest)
            expected = behind(rendering.before(number), earlier, True)
            break
    if expected is None:
        expected = rendering.before(number).text_if_any(True)
        if expected is None:
            return content_begin, content_end + common
    shared = start + _common(expected, text[start:])
    begin = shared if shared == start + len(expected) else min(shared, content_begin)
    return min(begin, content_end), content_end + common


def _common(one: str, other: str) -> int:
    """Length of what two texts begin with in common."""
    both = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))
