"""Checks of answers: each kind, with what models and users really write."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.checks import child, judging
from prunekit.evaluation.acceptance.checks.child import unfenced
from prunekit.evaluation.acceptance.checks.judging import judge, look_at
from prunekit.evaluation.acceptance.checks.kinds import Check, is_right, read_check
from prunekit.evaluation.acceptance.checks.numbers import numbers_in
from prunekit.evaluation.acceptance.records import read_records


def check(kind: str, reference: Any = None, **options: Any) -> Check:
    return read_check(kind, reference, options, "Line 1 of records.jsonl")


@pytest.mark.parametrize(
    ("text", "wanted"),
    (
        ("1,234.5", ["1234.5"]),
        ("−3", ["-3"]),
        ("12 %", ["12"]),
        ("3 and 5, then 7.", ["3", "5", "7"]),
        ("x = -4.", ["-4"]),
        ("5 - 3 = 2", ["5", "3", "2"]),
        ("5-3=2", ["5", "3", "2"]),
        ("v1.2.3 of GPT4", []),
        ("3,5 or 1,2345 or 1.000.000", []),
        ("$1,000 or -$5", ["1000", "-5"]),
        ("1\u202f234 and 1'000", ["1234", "1000"]),
        ("2e3", ["2E+3"]),
        ("**42** '42' \\boxed{42} ...42", ["42"] * 4),
        ("2024-05-06", ["2024", "5", "6"]),
        ("٣", ["3"]),
        ("half, ½, ₂", []),
        ("9" * 70, []),
        ("", []),
    ),
)
def test_numbers(text: str, wanted: list[str]) -> None:
    assert numbers_in(text) == [Decimal(each) for each in wanted]


def test_numbers_of_other_countries_and_per_cent() -> None:
    assert numbers_in("1.234,5 und 3,5", point=",") == [Decimal("1234.5"), Decimal("3.5")]
    assert numbers_in("12 % and 3‰ and 4", percent=True) == [Decimal("0.12"), Decimal("0.003"), Decimal(4)]


@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=3), st.sampled_from(("{}", "It is {}.", "= {} EUR")))
def test_what_is_written_is_read(value: Decimal, around: str) -> None:
    for text in (f"{value}", f"{value:,}", f"{value}".replace("-", "−")):
        assert numbers_in(around.format(text)) == [value]


@settings(deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    numbers_in(text)
    for each in (check("exact", "a"), check("contains", ["a", "ß"], case=False, words=True), check("numeric", 3)):
        is_right(each, text)


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    (
        ({}, "7 + 5 = 12", True),
        ({}, "12, since 7 + 5 is 12.0", True),
        ({}, "12 is 7 + 5", False),
        ({"which": "first"}, "12 is 7 + 5", True),
        ({"which": "any"}, "7 + 12 is 19", True),
        ({"which": "only"}, "The answer: 12.", True),
        ({"which": "only"}, "12 or 13", False),
        ({"tolerance": 0.5}, "12.5", True),
        ({"tolerance": 0.5}, "12.51", False),
        ({"relative": 0.01}, "11.88", True),
        ({}, "12.0000000000000000000001", False),
        ({}, "twelve", False),
        ({}, "1e999", False),
    ),
)
def test_numeric(options: dict[str, Any], answer: str, right: bool) -> None:
    assert is_right(check("numeric", 12, **options), answer) is right


def test_large_whole_numbers_are_exact() -> None:
    assert is_right(check("numeric", 12345678901234567890), "12345678901234567890")
    assert not is_right(check("numeric", 12345678901234567890), "12345678901234567891")
    assert is_right(check("numeric", ["0.1", 3]), "0.10")


@pytest.mark.parametrize(
    ("kind", "reference", "options", "answer", "right"),
    (
        ("exact", "Paris", {}, " Paris\n", True),
        ("exact", "Paris", {}, "paris", False),
        ("exact", "Paris", {"case": False}, "PARIS", True),
        ("exact", ["Paris", "Paname"], {}, "Paname", True),
        ("exact", "Paris", {}, "Paris.", False),
        ("exact", "caf\u00e9", {}, "cafe\u0301", True),
        ("exact", "STRASSE", {"case": False}, "straße", True),
        ("exact", "a\nb", {}, "a\r\nb", True),
        ("contains", "cat", {}, "concatenate", True),
        ("contains", "cat", {"words": True}, "concatenate", False),
        ("contains", "C++", {"words": True}, "I like C++.", True),
        ("contains", ["red", "blue"], {}, "blue", True),
        ("contains", ["red", "blue"], {"all": True}, "blue", False),
        ("contains", ["red", "blue"], {"all": True}, "blue and red", True),
        ("contains", "x", {}, "", False),
    ),
)
def test_texts(kind: str, reference: Any, options: dict[str, Any], answer: str, right: bool) -> None:
    assert is_right(check(kind, reference, **options), answer) is right


def test_patterns_run_apart_and_end() -> None:
    slow = check("regex", pattern=r"(a+)+$")
    begin = time.perf_counter()
    made = judge(
        [
            check("regex", pattern="^yes"),
            slow,
            check("regex", pattern="yes", full=True),
            *[slow] * 6,
            check("exact", "a"),
        ],
        ["yes, sir", "a" * 60 + "!", "YES", *["a" * 60 + "!"] * 6, "a"],
    )
    assert made == [True, None, False, *[None] * 6, True]
    # A second each for the first three; on a machine that others use, the processor's.
    assert time.perf_counter() - begin < 90
    assert judge([check("regex", pattern="yes", case=False, full=True)], ["  YES\n"]) == [True]


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


def test_schemas() -> None:
    pytest.importorskip("jsonschema")
    answers = {
        '{"a": 1}': True,
        ' {"a": 1}\n': True,
        '{"a": "1"}': False,
        '{"a": 1, "b": 2}': False,
        '```json\n{"a": 1}\n```': True,
        'Here you are:\n```json\n{"a": 1}\n```': False,
        '{"a": 1} Done.': False,
        '{"a": 1, "a": 1}': False,
        '{"a": NaN}': False,
        "[" * 5000: False,
        "": False,
    }
    made = judge([check("json-schema", schema=SCHEMA)] * len(answers), [*answers])
    assert made == [*answers.values()]
    fenced = 'Here you are:\n```json\n{"a": 1}\n```\nAnything else?'
    assert judge([check("json-schema", schema=SCHEMA, fence="any")], [fenced]) == [True]
    assert judge([check("json-schema", schema=SCHEMA, fence="none")], ['```\n{"a": 1}\n```']) == [False]


def test_fences() -> None:
    assert unfenced("```\n1\n```", "whole") == "1"
    assert unfenced("x", "any") == "x"
    assert unfenced("```json\n[1]\n``` and ```\n[2]\n```", "any") == "[1]"


def record(tmp_path: Path, line: str) -> Any:
    file = tmp_path / "records.jsonl"
    file.write_text(line + "\n")
    return read_records(file).all


@pytest.mark.parametrize(
    ("line", "words"),
    (
        ('{"prompt": "a", "check": "regex", "pattern": "("}', "Line 1 of .* has a pattern that can't be used"),
        ('{"prompt": "a", "check": "json-schema", "schema": {"type": "objekt"}}', "has a schema that can't be used"),
        (
            '{"prompt": "a", "check": "json-schema", "schema": {"$ref": "http://127.0.0.1:9/x.json"}}',
            "has a schema that can't be used",
        ),
        ('{"prompt": "a", "check": "json-schema", "schema": {"$ref": "#"}}', "has a schema that can't be used"),
        *(
            (
                json.dumps({"prompt": "a", "check": "json-schema", "schema": schema}),
                rf"Line 1 of .* has a schema that can't be used \(.*{words}",
            )
            for schema, words in (
                ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "it points to #/\\$defs/none, which is not in it"),
                ({"properties": {"a": {"items": {"$ref": "other.json"}}}}, "it points to other.json"),
                ({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#anchor"}}}}, "it points to #anchor"),
                ({"$ref": "#/own", "own": {"properties": {"a": {"$ref": "#/none"}}}}, "it points to #/none"),
                (
                    {
                        "$schema": "http://json-schema.org/draft-07/schema#",
                        "properties": {"a": {"$ref": "#/definitions/b"}},
                    },
                    "it points to #/definitions/b",
                ),
                ({"properties": {"a": {"pattern": "("}}}, ""),
                ({"patternProperties": {"(": {}}}, ""),
            )
        ),
    ),
)
def test_broken_patterns_and_schemas_are_refused_before_a_model_is_asked(line: str, words: str, tmp_path: Path) -> None:
    if "schema" in line:
        pytest.importorskip("jsonschema")
    records = record(tmp_path, line)
    with pytest.raises(PrunekitError, match=words):
        look_at(records)


def test_references_that_are_there_are_followed() -> None:
    pytest.importorskip("jsonschema")
    tree = {
        "$id": "http://example.com/tree",
        "properties": {
            "left": {"$ref": "#"},
            "name": {"$ref": "#/$defs/name"},
            "also": {"$ref": "#named"},
            "$ref": {"type": "integer"},
            "schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        },
        "$defs": {"name": {"$anchor": "named", "type": "string"}},
        "additionalProperties": False,
    }
    answers = {
        '{"left": {"left": {"name": "a"}}}': True,
        '{"left": {"left": {"name": 1}}}': False,
        '{"also": 1}': False,
        '{"$ref": 1}': True,
        '{"schema": {"type": "objekt"}}': False,
        '{"schema": {"type": "object"}}': True,
    }
    assert judge([check("json-schema", schema=tree)] * len(answers), [*answers]) == [*answers.values()]
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"n": {"type": "null"}}}
    old["properties"] = {"a": {"$ref": "#/definitions/n"}}
    assert judge([check("json-schema", schema=old)] * 2, ['{"a": null}', '{"a": 1}']) == [True, False]


def test_a_judgement_that_breaks_is_that_records_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a package raises at one answer leaves the others as they are."""
    pytest.importorskip("jsonschema")
    broken = check("json-schema", schema={"properties": {"a": {"multipleOf": 0.5}}})

    def made(options: str) -> Any:
        def judge(answer: str) -> bool:
            return answer == "right" or bool(1 / 0)

        return judge

    monkeypatch.setattr(child, "_validator", made)
    item = {"kind": "json-schema", "options": dict(broken.options)}
    assert child._said({**item, "answer": "right"}) == {"right": True}
    assert child._said({**item, "answer": "other"}) == {"failed": "ZeroDivisionError"}
    monkeypatch.setattr(judging, "_run", lambda items: [{"right": True}, {"failed": "ZeroDivisionError"}])
    assert judge([broken] * 2, ["right", "other"]) == [True, None]
