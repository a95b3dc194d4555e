"""Turns a row of a data set into a document, by the field names that data sets commonly have.

| fields                                   | known from            | document                  |
|------------------------------------------|-----------------------|---------------------------|
| the field that the user names (`text`)   |                       | a text, or a chat         |
| `messages`                               | OpenAI, TRL           | a chat                    |
| `conversations` (`from` and `value`)     | ShareGPT, FastChat    | a chat                    |
| `prompt`, `completion`                   | TRL, OpenAI           | a prompt and its answer   |
| `instruction`, `input`, `output`         | Alpaca                | a chat of two messages    |
| `instruction`, `context`, `response`     | Dolly                 | a chat of two messages    |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# The messages of a chat, each with "role" and "content".
Messages = list[dict[str, Any]]


class PromptCompletion(NamedTuple):
    """A prompt and the answer to learn: two texts, or two lists of messages."""

    prompt: str | Messages
    completion: str | Messages


# A document: a text, a chat, or a prompt with its answer.
Document = str | Messages | PromptCompletion

# ShareGPT's names of roles, and those of the tools that write its format.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


class DataError(ValueError):
    """Training data cannot be read; the message names the file and the line or row."""


def document_of(row: Mapping[str, Any], key: str, where: str) -> Document:
    """Return the document in a row; see the table in this module.

    Args:
        row: field -> value.
        key: the field that the user names; it comes before the others.
        where: prefix of the error message, such as the file and the line.

    Raises:
        DataError: the row has none of the forms, or a field has another type.
    """
    if key in row:
        return _text_or_chat(row[key], repr(key), where)
    if "messages" in row:
        return _chat(row["messages"], "'messages'", where)
    for name in ("conversations", "conversation"):
        if name in row:
            return [*_system(row, where), *_chat(row[name], repr(name), where)]
    if "prompt" in row and "completion" in row:
        return _prompt_completion(row, where)
    for answer in ("output", "response"):
        if "instruction" in row and answer in row:
            return _instruction(row, answer, where)
    raise DataError(
        f"{where}: expected a field {key!r}, or messages, conversations, prompt and completion, or "
        f"instruction and output, got {', '.join(map(str, row)) or 'none'}"
    )


def check_messages(messages: list[Any], where: str) -> None:
    """Check that each message has a role and a content, both strings.

    A message with "tool_calls" may lack the content.

    Args:
        messages: the messages of a chat.
        where: prefix of the error message, such as the file and the row.

    Raises:
        DataError: a message lacks its role or content.
    """
    for number, message in enumerate(messages):
        fields = message if isinstance(message, dict) else {}
        content = fields.get("content")
        if content is None and fields.get("tool_calls"):
            content = ""
        if not (isinstance(fields.get("role"), str) and isinstance(content, str)):
            raise DataError(
                f"{where}: expected message {number} to have strings 'role' and 'content', got "
                f"{message!r:.80}"
            )


def _kind(value: Any) -> str:
    """The type of a value as JSON calls it."""
    names = {bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    number = "a number" if isinstance(value, int | float) else type(value).__name__
    return "null" if value is None else names.get(type(value), number)


def _text_or_chat(value: Any, name: str, where: str) -> str | Messages:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return _chat(value, name, where)
    raise DataError(
        f"{where}: expected a string or a list of messages in {name}, got {_kind(value)}"
    )


def _chat(value: Any, name: str, where: str) -> Messages:
    """Messages with role and content, from these or from ShareGPT's `from` and `value`."""
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list of messages in {name}, got {_kind(value)}")
    messages = [
        _from_sharegpt(message, f"{where}: expected message {number}")
        if isinstance(message, dict) and "from" in message and "role" not in message
        else message
        for number, message in enumerate(value)
    ]
    check_messages(messages, where)
    return messages


def _from_sharegpt(message: dict[str, Any], expected: str) -> dict[str, Any]:
    name, value = message["from"], message.get("value")
    if not isinstance(name, str) or name.lower() not in _ROLES:
        raise DataError(f"{expected} to be from {', '.join(_ROLES)}, got {name!r:.80}")
    if not isinstance(value, str):
        raise DataError(f"{expected} to have a string 'value', got {value!r:.80}")
    return {"role": _ROLES[name.lower()], "content": value}


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    """The string in a field; empty if there is no such field or it holds None."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: expected a string in {name!r}, got {_kind(value)}")
    return value or ""


def _system(row: Mapping[str, Any], where: str) -> Messages:
    text = _string(row, "system", where)
    return [{"role": "system", "content": text}] if text.strip() else []


def _prompt_completion(row: Mapping[str, Any], where: str) -> PromptCompletion:
    prompt, completion = (_text_or_chat(row[n], repr(n), where) for n in ("prompt", "completion"))
    if isinstance(prompt, str) != isinstance(completion, str):
        raise DataError(
            f"{where}: expected strings or lists of messages in both 'prompt' and 'completion', "
            f"got {_kind(prompt)} and {_kind(completion)}"
        )
    if not prompt or not completion:
        empty = "completion" if prompt else "prompt"
        raise DataError(f"{where}: expected a text or messages in {empty!r}, got an empty one")
    return PromptCompletion(prompt, completion)


def _instruction(row: Mapping[str, Any], answer: str, where: str) -> Messages:
    parts = [_string(row, name, where) for name in ("instruction", "input", "context")]
    question = "\n\n".join(part for part in parts if part.strip())
    if not question:
        raise DataError(f"{where}: expected a text in 'instruction', got an empty one")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        for pair in history
    ):
        raise DataError(f"{where}: expected pairs of strings in 'history', got {history!r:.80}")
    turns = [*(text for pair in history for text in pair), question, _string(row, answer, where)]
    roles = ("user", "assistant")
    chat = [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    return [*_system(row, where), *chat]
