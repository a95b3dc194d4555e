"""Finds e-mail addresses and common kinds of secrets in a text by their published formats.

Findings are masked: only the prefix that all values of a kind share is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

EMAIL = "email"

# What a value is assigned to, in any case and with any prefix, such as DB_PASSWORD.
_NAMES = (
    r"(?i:password|passwd|passphrase|pwd|secret|api[_-]?key|access[_-]?key|secret[_-]?key|"
    r"access[_-]?token|auth[_-]?token)"
)
# A word without quotes, its last character no full stop; no call, index or template follows.
_WORD = r"[\w!#$%&*+./=?@^~-]{7,127}[\w!#$%&*+/=?@^~-](?![\w(\[{])"


@dataclass(frozen=True)
class SecretPattern:
    """Describes how values of one kind are found and masked.

    Attributes:
        pattern: matches a value; if it has a group "value", that group is the value.
        needs: a string that every match contains; searching for it first is much faster.
        shown: length of the prefix that all values of the kind share.
        accepts: tells a value from what only looks like one.
    """

    pattern: re.Pattern[str]
    needs: str = ""
    shown: int = 0
    accepts: Callable[[str], bool] = bool


def is_card_number(text: str) -> bool:
    """Whether a text has 13 to 19 digits and the last is the Luhn check digit of the others.

    Source: ISO/IEC 7812-1, annex B.
    """
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_mixed(word: str) -> bool:
    """Whether a word without quotes is a password rather than a word or a name in a program.

    It has letters and digits, or a sign between letters, and is no variable (`$HOME_2`), no
    attribute (`config.token_v2`) and no placeholder.
    """
    if re.match(r"[$%*]|your|[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$", word):
        return False
    has_both = re.search(r"[A-Za-z]", word) and re.search(r"\d", word)
    return bool(has_both or re.search(r"[A-Za-z][!#$%&*@^][A-Za-z]", word))


def _pattern(
    pattern: str, needs: str = "", shown: int = 0, accepts: Callable[[str], bool] = bool
) -> SecretPattern:
    return SecretPattern(re.compile(pattern), needs, shown, accepts)


PATTERNS = {
    EMAIL: _pattern(
        r"(?<![\w.%+-])[A-Za-z0-9][\w.%+-]{0,63}@"
        r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])",
        needs="@",
    ),
    "AWS access key": _pattern(
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])", "IA", 4
    ),
    "GitHub token": _pattern(
        r"(?<!\w)(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{82})(?!\w)", "_", 4
    ),
    "Slack token": _pattern(r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{16,}", "xox", 4),
    "Stripe key": _pattern(r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,}(?!\w)", "k_", 8),
    "OpenAI key": _pattern(
        r"(?<![\w-])sk-(?:[A-Za-z0-9]{48}|(?:proj|svcacct|admin)-[\w-]{40,})(?![\w-])", "sk-", 3
    ),
    "Anthropic key": _pattern(r"(?<![\w-])sk-ant-[\w-]{40,}", "sk-ant-", 7),
    "Hugging Face token": _pattern(r"(?<!\w)hf_[A-Za-z0-9]{34,}(?!\w)", "hf_", 3),
    "Google API key": _pattern(r"(?<!\w)AIza[\w-]{35}(?![\w-])", "AIza", 4),
    "JSON web token": _pattern(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{16,}", "eyJ", 3),
    "private key": _pattern(
        r"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY(?: BLOCK)?-----", "PRIVATE KEY", 10
    ),
    # Visa, Mastercard, Discover, JCB, Diners Club, American Express (ISO/IEC 7812 prefixes), as one
    # number or in the groups printed on the card.
    "credit card": _pattern(
        r"(?<![\w.-])(?=4|5[1-5]|2[2-7]|6|3[04-9])"
        r"(?:\d{13,19}|\d{4}(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|\d{4}[ -]\d{6}[ -]\d{4,5})"
        r"(?!\w|[.-]\d)",
        accepts=is_card_number,
    ),
    "password": _pattern(
        _NAMES + r"[\"']?\s{0,8}[:=]\s{0,8}"
        r"(?P<quote>[\"'])(?P<value>(?!\*|<|\$|%|\{|your)[^\"'\n]{6,128})(?P=quote)"
    ),
    "password without quotes": _pattern(
        _NAMES + r"(?:[ \t]{0,8}[:=]|[ \t]is)[ \t]{0,8}" + rf"(?P<value>{_WORD})",
        accepts=is_mixed,
    ),
    "token": _pattern(
        r"(?<![A-Za-z])(?i:token)[ \t]{0,8}[:=][ \t]{0,8}" + rf"(?P<value>{_WORD})",
        accepts=lambda word: len(word) >= 16 and is_mixed(word),
    ),
    "password in an address": _pattern(
        r"(?<!\w)[a-z][a-z0-9+]{1,15}://[\w.%+-]{1,64}:(?P<value>(?!\*|<|\$|\{|your)[^\s:/@\"'<>]{6,128})"
        r"@\w",
        needs="://",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A masked value.

    Attributes:
        kind: a key of `PATTERNS`.
        masked: the prefix that all values of the kind share, and the length.
    """

    kind: str
    masked: str


def find_secrets(text: str) -> Iterator[Finding]:
    """Yield the findings in a text, ordered by kind."""
    for kind, secret in PATTERNS.items():
        if secret.needs not in text:
            continue
        for match in secret.pattern.finditer(text):
            value = match["value"] if "value" in match.re.groupindex else match[0]
            if secret.accepts(value):
                yield Finding(kind, f"{value[: secret.shown]}... ({len(value)} characters)")
