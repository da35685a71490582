"""Tokens, keys, passwords and places are found by their line, and words that look a little like them aren't."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.export.hub_secrets import TOKENS, secrets_in
from utils.models.device import ROOT, TINY_DIR

LETTERS = string.ascii_letters + string.digits


def made(count: int, letters: str = LETTERS, seed: int = 0) -> str:
    """Random characters: what a real token is made of, and nobody's."""
    return "".join(random.Random(seed).choices(letters, k=count))


HEX, CAPITALS = "0123456789abcdef", string.ascii_uppercase + string.digits
SECRETS = [
    ("a token of the Hub", f"hf_{made(34)}"),
    ("a token of the Hub", f"api_org_{made(34)}"),
    ("an API key", f"sk-{made(48)}"),
    ("an API key", f"sk-proj-{made(20)}-{made(40)}_{made(30)}"),
    ("an API key", f"sk-ant-api03-{made(40)}-{made(40)}-AA"),
    ("a key of Stripe's", f"sk_live_{made(24)}"),
    ("an AWS key", f"AKIA{made(16, CAPITALS)}"),
    ("an AWS key", f"ASIA{made(16, CAPITALS)}"),
    ("a key of Google's", f"AIza{made(35, LETTERS + '_-')}"),
    ("a GitHub token", f"ghp_{made(36)}"),
    ("a GitHub token", f"gho_{made(36)}"),
    ("a GitHub token", f"github_pat_{made(22)}_{made(59)}"),
    ("a GitLab token", f"glpat-{made(20)}"),
    ("a Slack token", f"xoxb-{made(12, string.digits)}-{made(12, string.digits)}-{made(24)}"),
    ("a Slack token", f"xapp-1-A{made(10, CAPITALS)}-{made(12, string.digits)}-{made(40, HEX)}"),
    ("a Slack token", f"https://hooks.slack.com/services/T{made(8, CAPITALS)}/B{made(8, CAPITALS)}/{made(24)}"),
    ("a token of PyPI or npm", f"pypi-AgEIcHlwaS5vcmc{made(60)}"),
    ("a token of PyPI or npm", f"npm_{made(36)}"),
    ("a signed web token", f"eyJ{made(30)}.eyJ{made(60)}.{made(40)}"),
    ("a private key", "-----BEGIN RSA PRIVATE KEY-----"),
    ("a private key", "-----BEGIN PRIVATE KEY-----"),
    ("a private key", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
]
PASSWORDS = [
    "password=hunter2",
    "password = 'correct horse'",
    'DB_PASSWORD="secret-of-mine"',
    "password: hunter2",
    '{"password": "swordfish"}',
    "passwd: 's3cret'",
    f"aws_secret_access_key = {made(40)}",
    f"WANDB_API_KEY={made(40, HEX, 3)}",
    f'{{"api-key": "{made(32, HEX, 3)}"}}',
    f"auth_token: {made(24, seed=2)}",
    "CLIENT_SECRET=swordfish",
    "postgres://anna:swordfish@db.example.org/x",
    "https://anna:swordfish@example.org",
]
FINE = [
    "The password is asked for; it is never stored.",
    "password: required",
    "password=<your password>",
    "password=your-password-here",
    "password=...",
    "password = getpass.getpass()",
    'password = os.environ["PASSWORD"]',
    "api_key=api_key",
    'token = os.environ.get("HF_TOKEN")',
    "HF_TOKEN=$HF_TOKEN",
    "hf_token: your token of the Hub",
    '"eos_token": "<|im_end|>"',
    '"pad_token": "<pad>", "token_type_ids": [1, 2, 3, 4, 5, 6]',
    "max_tokens=4096, num_return_sequences=16, bearer of news",
    "the secret: LoRA2 and rank 16 do it",
    "sk-learn is scikit-learn; sk-learn-compatible-estimators-of-all-kinds",
    "a task-oriented-dialogue-with-many-words-in-2026-A",
    "risk-free-returns-1990-2020-AND-more-of-them",
    "https://huggingface.co/owner/model-of-a-long-name-with-1234567890",
    "hf_hub_download(repo_id, filename), hf_transfer, HF_HUB_OFFLINE",
    "AKIA is what an AWS key begins with, AIza one of Google's, ghp_ GitHub's, xoxb- Slack's",
    "-----BEGIN CERTIFICATE-----",
    "ssh-keygen writes -----BEGIN PUBLIC KEY-----",
    "sha256: " + made(64, HEX),
    "git commit " + made(40, HEX),
    "mailto:anna@example.org, http://localhost:8000/v1, git@github.com:me/x.git",
    "https://user:<password>@host and https://user:$TOKEN@host",
]


def found(line: str, name: str = "README.md") -> list[str]:
    return [one.what for one in secrets_in(name, f"first\n{line}\nlast\n".encode())]


@pytest.mark.parametrize("what, secret", SECRETS, ids=[f"{what} {n}" for n, (what, _) in enumerate(SECRETS)])
def test_a_token_is_found_wherever_it_stands(what, secret):
    for line in (secret, f"export KEY={secret}", f'{{"key": "{secret}"}}', f"see {secret}.", f"`{secret}`"):
        for name in ("README.md", "tokenizer.json"):
            assert what in found(line, name), line
    assert [one.line for one in secrets_in("NOTICE", f"a\nb\n{secret}\n".encode())][0] == 3


def test_every_form_is_tried():
    assert {what for what, _ in SECRETS} == set(TOKENS)


@pytest.mark.parametrize("line", PASSWORDS)
def test_a_password_is_found_by_its_name(line):
    assert found(line) == ["a password"]


@pytest.mark.parametrize("line", FINE)
def test_ordinary_words_placeholders_and_code_arent(line):
    assert found(line) == []


def test_a_vocabulary_isnt_full_of_passwords():
    line = '{"password": "1234x", "password=": 12345}'
    assert found(line, "tokenizer.json") == [] and found(line, "README.md") != []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert list(secrets_in(name, (TINY_DIR / name).read_bytes())) == []


def test_the_courses_own_pages_have_none():
    """27,000 lines of prose and code about tokens, keys and passwords: only folders are named, in examples."""
    pages = [*ROOT.glob("lessons/*.md"), *ROOT.glob("*.md"), *ROOT.glob("utils/**/*.py"), *ROOT.glob("tools/**/*.py")]
    alarms = {
        (path.name, one.what)
        for path in pages
        for one in secrets_in("README.md", path.read_bytes())
        if one.what != "a folder of this machine"
    }
    assert len(pages) > 200 and alarms == set()


def test_a_wide_text_hides_none():
    assert [one.what for one in secrets_in("NOTICE", f"key {SECRETS[0][1]}".encode("utf-16"))] == [SECRETS[0][0]]


@given(st.text(max_size=200))
def test_it_answers_whatever_it_is_given(text):
    assert all(one.line >= 1 for one in secrets_in("README.md", text.encode("utf-8", errors="surrogatepass")))


@pytest.mark.parametrize("text", ["a" * 300_000, "a." * 150_000, "sk-" * 100_000, "password" * 40_000, "eyJ" * 100_000])
def test_a_long_line_takes_no_long_time(text):
    """Forms whose search is quadratic take minutes here; these take well under a second."""
    import time

    began = time.perf_counter()
    list(secrets_in("README.md", text.encode()))
    assert time.perf_counter() - began < 10
