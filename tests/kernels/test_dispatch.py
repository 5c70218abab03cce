"""The table of measurements: buckets, nearest sizes, what overrides what, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.utils import dispatch as select
from prunekit.kernels.ops.utils.dispatch import (
    OPS,
    SCHEMA,
    SHIPPED,
    bucket,
    choose,
    choosing,
    file_name,
    find,
    nearest,
    read,
)

GPU = "NVIDIA Test GPU 80GB"
CUDA = torch.device("cuda", 0)


def entry(op: str = "gated_act", choice: str = "torch", **sizes: int) -> dict[str, Any]:
    return {"op": op, "choice": choice, "us": {choice: 1.0}, **({"rows": 512, "width": 1024, "hidden": 2048} | sizes)}


def write(path: Path, *entries: dict[str, Any], gpu: str = GPU, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"schema": SCHEMA, "gpu": gpu, "provenance": {"torch": "2.13.0"}, "entries": list(entries), **changes}
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A GPU of that name, and no tables but those that a test writes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPU)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(select, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(select.VARIABLE, raising=False)
    select.reload()
    yield
    select.reload()


def test_shipped_tables_can_be_read() -> None:
    for file in SHIPPED.glob("*.json"):
        table = read(file)
        assert file.name == file_name(table.gpu)
        assert {"torch", "triton", "driver", "date", "command"} <= table.provenance.keys()


def test_defaults_are_choices() -> None:
    for name, op in OPS.items():
        assert op.default in op.choices, name
        assert choose(name, torch.device("cpu"), **dict.fromkeys(op.sizes, 100)) == op.default
        assert choose(name, CUDA, **dict.fromkeys(op.sizes, 100)) == op.default


def test_buckets() -> None:
    assert bucket("gated_act", (300, 1013)) == (512, 1024)
    assert bucket("gated_act", (1, 1)) == (1, 128)
    assert bucket("rms_norm", (512, 576)) == (512, 640)


def test_nearest_bucket_within_a_factor_of_two(tmp_path: Path) -> None:
    table = read(
        write(
            tmp_path / "t.json",
            entry(choice="torch"),
            entry(choice="triton", width=2048),
            entry(choice="torch", rows=4096),
        )
    )
    assert nearest(table, "gated_act", (400, 1013)) == "torch"
    assert nearest(table, "gated_act", (400, 1700)) == "triton"
    assert nearest(table, "gated_act", (1024, 1024)) == "torch"
    assert nearest(table, "gated_act", (2500, 1024)) == "torch"
    assert nearest(table, "gated_act", (64, 1024)) is None
    assert nearest(table, "gated_act", (512, 8192)) is None
    assert nearest(table, "rms_norm", (512, 2048)) is None
    assert nearest(None, "rms_norm", (512, 2048)) is None


def test_the_nearest_table_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = {"rows": 512, "width": 1013, "hidden": 2048}
    write(select.SHIPPED / file_name(GPU), entry(choice="torch"))
    select.reload()
    assert choose("gated_act", CUDA, **sizes) == "torch"
    write(select.user_file(GPU), entry("rms_norm", "torch"))
    select.reload()
    assert choose("gated_act", CUDA, **sizes) == "triton", "the user's table takes the place of the shipped one"
    assert choose("rms_norm", CUDA, **sizes) == "torch"
    monkeypatch.setenv(select.VARIABLE, str(write(tmp_path / "own.json", entry(choice="torch"))))
    assert choose("gated_act", CUDA, **sizes) == "torch"
    with choosing(gated_act="triton"):
        assert choose("gated_act", CUDA, **sizes) == "triton"


def test_float32_and_other_gpus_take_the_defaults() -> None:
    write(select.SHIPPED / file_name(GPU), entry(choice="torch"))
    sizes = {"rows": 512, "width": 1024}
    assert choose("gated_act", CUDA, dtype=torch.float32, **sizes) == "triton"
    assert choose("gated_act", CUDA, dtype=torch.float16, **sizes) == "torch"
    assert find("NVIDIA Other") is None


def test_a_table_of_another_gpu_is_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(select.VARIABLE, str(write(tmp_path / "t.json", gpu="NVIDIA Other")))
    with pytest.raises(PrunekitError, match=r"measured on NVIDIA Other; this GPU is NVIDIA Test GPU 80GB\."):
        choose("rms_norm", CUDA, rows=1, hidden=64)


def test_a_missing_table_is_refused_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(select.VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(PrunekitError, match=r"kernel table .*none\.json does not exist"):
        choose("rms_norm", CUDA, rows=1, hidden=64)


@pytest.mark.parametrize(
    "text, says",
    (
        ("{", "not valid JSON"),
        ("[]", "is not a table that tune wrote"),
        ('{"gpu": "x"}', "is not a table that tune wrote"),
        ('{"schema": 99}', "has schema 99; this prunekit reads 1"),
        ('{"schema": 1, "gpu": 3, "provenance": {}, "entries": []}', "lacks its gpu"),
        ('{"schema": 1, "gpu": "x", "provenance": {}, "entries": [3]}', "unknown op None in entry 0"),
        ('{"schema": 1, "gpu": "x", "provenance": {}, "entries": [{"op": ["a"]}]}', "unknown op"),
        ('{"schema": 1, "gpu": "x", "provenance": {}, "entries": [{"op": "conv"}]}', "unknown op 'conv'"),
        (
            '{"schema": 1, "gpu": "x", "provenance": {}, "entries": [{"op": "rms_norm", "choice": "liger"}]}',
            r"chooses 'liger' for rms_norm; possible are triton, torch\. Delete it, or make it again",
        ),
        (
            '{"schema": 1, "gpu": "x", "provenance": {}, "entries": [{"op": "rms_norm", "choice": ["torch"]}]}',
            r"chooses \['torch'\] for rms_norm",
        ),
        (
            '{"schema": 1, "gpu": "x", "provenance": {}, '
            '"entries": [{"op": "rms_norm", "choice": "torch", "rows": 8}]}',
            "lacks one of rows, hidden",
        ),
        (
            '{"schema": 1, "gpu": "x", "provenance": {}, '
            '"entries": [{"op": "rms_norm", "choice": "torch", "rows": 0, "hidden": 64}]}',
            "positive integers",
        ),
    ),
)
def test_malformed_tables_are_refused_in_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(PrunekitError, match=says) as refusal:
        read(file)
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)
