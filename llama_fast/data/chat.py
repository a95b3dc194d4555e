"""Chats to tokens: a chat template, and which tokens are answers.

Templates are Jinja, as in the `chat_template` of a Hugging Face tokenizer, run in a sandbox.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from llama_fast.data.documents import DataError, Messages, check_messages
from llama_fast.tokenizers import Tokenizer

# The control tokens that a template writes are tokens; those in a user's text are text. So each
# message's content is put in after the template has run, in the place of a mark.
_MARK = "\ue000{}\ue001"  # private-use characters

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


class ChatTemplate:
    """Turns messages into ids and says which of them are an assistant's answer.

    Args:
        template: a name in ``TEMPLATES``, a file, or Jinja source (it has a ``{``).

    Raises:
        ValueError: neither of these, or Jinja cannot read it.
        ImportError: jinja2 is missing.
    """

    def __init__(self, template: str) -> None:
        try:
            from jinja2 import TemplateSyntaxError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ImportError("chat templates need jinja2: pip install jinja2") from None
        source = TEMPLATES.get(template, template)
        if "{" not in source:
            if not Path(source).is_file():
                raise ValueError(
                    f"chat_template: expected {', '.join(TEMPLATES)}, a file or Jinja source, got "
                    f"{template!r}"
                )
            source = Path(source).read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ValueError(f"chat_template: {error.message} in line {error.lineno}") from None
        self.source = source

    def render(
        self, messages: Messages, tokenizer: Tokenizer, *, add_generation_prompt: bool = False
    ) -> str:
        """The chat as one text, with the tokenizer's names of begin and end.

        Raises:
            DataError: a message without role or content, or one that the template refuses.
        """
        check_messages(messages, "messages")
        return self._run(messages, tokenizer, add_generation_prompt)

    def encode(
        self, messages: Messages, tokenizer: Tokenizer, *, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """(ids, answer): for each token whether an assistant wrote it, its end-of-turn included.

        An answer is what the chat up to it has more than the chat before it with the prompt for an
        answer. Names of control tokens within a message are text.

        Raises:
            DataError: as :meth:`render`; a control token in a role; or the template rewrites
                earlier turns, so that answers cannot be told from the rest.
        """
        check_messages(messages, "messages")
        for message in messages:
            role = message["role"]
            if "\ue000" in role or tokenizer.special_pattern.search(role):
                raise DataError(f"role: expected no control token in it, got {role!r}")
        # Templates strip contents or leave them: what is stripped here is not there to be stripped.
        strips = self._run([{"role": "user", "content": " x "}], tokenizer, False).find(" x ") < 0
        if strips:
            messages = [{**m, "content": m["content"].strip()} for m in messages]
        marked = [
            {**message, "content": _MARK.format(number)} for number, message in enumerate(messages)
        ]
        ids: list[int] = []
        answer: list[bool] = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._run(marked[:number], tokenizer, True)
                done = self._append(ids, answer, done, before, messages, tokenizer, False)
                after = self._run(marked[: number + 1], tokenizer, False)
                done = self._append(ids, answer, done, after, messages, tokenizer, True)
        whole = self._run(marked, tokenizer, add_generation_prompt)
        self._append(ids, answer, done, whole, messages, tokenizer, False)
        return ids, answer

    def _append(
        self,
        ids: list[int],
        answer: list[bool],
        done: str,
        text: str,
        messages: Messages,
        tokenizer: Tokenizer,
        is_answer: bool,
    ) -> str:
        if not text.startswith(done):
            raise DataError(
                "chat_template: expected each turn to add to the text before it, got a template "
                "that rewrites earlier turns; answers cannot be told apart in it"
            )
        behind_text = done != "" and not _ends_in_control_token(done, tokenizer)
        new = _encode(text[len(done) :], messages, tokenizer, behind_text)
        ids += new
        answer += [is_answer] * len(new)
        return text

    def _run(self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
            )
        except TemplateError as error:
            raise DataError(f"chat_template: {error}") from None


def _ends_in_control_token(text: str, tokenizer: Tokenizer) -> bool:
    return any(text.endswith(name) for name in tokenizer.special)


def _encode(text: str, messages: Messages, tokenizer: Tokenizer, behind_text: bool) -> list[int]:
    """Ids of a rendered text, each mark standing for a message's content.

    Text and content without a control token between them are encoded together, as they would be if
    the template had been given the content.
    """
    ids: list[int] = []
    plain = ""
    while text:
        template, mark, text = text.partition("\ue000")
        start = 0
        for match in tokenizer.special_pattern.finditer(template):
            ids += tokenizer.encode(plain + template[start : match.start()], continues=behind_text)
            ids.append(tokenizer.special[match.group()])
            plain, start, behind_text = "", match.end(), False
        plain += template[start:]
        if mark:
            name, _, text = text.partition("\ue001")
            plain += messages[int(name)]["content"]
    return ids + tokenizer.encode(plain, continues=behind_text)


def _refuse(message: Any) -> NoReturn:
    """What templates call ``raise_exception``."""
    from jinja2 import TemplateError

    raise TemplateError(str(message))
