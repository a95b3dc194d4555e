"""Applies chat templates: turns messages into tokens and marks the tokens of answers.

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

from llama_fast._extras import lacking
from llama_fast.data.rows import DataError, Messages, check_messages
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
    # For models without control tokens for chats.
    "plain": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
}

# Names of control tokens in a chat, where each needs a rendering of its own.
MAX_CONTROL_NAMES = 1000

# Keys under which a message may store its reasoning; most templates read the first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Converts messages to token ids and marks those that belong to an assistant's answer.

    Templates can use the variables and functions that transformers provides: `messages`, `tools`,
    `documents`, `add_generation_prompt`, `bos_token`, `eos_token`; `tojson`, `strftime_now`,
    `raise_exception`, loop controls, ``{% generation %}``.

    The constructor opens no file: a template that comes with a model could be the path of a private
    file. Use :meth:`from_name` for a user's input.

    Args:
        template: a name in ``TEMPLATES``, or Jinja source (anything that contains a ``{``).

    Raises:
        ValueError: `template` is neither, or is not valid Jinja.
        ImportError: jinja2 is not installed.
    """

    def __init__(self, template: str) -> None:
        self._compile(TEMPLATES.get(template, template), f"{', '.join(TEMPLATES)} or Jinja source")

    @classmethod
    def from_name(cls, template: str) -> ChatTemplate:
        """Create a template from a user's input: a name, the path of a file, or Jinja source.

        Args:
            template: a name in ``TEMPLATES``, a path, or Jinja source.

        Raises:
            ValueError: `template` is none of these, or is not valid Jinja.
        """
        if template in TEMPLATES or "{" in template:
            return cls(template)
        if not Path(template).is_file():
            raise ValueError(
                f"chat_template: expected {', '.join(TEMPLATES)}, a file or Jinja source, got "
                f"{template!r}"
            )
        result = cls.__new__(cls)
        result._compile(Path(template).read_text(encoding="utf-8"), f"Jinja source in {template}")
        return result

    @classmethod
    def from_model(cls, source: str) -> ChatTemplate:
        """Create a template from ``tokenizer.chat_template``: Jinja source, never a name or path.

        Raises:
            ValueError: `source` is not valid Jinja.
        """
        result = cls.__new__(cls)
        result._compile(source, "Jinja source from the model")
        return result

    def _compile(self, source: str, expected: str) -> None:
        try:
            from jinja2 import TemplateError, TemplateSyntaxError

            from llama_fast.data.template_process import BoundedTemplate
        except ImportError:
            raise ImportError(lacking("chat templates", "jinja2", "serve")) from None
        if (
            not isinstance(source, str) or "{" not in source
        ):  # a template that does not use it would render no message
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
        """Render a chat as text.

        Args:
            messages: dictionaries with a role and a content, or with tool calls.
            tokenizer: provides `bos_token` and `eos_token` to the template.
            add_generation_prompt: whether to append the text that precedes an answer.
            tools: JSON schemas of functions that the model may call.
            documents: documents that the model may quote.
            **variables: further variables of the template, such as `enable_thinking`.

        Raises:
            DataError: a message lacks its role or content, or the template refuses the chat.
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
        """Convert a chat to token ids and the mask of answers, which are the training targets.

        The text of :meth:`render` is encoded as a whole. The name of a control token becomes that
        token if the template wrote it; in a message, a tool or a document it is plain text.

        An answer is the text in a ``{% generation %}`` block of the template. If the template has
        no such blocks, it is the text that an assistant's message adds to the preceding chat with a
        generation prompt, as far as the text of the whole chat contains it: what the template
        leaves out of earlier turns, such as their reasoning, is not a target. The end of the turn
        belongs to the answer. A token belongs to an answer if any of its characters does.

        Args:
            messages, tokenizer, add_generation_prompt, tools, documents, variables: see
                :meth:`render`.

        Returns:
            (ids, answer): the token ids, and for each of them whether it belongs to an answer.

        Raises:
            DataError: see :meth:`render`; or a role contains a control token, the answers cannot be
                located, or the template treats a control token's name in a message specially.
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
        """Token ids of a chat and a generation prompt: the input for the model's next answer.

        They begin with `bos_id` if the model expects it. Arguments and errors are those of
        :meth:`encode`, except that earlier answers are not located.
        """
        rendering = self._rendering(messages, tokenizer, variables)
        ids, _ = self._ids(rendering, rendering.text(True), True, tokenizer)
        return tokenizer.prepend_bos(ids)

    def continued(self, messages: Messages, tokenizer: Tokenizer, **variables: Any) -> str:
        """Render a chat whose last message is to be continued: without the end of its turn.

        Raises:
            DataError: see :meth:`render`; or the template does not write the last content.
        """
        rendering = self._rendering(messages, tokenizer, variables)
        content = rendering.messages[-1].get("content", "")
        mark = unused_characters(rendering.text(False), 1)
        text = rendering.with_content(len(rendering.messages) - 1, content + mark + " ")
        before, separator, after = text.rpartition(mark)
        if not separator or content.strip() not in before:
            raise DataError(
                "chat_template: expected a template that writes the content of the last message, "
                "which is to be continued; got one that does not"
            )
        return before if after.startswith(" ") else before.rstrip()

    def _rendering(
        self, messages: Messages, tokenizer: Tokenizer, variables: dict[str, Any]
    ) -> Rendering:
        check_messages(messages, "messages")
        for name in ("tools", "documents"):
            for item in variables.get(name) or ():
                if not isinstance(item, dict):
                    raise TypeError(f"{name}: expected dicts, got {type(item).__name__}")
        normalized = [_message(message) for message in map_strings(messages, valid_text)]
        variables = map_strings({"tools": None, "documents": None, **variables}, valid_text)
        return Rendering(normalized, variables, partial(self._run, tokenizer))

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
                raise DataError(
                    f"role: expected a role without control tokens, got {message['role']!r}"
                )
        literal = _literal_spans(rendering, text, prompt, tokenizer.special_pattern)
        return tokenizer.encode_with_offsets(text, literal=literal)


def _literal_spans(
    rendering: Rendering, text: str, prompt: bool, names: re.Pattern[str]
) -> list[Span]:
    """Spans of control token names in a text that come from messages, tools or documents.

    The chat is rendered again with characters of its contents replaced by a mark. If the template
    only writes, cuts or trims contents, the second text differs from the first in the marks only,
    which locate the names. First all characters of messages are replaced. If the template's output
    depends on them, only names of control tokens are replaced, one at a time.
    """
    if names.search(text) is None:
        return []
    mark = unused_characters("".join([text, *rendering.strings]), 1)
    hidden = rendering.map_messages(lambda string: re.sub(r"\S", mark, string))
    hidden = hidden.map(lambda string: names.sub(lambda m: mark * len(m.group()), string))
    other = hidden.text_if_any(prompt)
    if other is not None and _equal_except_marks(text, other, mark):
        return _marked_names(text, other, mark, names)

    occurrences = [name for string in rendering.strings for name in names.findall(string)]
    if len(occurrences) > MAX_CONTROL_NAMES:
        raise DataError(
            f"messages: expected at most {MAX_CONTROL_NAMES} names of control tokens with a "
            f"template whose output depends on contents, got {len(occurrences)}"
        )
    spans: list[Span] = []
    for target, name in enumerate(occurrences):
        indices = count()

        def hide(match: re.Match[str], target: int = target, indices: Any = indices) -> str:
            return mark * len(match.group()) if next(indices) == target else match.group()

        other = rendering.map(partial(names.sub, hide)).text_if_any(prompt)
        if other is not None and _equal_except_marks(text, other, mark):
            spans += _marked_names(text, other, mark, names)
        elif name in text:
            raise DataError(
                "chat_template: expected a template that writes contents unchanged, got one whose "
                f"output depends on {name!r} in a message; it cannot be told whether this is the "
                "control token or text"
            )
    return sorted(set(spans))


def _equal_except_marks(text: str, other: str, mark: str) -> bool:
    if len(text) != len(other):
        return False
    one, two = (np.frombuffer(each.encode("utf-32-le"), np.uint32) for each in (text, other))
    return bool(((one == two) | (two == ord(mark))).all())


def _marked_names(text: str, other: str, mark: str, names: re.Pattern[str]) -> list[Span]:
    """Spans of names in `text` where `other` has marks."""
    spans, position = [], 0
    while (match := names.search(text, position)) is not None:
        if mark in other[match.start() : match.end()]:
            spans.append(match.span())
            position = match.start() + 1
        else:
            position = match.end()
    return spans


def _overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token, whether any of its characters is in a span."""
    if not spans:
        return [False] * len(offsets)
    begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    starts, stops = np.array(sorted(spans), np.int64).T
    reach = np.maximum.accumulate(stops)  # maximum end of the spans up to each
    before = np.searchsorted(starts, ends)  # number of spans that begin before a token's end
    return ((before > 0) & (reach[before - 1] > begins)).tolist()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as transformers passes it to a template: without None, reasoning under all keys."""
    message = {key: value for key, value in message.items() if value is not None}
    text = next((message[key] for key in _REASONING if key in message), None)
    return message if text is None else {"thinking": text, **message, _REASONING[0]: text}


def end_of_turn(template: ChatTemplate, tokenizer: Tokenizer) -> tuple[int | None, str | None]:
    """What a template writes after an answer.

    Returns:
        (id, None): the first control token after the last answer, or after an answer that is
        followed by another turn; or, for a template without, (None, text): the text between an
        answer and the content of the next message, None if there is none.
    """
    turns = [("user", "<1>"), ("assistant", "<2>"), ("user", "<3>")]
    messages = [{"role": role, "content": content} for role, content in turns]
    last = template.render(messages[:2], tokenizer).rpartition("<2>")[2]
    between = template.render(messages, tokenizer).partition("<2>")[2].partition("<3>")[0]
    for text in (last, between):
        match = re.search(tokenizer.special_pattern, text)
        if match is not None:
            return tokenizer.special[match.group()], None
    return None, between.rstrip() or None


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids at which generation stops: the tokenizer's, and the end of a turn in its template.

    If the template is invalid, fails, or cannot run without jinja2, it adds no id.
    """
    end_of_turn_id = None
    if tokenizer.chat_template is not None:
        with suppress(ValueError, ImportError):
            template = ChatTemplate.from_model(tokenizer.chat_template)
            end_of_turn_id, _ = end_of_turn(template, tokenizer)
    if end_of_turn_id is None:
        return tokenizer.end_ids
    return (*dict.fromkeys((*tokenizer.end_ids, end_of_turn_id)),)
