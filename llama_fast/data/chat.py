"""Chats to tokens: a chat template, and which tokens are answers.

Templates are Jinja, as in the `chat_template` of a Hugging Face tokenizer, run in a sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from llama_fast.data.documents import DataError, Messages, check_messages
from llama_fast.data.turns import (
    Rendering,
    answers_by_comparison,
    map_strings,
    marked_spans,
)
from llama_fast.tokenizers import Tokenizer
from llama_fast.tokenizers.base import Span, unused_characters, valid_text

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    # github.com/meta-llama/llama-models: models/llama3/prompt_format.md
    "llama3": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
        "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # For models without control tokens of their own.
    "plain": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
}

MOST_NAMES = 1000  # of control tokens in a chat, where each has to be looked at by itself

# Names that a message's reasoning comes under; the first is what most templates read.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Turns messages into ids and says which of them are an assistant's answer.

    A template sees the messages as they are, and what transformers shows it: `messages`, `tools`,
    `documents`, `add_generation_prompt`, `bos_token`, `eos_token`; `tojson`, `strftime_now`,
    `raise_exception`, loop controls, ``{% generation %}``.

    No file is opened here: a model's own template may say anything, the path of a private file too.
    What a person types goes through :meth:`chosen`.

    Args:
        template: a name in ``TEMPLATES``, or Jinja source (it has a ``{``).

    Raises:
        ValueError: neither of these, or Jinja cannot read it.
        ImportError: jinja2 is missing.
    """

    def __init__(self, template: str) -> None:
        self._compile(TEMPLATES.get(template, template), f"{', '.join(TEMPLATES)} or Jinja source")

    @classmethod
    def chosen(cls, template: str) -> ChatTemplate:
        """The template that a person names: one of ``TEMPLATES``, a file, or Jinja source.

        Raises:
            ValueError: none of these, or Jinja cannot read it.
        """
        if template in TEMPLATES or "{" in template:
            return cls(template)
        if not Path(template).is_file():
            raise ValueError(
                f"chat_template: expected {', '.join(TEMPLATES)}, a file or Jinja source, got "
                f"{template!r}"
            )
        found = cls.__new__(cls)
        found._compile(Path(template).read_text(encoding="utf-8"), f"Jinja source in {template}")
        return found

    @classmethod
    def of_model(cls, source: str) -> ChatTemplate:
        """A model's own template (``tokenizer.chat_template``): source, never a name or a path.

        Raises:
            ValueError: Jinja cannot read it.
        """
        found = cls.__new__(cls)
        found._compile(source, "Jinja source from the model")
        return found

    def _compile(self, source: str, expected: str) -> None:
        try:
            from jinja2 import TemplateError, TemplateSyntaxError

            from llama_fast.data.template_process import BoundedTemplate
        except ImportError:
            raise ImportError("chat templates need jinja2: pip install jinja2") from None
        if not isinstance(source, str) or "{" not in source:  # it would show no message
            raise ValueError(f"chat_template: expected {expected}, got {source!r:.80}")
        try:
            self._template = BoundedTemplate(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"chat_template: {error.message} in line {error.lineno}") from None
        except TemplateError as error:
            raise ValueError(f"chat_template: {error}") from None
        self.source = source
        self._marks_answers = self._template.marks_answers

    def render(
        self,
        messages: Messages,
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The chat as one text, with the tokenizer's names of begin and end.

        Args:
            messages: each with a role and a content, or with tool calls.
            tokenizer: whose `bos_token` and `eos_token` the template writes.
            add_generation_prompt: whether what comes before an answer is put at the end.
            tools: JSON schemas of functions that the model may call.
            documents: what the model may quote from.
            **variables: others that the template reads, such as `enable_thinking`.

        Raises:
            DataError: a message without role or content, or one that the template refuses.
        """
        given = {"tools": tools, "documents": documents, **variables}
        return self._rendering(messages, tokenizer, given).text(add_generation_prompt)

    def encode(
        self,
        messages: Messages,
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> tuple[list[int], list[bool]]:
        """(ids, answer): for each token whether an assistant wrote it, its end-of-turn included.

        The ids are those of :meth:`render`'s text, encoded as a whole. Names of control tokens in
        it stand for these where the template wrote them; those within a message, a tool or a
        document are text. An answer is what the template has within ``{% generation %}``; or,
        where it has no such blocks, what the chat up to an assistant's message has more than the
        chat before it with the prompt for an answer, looked up in the text of the whole chat: what
        the template leaves out of earlier turns, such as their reasoning, is not learned. A token
        is an answer's if any of its characters is.

        Args: those of :meth:`render`.

        Raises:
            DataError: as :meth:`render`; a control token in a role; answers cannot be told from
                the rest; or the template takes a control token's name in a message for more than
                text.
        """
        given = {"tools": tools, "documents": documents, **variables}
        rendering = self._rendering(messages, tokenizer, given)
        text = rendering.text(add_generation_prompt)
        ids, offsets = self._ids(rendering, text, add_generation_prompt, tokenizer)
        if self._marks_answers:
            spans = marked_spans(rendering, text, add_generation_prompt)
        else:
            spans = answers_by_comparison(
                rendering, text, add_generation_prompt, tokenizer.special_pattern
            )
        return ids, _overlaps(offsets, spans)

    def prompt(self, messages: Messages, tokenizer: Tokenizer, **variables: Any) -> list[int]:
        """Ids of a chat up to the answer that a model is to write, as :meth:`encode` has them.

        With `bos_id` in front where the model expects it. Args and errors: those of :meth:`encode`,
        but the answers before need not be told apart.
        """
        rendering = self._rendering(messages, tokenizer, variables)
        ids, _ = self._ids(rendering, rendering.text(True), True, tokenizer)
        return tokenizer.begin(ids)

    def continued(self, messages: Messages, tokenizer: Tokenizer, **variables: Any) -> str:
        """The text of a chat whose last message goes on, so that nothing closes its turn.

        Raises:
            DataError: as :meth:`render`, or the template does not write the last content.
        """
        rendering = self._rendering(messages, tokenizer, variables)
        content = rendering.messages[-1].get("content", "")
        mark = unused_characters(rendering.text(False), 1)
        text = rendering.with_content(len(rendering.messages) - 1, content + mark + " ")
        before, found, behind = text.rpartition(mark)
        if not found or content.strip() not in before:
            raise DataError(
                "chat_template: expected one that writes the last message's content, which is to "
                "go on; got one that does not"
            )
        return before if behind.startswith(" ") else before.rstrip()

    def _rendering(
        self, messages: Messages, tokenizer: Tokenizer, variables: dict[str, Any]
    ) -> Rendering:
        check_messages(messages, "messages")
        for name in ("tools", "documents"):
            for item in variables.get(name) or ():
                if not isinstance(item, dict):
                    raise TypeError(f"{name}: expected dicts, got {type(item).__name__}")
        shown = [_message(message) for message in map_strings(messages, valid_text)]
        variables = map_strings({"tools": None, "documents": None, **variables}, valid_text)
        return Rendering(shown, variables, partial(self._run, tokenizer))

    def _run(
        self, tokenizer: Tokenizer, messages: Messages, prompt: bool, variables: dict[str, Any]
    ) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(
                {
                    "messages": messages,
                    "add_generation_prompt": prompt,
                    "bos_token": tokenizer.bos_token,
                    "eos_token": tokenizer.eos_token,
                    **variables,
                }
            )
        except TemplateError as error:
            raise DataError(f"chat_template: {error}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise DataError(f"chat_template: {type(error).__name__}: {error}") from None

    def _ids(
        self, rendering: Rendering, text: str, prompt: bool, tokenizer: Tokenizer
    ) -> tuple[list[int], list[Span]]:
        for message in rendering.messages:
            if tokenizer.special_pattern.search(message["role"]):
                raise DataError(f"role: expected no control token in it, got {message['role']!r}")
        literal = _literal_spans(rendering, text, prompt, tokenizer.special_pattern)
        return tokenizer.encode_with_offsets(text, literal=literal)


def _literal_spans(
    rendering: Rendering, text: str, prompt: bool, names: re.Pattern[str]
) -> list[Span]:
    """Where a text has names of control tokens that come from messages, tools or documents.

    In a second rendering other characters stand in place of theirs, as many. A template that only
    writes contents, cuts or trims them, then gives the same text but for these. First for all
    characters of messages; where a template looks at these, for control tokens' names alone.
    """
    if names.search(text) is None:
        return []
    mark = unused_characters("".join([text, *rendering.strings]), 1)
    hidden = rendering.map_messages(lambda string: re.sub(r"\S", mark, string))
    hidden = hidden.map(lambda string: names.sub(lambda m: mark * len(m.group()), string))
    other = hidden.text_if_any(prompt)
    if other is not None and _same_but_marks(text, other, mark):
        return _touched(text, other, mark, names)

    found = [name for string in rendering.strings for name in names.findall(string)]
    if len(found) > MOST_NAMES:  # each takes a rendering
        raise DataError(
            f"messages: expected at most {MOST_NAMES} names of control tokens in a chat whose "
            f"template looks at contents, got {len(found)}"
        )
    spans: list[Span] = []
    for chosen, name in enumerate(found):  # one after the other: which of them changes the text?
        numbers = count()

        def hide(match: re.Match[str], chosen: int = chosen, numbers: Any = numbers) -> str:
            return mark * len(match.group()) if next(numbers) == chosen else match.group()

        other = rendering.map(partial(names.sub, hide)).text_if_any(prompt)
        if other is not None and _same_but_marks(text, other, mark):
            spans += _touched(text, other, mark, names)
        elif name in text:
            raise DataError(
                f"chat_template: expected one that writes contents as text, got one that looks for "
                f"{name!r} in a message; whether the text has it as a control token cannot be told"
            )
    return sorted(set(spans))


def _same_but_marks(text: str, other: str, mark: str) -> bool:
    if len(text) != len(other):
        return False
    one, two = (np.frombuffer(each.encode("utf-32-le"), np.uint32) for each in (text, other))
    return bool(((one == two) | (two == ord(mark))).all())


def _touched(text: str, other: str, mark: str, names: re.Pattern[str]) -> list[Span]:
    """Names in a text that have marks in the other."""
    spans, position = [], 0
    while (match := names.search(text, position)) is not None:
        if mark in other[match.start() : match.end()]:
            spans.append(match.span())
            position = match.start() + 1
        else:
            position = match.end()
    return spans


def _overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token whether a span has any of its characters."""
    if not spans:
        return [False] * len(offsets)
    begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    starts, stops = np.array(sorted(spans), np.int64).T
    reach = np.maximum.accumulate(stops)  # of the spans up to each, how far the farthest goes
    before = np.searchsorted(starts, ends)  # spans that begin before a token's end
    return ((before > 0) & (reach[before - 1] > begins)).tolist()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """As transformers shows it: without what is None, and its reasoning by all of its names."""
    message = {key: value for key, value in message.items() if value is not None}
    said = next((message[key] for key in _REASONING if key in message), None)
    return message if said is None else {"thinking": said, **message, _REASONING[0]: said}


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """What a template writes behind an answer: a control token, or else text before the next turn.

    The token is the first behind the last answer, or behind one that another turn follows. A text
    is cut where the next message's content would be.
    """
    turns = [("user", "<1>"), ("assistant", "<2>"), ("user", "<3>")]
    messages = [{"role": role, "content": content} for role, content in turns]
    last = template.render(messages[:2], tokenizer).rpartition("<2>")[2]
    between = template.render(messages, tokenizer).partition("<2>")[2].partition("<3>")[0]
    for text in (last, between):
        found = re.search(tokenizer.special_pattern, text)
        if found is not None:
            return tokenizer.special[found.group()], None
    return None, between.rstrip() or None


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids at which a generated text ends: the tokenizer's, and that of its template's turns.

    A template that cannot be read or run, for want of jinja2 too, adds none.
    """
    found = None
    if tokenizer.chat_template is not None:
        with suppress(ValueError, ImportError):
            found, _ = end_of_turn(ChatTemplate.of_model(tokenizer.chat_template), tokenizer)
    return tokenizer.end_ids if found is None else (*dict.fromkeys((*tokenizer.end_ids, found)),)
