"""Finds the answers of an assistant in the text of a rendered chat."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple

from llama_fast.data.rows import DataError, Messages
from llama_fast.tokenizers.base import Span, unused_characters

# A function from (messages, whether to append a generation prompt, variables) to the text.
RenderFunction = Callable[[Messages, bool, dict[str, Any]], str]


class Rendering(NamedTuple):
    """A chat together with the function that renders it.

    Attributes:
        messages: the messages that are passed to the template.
        variables: further variables of the template.
        render: renders messages and variables; raises DataError if the template refuses them.
    """

    messages: Messages
    variables: dict[str, Any]
    render: RenderFunction

    def text(self, prompt: bool) -> str:
        """Render the chat, with or without a generation prompt."""
        return self.render(self.messages, prompt, self.variables)

    def text_if_any(self, prompt: bool) -> str | None:
        """Render the chat; None if the template refuses it."""
        try:
            return self.text(prompt)
        except DataError:
            return None

    def before(self, count: int) -> Rendering:
        """The chat with its first `count` messages only."""
        return self._replace(messages=self.messages[:count])

    def with_content(self, number: int, content: str, prompt: bool = False) -> str:
        """Render with the content of a message replaced; for a tool call, its last string."""
        message = self.messages[number]
        changed = {**message, "content": content}
        if not message.get("content") and message.get("tool_calls"):
            calls, _ = _with_last_string(message["tool_calls"], content)
            changed = {**message, "tool_calls": calls}
        messages = [*self.messages[:number], changed, *self.messages[number + 1 :]]
        return self.render(messages, prompt, self.variables)

    def map(self, change: Callable[[str], str]) -> Rendering:
        """The chat with `change` applied to every string except roles."""
        messages = [
            {**map_strings(message, change), "role": message["role"]} for message in self.messages
        ]
        return self._replace(messages=messages, variables=map_strings(self.variables, change))

    def map_messages(self, change: Callable[[str], str]) -> Rendering:
        """The chat with `change` applied to every string in messages except roles and keys."""
        messages = [
            {k: v if k == "role" else map_strings(v, change, keys=False) for k, v in each.items()}
            for each in self.messages
        ]
        return self._replace(messages=messages)

    @property
    def strings(self) -> list[str]:
        """All strings of the chat, in the order in which :meth:`map` visits them."""
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
    """A copy of a JSON value with `change` applied to every string, and to keys if `keys`."""
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
    """(a copy with the last string replaced by `text`, whether there was a string)."""
    if isinstance(value, str):
        return text, True
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value or ()))
    for key, item in reversed(items) if isinstance(value, (dict, list)) else ():
        changed, is_replaced = _with_last_string(item, text)
        if is_replaced:
            whole = dict(items) | {key: changed}
            return (whole if isinstance(value, dict) else list(whole.values())), True
    return value, False


def marked_spans(rendering: Rendering, text: str, prompt: bool) -> list[Span]:
    """Spans that a template writes in ``{% generation %}`` blocks.

    Args:
        rendering: the chat.
        text: text of the chat.
        prompt: whether `text` ends with a generation prompt.

    Raises:
        DataError: the template changes a block's text after the block.
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
            "chat_template: expected {% generation %} blocks that are written unchanged, got a "
            "template that changes a block's text after the block"
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
    """Spans that each assistant's message adds to the preceding chat with a generation prompt.

    Args:
        rendering: the chat.
        text: text of the chat.
        prompt: whether `text` ends with a generation prompt.
        names: matches names of control tokens; no span begins or ends within one.

    Raises:
        DataError: the added text cannot be located in `text`.
    """
    mark = unused_characters("".join([text, *rendering.strings]), 1)
    spans = []
    for number, message in enumerate(rendering.messages):
        if message["role"] == "assistant":
            span = _appended_span(rendering, text, number)
            spans.append(span or _span_of_content(rendering, text, prompt, number, mark, names))
    return spans


def _appended_span(rendering: Rendering, text: str, number: int) -> Span | None:
    """Span of a message for a template that appends each turn to the text before it."""
    after = rendering.before(number + 1).text(False)
    if not text.startswith(after):
        return None
    before = rendering.before(number).text_if_any(True)  # some require a user message first
    if before is None or not after.startswith(before):
        return None
    return len(before), len(after)


def _span_of_content(
    rendering: Rendering, text: str, prompt: bool, number: int, mark: str, names: re.Pattern[str]
) -> Span:
    """Span of a message for a template that writes a turn differently if others follow.

    The content is replaced by a mark and the chat rendered again: what follows the mark also
    follows the content in `text`.
    """

    def text_after(chat: Rendering, index: int, prompt: bool) -> str | None:
        _, separator, after = chat.with_content(index, mark, prompt).rpartition(mark)
        return after if separator else None

    rest = text_after(rendering, number, prompt)
    end_of_turn = text_after(rendering.before(number + 1), number, False)
    if rest is None or end_of_turn is None or not text.endswith(rest):
        raise DataError(
            "chat_template: expected a template whose output after an answer does not depend on "
            f"it, so that answers can be located; got another for message {number}"
        )
    content_end = len(text) - len(rest)
    common = _common_prefix(end_of_turn, rest)
    for match in names.finditer(rest):
        if match.start() < common < match.end():
            common = match.start()
    marked = rendering.with_content(number, mark, prompt)
    content_begin = marked.index(mark)
    if text[:content_begin] != marked[:content_begin]:
        content_begin = content_end  # the text before the content depends on it
    # The answer begins where the generation prompt ends, after the last content that is written.
    start, expected = 0, None
    for earlier in reversed(range(number)):
        rest = text_after(rendering, earlier, prompt)
        if rest is not None and text.endswith(rest):
            start = len(text) - len(rest)
            expected = text_after(rendering.before(number), earlier, True)
            break
    if expected is None:
        expected = rendering.before(number).text_if_any(True)
        if expected is None:
            return content_begin, content_end + common
    shared = start + _common_prefix(expected, text[start:])
    begin = shared if shared == start + len(expected) else min(shared, content_begin)
    return min(begin, content_end), content_end + common


def _common_prefix(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
