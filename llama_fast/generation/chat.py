"""Prompts for the next answer in a chat, and where the answer ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_fast.data.chat import ChatTemplate, end_ids, end_of_turn

if TYPE_CHECKING:
    from llama_fast.data.rows import Messages
    from llama_fast.tokenizers import Tokenizer


class ChatFormat:
    """How a model is asked for its next answer in a chat.

    Args:
        tokenizer: the tokenizer of the model.
        chat_template: a name (chatml, llama3, plain), a file, or Jinja source; None uses the
            template that comes with the model.

    Attributes:
        stop: an answer ends before one of these strings.
        stop_ids: an answer ends at one of these tokens.

    Raises:
        ValueError: there is no template, or it is not valid.
        ImportError: jinja2 is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        if chat_template is not None:
            self._template = ChatTemplate.from_name(chat_template)
        elif tokenizer.chat_template is not None:
            self._template = ChatTemplate.from_model(tokenizer.chat_template)
        else:
            raise ValueError(
                "chat_template: expected chatml, llama3, plain or a file, because the model has no "
                "template of its own"
            )
        self._tokenizer = tokenizer
        end, text = end_of_turn(self._template, tokenizer)
        self.stop = () if text is None else (text,)
        self.stop_ids = (*end_ids(tokenizer), *(() if end is None else (end,)))

    def prompt(self, messages: Messages) -> list[int]:
        """Return the tokens of a chat and of the text that precedes the next answer.

        Raises:
            DataError: the template refuses the chat.
        """
        return self._template.prompt(messages, self._tokenizer)
