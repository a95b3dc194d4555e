"""E-mail addresses and common kinds of secrets in a text, by their published formats.

A finding is masked: what is kept of a value is at most the part that all of its kind begin with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

EMAIL = "email"
_CARD = "credit card"


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        pattern: finds it; its group "value", where it has one, is the value.
        needs: text without which the pattern can't match; found much faster than the pattern.
        shown: characters at the beginning that say nothing but the kind.
    """

    pattern: re.Pattern[str]
    needs: str = ""
    shown: int = 0


def _kind(pattern: str, needs: str = "", shown: int = 0) -> Kind:
    return Kind(re.compile(pattern), needs, shown)


KINDS = {
    EMAIL: _kind(
        r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@"
        r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])",
        needs="@",
    ),
    "AWS access key": _kind(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])", "IA", 4),
    "GitHub token": _kind(
        r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{82})(?!\w)", "_", 4
    ),
    "Slack token": _kind(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{16,}", "xox", 4),
    "Stripe key": _kind(r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,}(?!\w)", "k_", 8),
    "OpenAI key": _kind(
        r"(?<![\w-])sk-(?:[A-Za-z0-9]{48}|(?:proj|svcacct|admin)-[\w-]{40,})(?![\w-])", "sk-", 3
    ),
    "Anthropic key": _kind(r"(?<![\w-])sk-ant-[\w-]{40,}", "sk-ant-", 7),
    "Hugging Face token": _kind(r"(?<!\w)hf_[A-Za-z0-9]{34,}(?!\w)", "hf_", 3),
    "Google API key": _kind(r"(?<!\w)AIza[\w-]{35}(?![\w-])", "AIza", 4),
    "JSON web token": _kind(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}", "eyJ", 3),
    "private key": _kind(
        r"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY(?: BLOCK)?-----", "PRIVATE KEY", 10
    ),
    # Of Visa, Mastercard, Discover, JCB, Diners Club, American Express (ISO/IEC 7812 prefixes), in
    # one piece or in the groups that stand on the card.
    _CARD: _kind(
        r"(?<![\w.-])(?=4|5[1-5]|2[2-7]|6|3[04-9])"
        r"(?:\d{13,19}|\d{4}(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|\d{4}[ -]\d{6}[ -]\d{4,5})"
        r"(?!\w|[.-]\d)"
    ),
    "password": _kind(
        r"(?i:password|passwd|pwd|secret|api_?key|access_?token|auth_?token)[\"']?\s{0,8}[:=]\s{0,8}"
        r"(?P<quote>[\"'])(?P<value>(?!\*|<|\$|%|\{|your)[^\"'\n]{6,128})(?P=quote)"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A value of one of `KINDS`, masked.

    Attributes:
        kind: its name.
        masked: how it begins, as far as that is no secret, and how long it is.
    """

    kind: str
    masked: str


def find_secrets(text: str) -> Iterator[Finding]:
    """Yield what there is of each kind, one kind after the other."""
    for name, kind in KINDS.items():
        if kind.needs not in text:
            continue
        for match in kind.pattern.finditer(text):
            value = match["value"] if "value" in match.re.groupindex else match[0]
            if name != _CARD or is_card_number(value):
                yield Finding(name, f"{value[: kind.shown]}... ({len(value)} characters)")


def is_card_number(text: str) -> bool:
    """Whether the digits of a text are 13 to 19 and their last is Luhn's check digit.

    Source: ISO/IEC 7812-1, annex B.
    """
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
