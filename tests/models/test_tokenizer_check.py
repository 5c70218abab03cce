"""Tokenizers of strangers: what would hang, grow or crash is refused in one sentence before it is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from prunekit.data.tokenised import encode
from prunekit.errors import PrunekitError
from prunekit.models.tokenizer import check_child as tokenizer_child
from prunekit.models.tokenizer.check import try_tokenizer
from tests.support.tiny_text import tiny_tokenizer


def replacing(content: str, times: int = 1, pattern: dict[str, str] | None = None) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": pattern or {"String": "a"}, "content": content}
    return {"normalizer": {"type": "Sequence", "normalizers": [step] * times}}


def splitting(pattern: str) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


def save(folder: Path, **changes: Any) -> Path:
    tiny_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


FIXED = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
ADDED = {"id": 9999, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that the child makes, here: for what is refused before anything grows."""
    monkeypatch.setattr("prunekit.models.tokenizer.check._error", lambda path, digest: tokenizer_child.examine(path))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (replacing("b" * 10**6), r"more than 64 times as long"),
        (replacing("aa", times=40), r"more than 64 times as long"),
        (replacing("bcdefgh" * 20, pattern={"Regex": "q"}), r"more than 64 times as long"),
        ({"normalizer": {"type": "Prepend", "prepend": "b" * 10**6}}, r"more than 64 times as long"),
        ({"added_tokens": [{**ADDED, "content": "x" * 5000}]}, r"added token of more than 4,096 characters"),
        ({"added_tokens": [{**ADDED, "content": "x", "id": 2**31 - 1}]}, r"has the number 2,147,483,647"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 2**31 - 1}, "unk_token": "a"}}, r"2,147,483,647"),
    ],
)
def test_growth_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunekitError, match=message):
        try_tokenizer(save(tmp_path, **changes))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        # transformers sets both aside for each call.
        {"padding": {**FIXED, "pad_type_id": 0, "pad_token": "</s>"}},
        {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
        replacing("\u2581", pattern={"String": " "}),
        splitting(r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"),
    ],
)
def test_ordinary_tokenizers_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    try_tokenizer(save(tmp_path, **changes))


def special(times: int) -> dict[str, Any]:
    token = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokens = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    made = {"type": "TemplateProcessing", "single": [token] * times + [{"Sequence": {"id": "A", "type_id": 0}}]}
    return {"post_processor": {**made, "pair": made["single"], "special_tokens": tokens}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (splitting("(a+)+$"), r"retry-limit-in-match"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, r"precompiled_charsmap"),
        (special(1000), r"adds 1,000 special tokens"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, r"invalid value"),
    ],
)
def test_what_crashes_is_refused_by_a_child(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PrunekitError, match=message) as caught:
        try_tokenizer(save(tmp_path, **changes))
    assert "\n" not in str(caught.value) and "copy the original model's" in str(caught.value)


def test_what_takes_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunekit.models.tokenizer.check._MEMORY", 1 << 28)
    parts = [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000
    made = {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": {}}
    with pytest.raises(PrunekitError, match=r"took more memory than any tokenizer needs"):
        try_tokenizer(save(tmp_path, post_processor=made))


def without_tokenizer_json(folder: Path) -> Path:
    """One of GPT-2's kind, which transformers makes from its vocabulary and merges."""
    (folder / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


def test_a_tokenizer_without_tokenizer_json_is_tried_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try_tokenizer(without_tokenizer_json(tmp_path))
    (tmp_path / "vocab.json").write_text('{"a": -1}')
    with pytest.raises(PrunekitError, match=r"can't be loaded: .*; copy the original model's tokenizer files over it"):
        try_tokenizer(tmp_path)
    # Any code may read them then.
    try_tokenizer(tmp_path, trust_remote_code=True)
    monkeypatch.setattr("prunekit.models.tokenizer.check._IMPORTS", -19)
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    with pytest.raises(PrunekitError, match=r"computed for too long"):
        try_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"])
def test_pipes_and_devices_are_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(PrunekitError, match=r"no regular file"):
        try_tokenizer(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(PrunekitError, match=r"no regular file"):
        try_tokenizer(tmp_path)


def test_files_that_are_too_large(tmp_path: Path) -> None:
    save(tmp_path)
    for name, size in (("tokenizer_config.json", 9 << 20), ("tokenizer.json", 257 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        with pytest.raises(PrunekitError, match=f"{name} has {size:,} bytes"):
            try_tokenizer(tmp_path)
        (tmp_path / name).unlink()


def test_a_tokenizer_that_fails_on_a_text() -> None:
    class PanicException(BaseException):
        """What tokenizers raises, which is no Exception."""

    def panics(*_: Any, **__: Any) -> Any:
        raise PanicException("retry-limit-in-match over")

    with pytest.raises(PrunekitError, match=r"fails on this text .retry-limit-in-match over."):
        encode(panics, ["a"])

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(interrupted, ["a"])
