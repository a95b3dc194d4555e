"""Secrets of every kind are found and masked; what only looks like them is left alone."""

from __future__ import annotations

import base64
import gzip
import json
import random
import string
import time

import pytest

from llama_fast.data.secrets import PATTERNS, find_secrets, is_card_number
from tests.paths import data_file, extra, original


def letters(n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(random.Random(n).choices(alphabet, k=n))


def part(value: dict[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


# Put together here, so that no scanner takes this file for a leak.
SECRETS = [
    ("email", "jane.doe+lists@mail.example.co.uk"),
    ("email", "x@y.org"),
    ("AWS access key", "AK" + "IA" + letters(16, string.ascii_uppercase + string.digits)),
    ("GitHub token", "gh" + "p_" + letters(36)),
    ("GitHub token", "github" + "_pat_" + letters(82)),
    ("Slack token", "xo" + "xb-123456789012-1234567890123-" + letters(24)),
    ("Stripe key", "sk" + "_live_" + letters(24)),
    ("OpenAI key", "sk" + "-" + letters(48)),
    ("OpenAI key", "sk" + "-proj-" + letters(60) + "-" + letters(12) + "_A"),
    ("Anthropic key", "sk" + "-ant-api03-" + letters(90)),
    ("Hugging Face token", "hf" + "_" + letters(34)),
    ("Google API key", "AI" + "za" + letters(35)),
    ("JSON web token", f"{part({'alg': 'HS256'})}.{part({'sub': '1234', 'n': 1})}.{letters(43)}"),
    ("private key", "-----BEGIN " + "RSA PRIVATE KEY-----"),
    ("private key", "-----BEGIN " + "PRIVATE KEY-----"),
    ("private key", "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----"),
    ("credit card", "4111 1111 1111 1111"),  # the card networks' numbers for tests
    ("credit card", "5555-5555-5555-4444"),
    ("credit card", "378282246310005"),
    ("credit card", "3782 822463 10005"),
    ("credit card", "6011111111111117"),
    ("credit card", "3530111333300000"),
    ("credit card", "30569309025904"),
    ("credit card", "2223003122003222"),
]


# The kinds that are known by what stands before the value.
ASSIGNED = {"password", "password without quotes", "password in an address", "token"}


@pytest.mark.parametrize(("kind", "value"), SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "see {}, or else.", "{} 12/27", 'x = "{}"\n', "({})", "\n{}\n"]
)
def test_each_kind_is_found_and_masked(kind: str, value: str, around: str) -> None:
    (finding,) = find_secrets(around.format(value))
    assert finding.kind == kind
    shown = finding.masked.removesuffix(f"... ({len(value)} characters)")
    assert value.startswith(shown) and len(shown) <= 10 and value != shown
    if kind in ("email", "credit card", "password"):
        assert shown == ""


@pytest.mark.parametrize(
    "text",
    [
        'password = "hunter2-and-more"',
        "API_KEY: 'correct horse'",
        '{"db_password":"n0tSoGood"}',
        "password: hunter2secret!",
        "x-api-key: abc123def456ghi",
        "My password is hunter2secret, do not tell.",
        "DB_PASSWORD=s3cr3t-enough",
        "export API_KEY=0123456789abcdef",
        "token: 4f9a8b7c6d5e4f3a2b1c",
        "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzz",
        "passwd=p@ssword",
        "postgres://app:s3cr3tpw@db:5432/app",
    ],
)
def test_assignments(text: str) -> None:
    (finding,) = find_secrets(text)
    assert finding.kind in ASSIGNED and finding.masked.startswith("...")


@pytest.mark.parametrize(
    "text",
    [
        "The password: it was easy to forget.",
        "The secret: patience!",
        "password: ask-the-administrator",
        "my password is wonderful",
        "password=getpass.getpass()",
        "password: str | None = None",
        "password = os.environ['PASSWORD_2']",
        "PASSWORD=${PASSWORD_2}",
        "token: 12345678",
        "tokens: 1024",
        "token = tokenizer.eos_token_id2",
        "the secret: https://example.com/page1",
        'password = "${DB_PASSWORD}"',
        'password = "********"',
        'password = "<your password>"',
        'password = ""',
        "git commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "call 4111 1111 1111 1112",  # Luhn says no
        "0000 0000 0000 0000",
        "pi is 3.14159265358979323846",
        "sk-circle-fade-dot and ask-me-anything",
        "@property and user@localhost",
        "AKIA is not a key, nor is AKIA1234",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_only_looks_like_one(text: str) -> None:
    assert list(find_secrets(text)) == []


def test_luhn_finds_every_wrong_digit() -> None:
    number = "4111111111111111"
    for place in range(16):
        for digit in "0123456789":
            changed = number[:place] + digit + number[place + 1 :]
            assert is_card_number(changed) == (changed == number)


def test_real_texts() -> None:
    """None in plays, arithmetic and novels."""
    for name in ("corpora/tinyshakespeare.txt", "hub/openai/gsm8k/main/test.jsonl"):
        assert list(find_secrets(data_file(name).read_text())) == []
    with gzip.open(data_file("corpora/dickens.txt.gz"), "rt", encoding="latin-1") as file:
        assert list(find_secrets(file.read())) == []


@extra("corpora/dickens.txt.gz")
def test_addresses_in_a_real_text() -> None:
    """Those in Project Gutenberg's notes between the novels, and nothing else."""
    with gzip.open(original("corpora/dickens.txt.gz"), "rt", encoding="latin-1") as file:
        found = list(find_secrets(file.read()))
    assert len(found) == 41 and {finding.kind for finding in found} == {"email"}


@pytest.mark.parametrize("text", ["4" * 50_000, "4 " * 25_000, "a@" * 25_000, "a." * 25_000,
                                  "eyJ" * 17_000, "eyJaaaaaaaa.eyJ" * 3_000, "-" * 50_000,
                                  "password" * 6_000, "a@" + "b." * 25_000, "xox" * 17_000,
                                  "password = " + " " * 40_000, "a@" + "b-" * 25_000])  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begin = time.process_time()
    list(find_secrets(text))
    assert time.process_time() - begin < 2


def test_each_kind_has_a_test() -> None:
    assert {kind for kind, _ in SECRETS} | ASSIGNED == set(PATTERNS)
