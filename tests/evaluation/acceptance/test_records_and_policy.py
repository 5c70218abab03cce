"""Records and policies as files: what is taken, and what is refused with its line or its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.records import read_records

GOOD = '{"prompt": "2 + 2 =", "reference": 4, "check": "numeric"}'


def records(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_records(tmp_path: Path) -> None:
    chat = (
        '{"id": "b", "messages": [{"role": "user", "content": "Hi"}], "reference": ["Hello", "Hi"], "check": "exact", '
    )
    read = read_records(records(tmp_path, GOOD, "", chat + '"group": "talk", "weight": 2, "max_tokens": 5}'))
    first, second = read.all
    assert (first.id, first.prompt, first.group, first.weight, first.max_tokens) == ("1", "2 + 2 =", None, 1.0, None)
    assert second.messages == ({"role": "user", "content": "Hi"},) and second.check.references == ("Hello", "Hi")
    assert (second.group, second.weight, second.max_tokens) == ("talk", 2.0, 5)
    assert read.groups == ("talk",) and read.weighted


@pytest.mark.parametrize(
    ("line", "words"),
    (
        ("{", "is not valid JSON"),
        ("[1]", "is no JSON object"),
        ('{"prompt": "a", "prompt": "b", "check": "exact", "reference": "c"}', "a name occurs twice"),
        ('{"check": "exact", "reference": "a"}', "either a prompt or messages"),
        ('{"prompt": "a", "messages": [], "check": "exact", "reference": "a"}', "either a prompt or messages"),
        ('{"prompt": "  ", "check": "exact", "reference": "a"}', "an empty one"),
        ('{"messages": [], "check": "exact", "reference": "a"}', "messages of another form"),
        ('{"messages": [{"role": "user"}], "check": "exact", "reference": "a"}', "messages of another form"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "check": "exact", "reference": "a"}',
            "ends with a message of the assistant",
        ),
        ('{"prompt": "a", "reference": "b"}', "lacks a check"),
        ('{"prompt": "a", "check": "exakt", "reference": "b"}', "did you mean 'exact'"),
        ('{"prompt": "a", "check": "exact"}', "has no reference"),
        ('{"prompt": "a", "check": "exact", "reference": []}', "has no reference"),
        ('{"prompt": "a", "check": "exact", "reference": 4}', "takes a text"),
        ('{"prompt": "a", "check": "numeric", "reference": "four"}', "which is no number"),
        ('{"prompt": "a", "check": "numeric", "reference": true}', "which is no number"),
        ('{"prompt": "a", "check": "numeric", "reference": 4, "tolerance": -1}', "a number from 0"),
        ('{"prompt": "a", "check": "numeric", "reference": 4, "which": "middle"}', "one of last, first, only, any"),
        ('{"prompt": "a", "check": "exact", "reference": "b", "tolerance": 1}', "an option of numeric, not of exact"),
        ('{"prompt": "a", "check": "exact", "reference": "b", "case": "no"}', "true or false"),
        ('{"prompt": "a", "check": "regex"}', "lacks the pattern"),
        ('{"prompt": "a", "check": "regex", "pattern": "b", "reference": "b"}', "does not look at"),
        ('{"prompt": "a", "check": "json-schema", "schema": [1]}', "a JSON schema"),
        ('{"prompt": "a", "check": "exact", "referense": "b"}', "did you mean 'reference'"),
        ('{"prompt": "a", "check": "exact", "reference": "b", "weight": 0}', "a number above 0"),
        ('{"prompt": "a", "check": "exact", "reference": "b", "max_tokens": 1.5}', "a whole number"),
        ('{"id": "", "prompt": "a", "check": "exact", "reference": "b"}', "the id"),
        ('{"id": 1, "prompt": "a", "check": "exact", "reference": "b"}', "has the id '1', which line 1 of .* has too"),
    ),
)
def test_broken_lines_are_refused_with_their_number(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match=rf"(?s)^Line 2 of .*{words.replace('of .* has', 'has')}"):
        read_records(records(tmp_path, GOOD, line, GOOD))


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match="is empty"):
        read_records(records(tmp_path, ""))
    with pytest.raises(PrunekitError, match=r"none\.jsonl"):
        read_records(tmp_path / "none.jsonl")


def policy(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "policy.toml"
    file.write_text(text)
    return Policy.load(file)


def test_a_policy(tmp_path: Path) -> None:
    made = policy(
        tmp_path,
        'margin = 0.03\nmax_flips = 0.1\ntoo_few = "accept"\n[groups."json output"]\nmax_error_rate = 0.2\n'
        '[eval]\nfile = "eval.json"\nmax_loss_added = 0.1\n[serve]\nfile = "serve.json"\nmin_load_ratio = 1.1\n',
    )
    assert (made.margin, made.alpha, made.limits.max_flips) == (0.03, 0.05, 0.1)
    assert made.groups["json output"].max_error_rate == 0.2 and made.groups["json output"].margin is None
    assert made.eval == {"file": str(tmp_path / "eval.json"), "max_loss_added": 0.1}
    assert made.to_dict()["serve"] == {"file": "serve.json", "min_load_ratio": 1.1}


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("margin = ", "is not valid TOML"),
        ("margn = 0.1", "'margn', which it does not know .did you mean 'margin'.{3} there are margin, alpha"),
        ("margin = 2", "from 0.0001 to 0.5 .2 points are 0.02."),
        ("margin = true", "it is a number"),
        ("max_truncated = nan", "it is a number"),
        ('too_few = "maybe"', 'it is "refuse"'),
        ("groups = 3", "groups of another form"),
        ("[groups.a]\nalpha = 0.1", "group a,.*'alpha'"),
        ("[groups.a]\nmax_flips = 7", "from 0 to 1"),
        ('[eval]\nfile = "e.json"', "needs file"),
        ('[serve]\nfile = "e.json"\nmax_loss_added = 1', "does not know"),
    ),
)
def test_broken_policies_are_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match=words):
        policy(tmp_path, text)


def test_a_missing_policy(tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match="does not exist"):
        Policy.load(tmp_path / "policy.toml")
