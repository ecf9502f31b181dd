"""Secrets are taken out of messages by their form and their name; what only looks like one stays readable."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch, power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st

import coordcheck
from coordcheck import CoordCheckError
from coordcheck.common.redaction import GONE, redacted
from coordcheck.reporting.ci import github, junit, markdown
from coordcheck.runs.files import RunFolder

WORD = "5uperS3cretV4lue"
HEX = "0123456789abcdef" * 3
BASE64 = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
SECRETS = [  # text, the secret in it, and what must stay readable
    # user info of addresses
    (
        "fatal: Authentication failed for 'https://me:hunter2@git.example.com/a/b.git/'",
        "hunter2",
        "@git.example.com/a/b",
    ),
    ("https://hunter2@github.com/org/repo.git", "hunter2", "@github.com/org/repo.git"),
    ("git+https://oauth2:hunter2@gitlab.com/x", "hunter2", "git+https://"),
    ("postgresql+psycopg2://me:p@ss/w?rd#1@db:5432/runs", "p@ss/w?rd#1", "@db:5432/runs"),
    ("redis://:hunter2@cache:6379/0", "hunter2", "@cache:6379/0"),
    ("s3://AKIAIOSFODNN7EXAMPLE:hunter2@bucket/path", "hunter2", "@bucket/path"),
    ("proxy //me:hunter2@proxy.local:3128 refused", "hunter2", "@proxy.local:3128 refused"),
    ("http://me:hunter2@[::1]:8080/x", "hunter2", "[::1]:8080/x"),
    ("HTTPS://ME:HUNTER2@EXAMPLE.COM", "HUNTER2", "@EXAMPLE.COM"),
    ("tried http://a:pw1@h1/x and http://b:pw2@h2/y", "pw2", "@h1/x and http://"),
    # queries
    ("404 for https://host/model?token=hunter2&page=2", "hunter2", "&page=2"),
    ("Max retries exceeded with url: /model?access_token=hunter2 (Caused by", "hunter2", " (Caused by"),
    ("https://h/x?api_key=hunter2", "hunter2", "https://h/x?api_key="),
    ("https://h/x?key=hunter2#top", "hunter2", "#top"),
    ("https://h/x?a=1&password=hunter2&b=2", "hunter2", "&b=2"),
    ("https://acc.blob.core.windows.net/c/b?sv=2022&se=2030&sig=hunter2%3D&sp=r", "hunter2", "sv=2022"),
    ("https://b.s3.amazonaws.com/k?X-Amz-Credential=hunter2&X-Amz-Signature=abcd", "hunter2", "b.s3.amazonaws.com/k"),
    ("https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=hunter2", "hunter2", "X-Amz-Date=1"),
    ("https://storage.googleapis.com/k?GoogleAccessId=a&Signature=hunter2", "hunter2", "GoogleAccessId=a"),
    ("https://h/cb#access_token=hunter2&state=1", "hunter2", "&state=1"),
    ("Server=db;Uid=me;Pwd=hunter2;Database=x", "hunter2", ";Database=x"),
    ("https://hooks.slack.com/services/T00000000/B00000000/XXXXhunter2", "hunter2", "hooks.slack.com"),
    ("https://discord.com/api/webhooks/123456/hunter2-abc", "hunter2", "discord.com"),
    # headers
    ("Authorization: Bearer hunter2", "hunter2", "Authorization: "),
    ("authorization: Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg", "authorization: "),
    ("headers={'Authorization': 'Bearer hunter2', 'Accept': '*/*'}", "hunter2", "'Accept': '*/*'"),
    ('{"Authorization": "token hunter2", "Accept": "json"}', "hunter2", '"Accept": "json"'),
    ("['curl', '-H', 'Authorization: Bearer hunter2', 'https://h']", "hunter2", "'https://h'"),
    ("Proxy-Authorization: Basic aHVudGVy\nHost: h", "aHVudGVy", "\nHost: h"),
    ("AWS4: Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=hunter2", "hunter2", "Authorization: "),
    ("X-Api-Key: hunter2", "hunter2", "X-Api-Key: "),
    ("PRIVATE-TOKEN: hunter2", "hunter2", "PRIVATE-TOKEN: "),
    ("Set-Cookie: session=hunter2; Path=/", "hunter2", "Set-Cookie: "),
    ("'x-auth-token': 'hunter2'", "hunter2", "'x-auth-token': '"),
    ("401 with Bearer hunter2hunter2", "hunter2", "401 with Bearer "),
    ("sent bearer abcdefgh.ijkl-mn_op", "abcdefgh", "sent bearer "),
    ("sent Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg", "sent Basic "),
    # names of secrets
    ("connect(user='me', password='hunter2', timeout=3)", "hunter2", "', timeout=3)"),
    ('connect(password="hunter2 with blanks")', "hunter2 with blanks", 'connect(password="'),
    ("password=hunter2", "hunter2", "password="),
    ("password=b'hunter2'", "hunter2", "password=b'"),
    ("PASSWORD = hunter2", "hunter2", "PASSWORD = "),
    ("DB_PASSWORD=hunter2", "hunter2", "DB_PASSWORD="),
    ("{'user': 'me', 'password': 'hunter2'}", "hunter2", "'user': 'me'"),
    ('{"client_secret": "hunter2"}', "hunter2", '"client_secret": "'),
    ("api_key: hunter2\nmodel: gpt", "hunter2", "\nmodel: gpt"),
    ("apikey=hunter2", "hunter2", "apikey="),
    ("OPENAI_API_KEY=hunter2", "hunter2", "OPENAI_API_KEY="),
    ("environ({'WANDB_API_KEY': 'hunter2'})", "hunter2", "'WANDB_API_KEY'"),
    ("AWS_SECRET_ACCESS_KEY=hunter2/abc+def", "hunter2", "AWS_SECRET_ACCESS_KEY="),
    ("aws_session_token = hunter2", "hunter2", "aws_session_token = "),
    ("HF_TOKEN=hunter2", "hunter2", "HF_TOKEN="),
    ("hf_token='hunter2'", "hunter2", "hf_token='"),
    ("AccountName=a;AccountKey=hunter2==;EndpointSuffix=x", "hunter2", "AccountName=a"),
    ("passphrase: hunter2", "hunter2", "passphrase: "),
    ("['psql', '--password', 'hunter2', '-h', 'db']", "hunter2", "'-h', 'db'"),
    ("huggingface-cli login --token hunter2x", "hunter2x", "login --token "),
    ("cmd --api-key=hunter2 --verbose", "hunter2", " --verbose"),
    ("wandb.login(key='" + HEX[:40] + "')", HEX[:40], "wandb.login(key='"),
    ("token = '" + WORD * 2 + "'", WORD, "token = '"),
    # forms
    ("got ghp_" + "a1B2" * 9 + " from", "a1B2a1B2", "got "),
    ("github_pat_" + "11ABCDEFG0" * 5, "11ABCDEFG0", ""),
    ("glpat-" + "x1Y2z3" * 4, "x1Y2z3x1", ""),
    ("token hf_" + "AbCdEfGhIj" * 3 + "abcd is invalid", "AbCdEfGhIj", " is invalid"),
    ("Incorrect API key provided: sk-proj-" + "Ab1_" * 12, "Ab1_Ab1_", "Incorrect API key provided: "),
    ("sk-ant-api03-" + "Ab1-" * 12, "Ab1-Ab1", ""),
    ("xoxb-123456789012-abcdefGHIJKL", "abcdefGHIJKL", ""),
    ("AKIAIOSFODNN7EXAMPLE is not authorized", "AKIAIOSFODNN7EXAMPLE", " is not authorized"),
    ("ASIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", ""),
    ("AIzaSy" + "Ab1-" * 9, "Ab1-Ab1", ""),
    ("sk_live_" + "aB3d" * 6, "aB3daB3d", ""),
    ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP", "eyJzdWIiOiIxMjM0In0", "jwt "),
    ("npm_" + "aB3d" * 9, "aB3daB3d", ""),
    # key blocks
    (f"-----BEGIN RSA PRIVATE KEY-----\n{BASE64}\n{BASE64}\n-----END RSA PRIVATE KEY-----\nnext", BASE64, "\nnext"),
    (f"key='-----BEGIN PRIVATE KEY-----\\n{BASE64}\\n-----END PRIVATE KEY-----'", BASE64, "BEGIN PRIVATE KEY"),
    (f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BASE64}\n{BASE64}", BASE64, "BEGIN OPENSSH"),
    (f"{BASE64}\n{BASE64}==\n-----END EC PRIVATE KEY-----\nnext", BASE64, "\nnext"),
    (f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{BASE64}\n-----END PGP PRIVATE KEY BLOCK-----", BASE64, "PGP"),
]
HEALTHY = [
    *("KeyError: 'token'", "KeyError: 'password'", "key=3", "f(key=3, value=4)", "tokens=64", "n_tokens: 8", "x@y"),
    *("token=5 of 64", "pad_token='[PAD]'", "eos_token=</s>", "mask_token: '<mask>'", "special_tokens={'pad': 0}"),
    *("unexpected token: 'x'", "SyntaxError: invalid token (train.py, line 3)", "max_tokens=4096", "token_ids=[1, 2]"),
    *("shape '[2, 3]' is invalid for input of size 7", "mat1 and mat2 shapes cannot be multiplied (16x64 and 32x8)"),
    *("/home/me/runs/key/token/model.pt", "C:\\keys\\token.txt", "file:///home/me/x.pt", "@torch.no_grad()", "a @ b"),
    *(
        "me@example.com wrote",
        "https://example.com/a/b?page=2&n_tokens=8",
        "http://host:8080/path@v2",
        "git@github.com:a/b",
    ),
    *(
        "Bearer token is missing",
        "bearer authentication required",
        "Basic usage: f(x)",
        "basic training loop",
        "passed",
    ),
    *("attention.key.weight", "blocks.0.attn.key: 3", "key: (16, 64)", "query, key, value = x", "keys=['a', 'b']"),
    *('Missing key(s) in state_dict: "a.weight", "b.bias"', "Unexpected key(s)", "sort(key=len)", "d['key'] = 3"),
    *("password=None", "password: str = None", "invalid password: too short for this", "secret=''", "api_key=<unset>"),
    *(
        "authorization failed for user me",
        "the --token option is required",
        "argument --password: expected one argument",
    ),
    *("signature (x, y) -> z", "no signature found for builtin", "sk-learn", "hf_model_for_causal_lm", "task-2024"),
    *(
        "commit 850446eb6c0ed1d0c0a1b2c3d4e5f60718293a4b",
        "batch fb49299392bc",
        "sha256:" + HEX[:64],
        "torch 2.13.0+cpu",
    ),
    *("0.5:0.9@0.1", "a:b@c", "std::vector<int>@plt", "2024-01-01T10:00:00", "loss: 2.3026, lr=1e-3", "x=1&y=2"),
    *("password policy applies", "secretary: Ann is here", "passwords differ", "tokenizer=gpt2", "key=lambda x: x[1]"),
    *("https://pytorch.org/docs/stable/notes/randomness.html#reproducibility", "lr × m^-1", "µP, width 64, seed 0"),
    *("E   assert 'key' in {'token': 3}", "__key=query", "monkey=3", "turkey: yes", "hockey='stick'", "cookie monster"),
    *('Traceback (most recent call last):\n  File "train.py", line 3, in build\nValueError: no', "", " ", "\n", GONE),
]


@pytest.mark.parametrize(("text", "secret", "readable"), SECRETS, ids=lambda value: repr(value)[:50])
def test_a_secret_is_taken_out_and_the_rest_stays(text: str, secret: str, readable: str):
    assert secret in text
    found = redacted(text)
    assert secret not in found
    assert GONE in found
    assert readable in found
    assert redacted(found) == found


@pytest.mark.parametrize("text", HEALTHY, ids=lambda value: repr(value)[:50])
def test_what_is_no_secret_stays_as_it_is(text: str):
    assert redacted(text) == text


@pytest.mark.parametrize("text", [text for text, _, _ in SECRETS], ids=lambda value: repr(value)[:50])
def test_secrets_are_found_inside_of_other_text(text: str):
    """Each of the texts in the middle of a traceback, between healthy lines."""
    secret = next(secret for known, secret, _ in SECRETS if known == text)
    whole = f"Traceback (most recent call last):\n  File 'train.py', line 3\nOSError: {text}\nkey=3, tokens=64"
    found = redacted(whole)
    assert secret not in found
    assert found.startswith("Traceback (most recent call last):\n  File 'train.py', line 3\nOSError: ")
    assert found.endswith("key=3, tokens=64")


@settings(deadline=None)
@given(st.text(max_size=80))
def test_redaction_settles_at_once(text: str):
    once = redacted(text)
    assert redacted(once) == once


HARD = [
    "://a:b",
    "password=",
    "?token=",
    "Authorization: ",
    "Bearer ",
    "-----BEGIN PRIVATE KEY-----",
    "eyJ",
    "sk-",
    "//a:",
]
HARD += ["a", "=", "'", "-", "--token ", "key='a1", "basic a", "-----END PRIVATE KEY-----" + "A" * 50 + " ", " ", "\\n"]


@pytest.mark.parametrize("piece", HARD)
def test_long_texts_take_time_in_proportion_to_their_length(piece: str):
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        start = time.process_time()
        redacted(text)
        return time.process_time() - start

    short = min(seconds(1000) for _ in range(5))
    assert min(seconds(16_000) for _ in range(2)) < 80 * short  # 16 times as long; a quadratic search takes 256 times


# ---- from end to end

SECRET = "ghp_" + "a1B2" * 9
SAID = f"cannot clone https://me:hunter2@host/model?token=abcdef (Authorization: Bearer {SECRET})"


def failing(width: int) -> Any:
    if width == 32:
        raise OSError(SAID)
    model = torch.nn.Linear(64, width)
    return torch.nn.Sequential(model, torch.nn.Linear(width, 10)), torch.optim.SGD(model.parameters(), lr=0.1)


def assert_clean(texts: Iterable[str]) -> None:
    for text in texts:
        assert not [secret for secret in ("hunter2", "abcdef", SECRET) if secret in text]


def contents(folder: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()]


def test_what_a_failing_build_says_is_told_without_its_secrets(tmp_path: Path):
    options = {"widths": (16, 32, 64), "seeds": 1, "steps": 1}
    report = coordcheck.check(failing, pair_batch(), loss=F.cross_entropy, save_to=tmp_path, **options)
    assert "cannot clone https://***@host/model?token=***" in report.missing[0].reason
    texts = [str(report), report.to_json(), junit(report), github(report), markdown(report), report._repr_html_()]
    report.save_html(tmp_path / "page.html")
    assert_clean([*texts, *contents(tmp_path)])
    assert len(contents(tmp_path)) >= 5


def test_files_of_older_versions_are_shown_without_the_secrets_in_them(tmp_path: Path):
    records = power_law_records({"fc": {"activation": 0.0, "change": 0.0}}, seeds=1)
    for record in records:
        record.notes, folder = [SAID], RunFolder(tmp_path)
        folder.save(record)
    assert SECRET in folder.run_path(records[0].key).read_text()
    report = coordcheck.load(tmp_path)
    assert "cannot clone https://***@host" in report.records[0].notes[0]
    assert_clean([str(report), report.to_json()])


def test_a_recorder_keeps_no_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = coordcheck.Recorder(model, optimizer, width=4, save_to=tmp_path)
    with suppress(OSError), recorder:
        model(torch.ones(2, 4)).sum().backward()
        recorder._run.note_failure(ValueError(SAID))
        raise OSError(SAID)
    assert "https://***@host" in recorder.record.reason
    assert_clean([*contents(tmp_path), *(record.getMessage() for record in caplog.records), recorder.record.reason])


def test_a_check_all_of_whose_builds_fail_says_so_without_secrets():
    def build(width: int) -> Any:
        raise OSError(SAID)

    with pytest.raises(CoordCheckError, match=re.compile(r"every run failed.*\*\*\*@host", re.DOTALL)) as told:
        coordcheck.check(build, pair_batch(), loss=F.cross_entropy, widths=(16, 32, 64), seeds=1)
    assert_clean([str(told.value)])


def test_a_traceback_of_the_command_line_holds_no_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from coordcheck.cli.main import main

    (tmp_path / "train_with_secrets.py").write_text(f"raise OSError({SAID!r})")
    assert main(["plan", f"{tmp_path / 'train_with_secrets.py'}:build"]) == 2
    shown = capsys.readouterr().err
    assert "https://***@host" in shown
    assert_clean([shown])
