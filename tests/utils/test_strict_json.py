"""JSON of unknown origin: what is bounded, what is refused, and that nothing is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunekit.errors import PrunekitError
from prunekit.utils.files import strict_json
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.strict_json import parse, read_regular


def test_ordinary_json() -> None:
    text = '{"a": [1, -2, 0.5, 1e-320, 1000000000000000019884624838656, true, null, "\\u00e9"], "b": {}}'
    assert parse(text) == {"a": [1, -2, 0.5, 1e-320, 1000000000000000019884624838656, True, None, "é"], "b": {}}
    assert parse("[" * 64 + "]" * 64)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("NaN", "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "not finite"),
        ("1" * 400, "400 digits"),
        ("-" + "1" * 9000, "9001 digits"),
        ("0." + "1" * 400, "402 characters"),
        ('{"a": 1, "a": 2}', "a name occurs twice in one object: 'a'"),
        ("[" * 65 + "]" * 65, "levels deep"),
        ("[" * 100_000, "levels deep"),
        ('{"a":' * 70 + "1" + "}" * 70, "levels deep"),
        ("", "Expecting value"),
    ],
)
def test_refused(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=part):
        parse(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(PrunekitError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json", "plan")


def test_only_regular_files_of_bounded_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="at most 4"):
        read_regular(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PrunekitError, match="pipe"):
        read_json(tmp_path / "pipe", "plan")
    with pytest.raises(PrunekitError, match="device"):
        read_json(Path("/dev/zero"), "plan")
    with pytest.raises(PrunekitError, match="folder"):
        read_json(tmp_path, "plan")


@pytest.mark.parametrize(
    "text", ["[" + "[]," * 100 + "1]", '{"a": [' + '{"a": 1},' * 101 + "1]}", "[" + "1," * 200 + "1]"]
)
def test_many_values(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a hundred bytes of memory and more."""
    assert parse(text)
    for name in ("_MAX_CONTAINERS", "_MAX_KEYS", "_MAX_VALUES"):
        monkeypatch.setattr(strict_json, name, 100)
    with pytest.raises(ValueError, match="more values"):
        parse(text)
