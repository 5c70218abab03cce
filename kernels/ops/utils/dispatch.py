"""Which implementation of an op to use on a GPU: from a table of measurements, or the defaults where there is none.

A table is a JSON file for one GPU model, written by ``python -m prunekit.kernels.tuning.tune`` and never by hand::

    {"schema": 1,
     "gpu": "NVIDIA H100 80GB HBM3",
     "provenance": {"torch": "2.13.0", "triton": "3.7.1", "driver": "570.00", "date": "2026-11-30", "command": "…"},
     "entries": [{"op": "gated_act", "rows": 512, "width": 1024, "choice": "triton",
                  "us": {"torch": 9.1, "triton": 3.5}}]}

Sizes are buckets: ``rows``, ``programs`` and ``head_dim`` up to a power of two, widths up to a multiple of 128. A size
that was not measured takes the choice of the nearest bucket (by the sum of |log2| over its axes), provided that no axis
is off by more than a factor of two; else the default. Tables are measured in a 16-bit dtype and hold for both; float32
always takes the defaults.

Searched for, the first one wins: the file that PRUNEKIT_KERNEL_TABLE names, the user's cache folder (where ``tune``
writes), the tables that ship in ``kernels/tables``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import PrunekitError
from prunekit.kernels.ops.utils._triton import next_power_of_2
from prunekit.kernels.ops.utils.backend import capability_of, index_of, planned_gpu
from prunekit.kernels.ops.utils.layout import padded
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.cache import cache_place

SCHEMA = 1
VARIABLE = "PRUNEKIT_KERNEL_TABLE"
SHIPPED = Path(__file__).parents[2] / "tables"


@dataclass(frozen=True)
class Op:
    """What can be chosen for one op, which of its sizes the choice depends on, and what is taken unmeasured."""

    sizes: tuple[str, ...]
    choices: tuple[str, ...]
    default: str


_POWERS_OF_TWO = ("rows", "programs", "head_dim")
# Rows of a weight, columns at a time and warps of a decode kernel's program with one row of input: 8 to 32 KB of 16-bit
# weights, of which no thread holds more than 128 numbers.
TILES = ("auto", "4x1024x4", "8x1024x4", "4x2048x4", "8x2048x4", "2x4096x4", "4x4096x4", "8x2048x8", "4x4096x8")

# Unmeasured, all is ours; decode kernels start while the one before still runs.
OPS = {
    "rms_norm": Op(("rows", "hidden"), ("triton", "torch"), "triton"),
    "add_rms_norm": Op(("rows", "hidden"), ("triton", "torch"), "triton"),
    "rms_norm_add": Op(("rows", "hidden"), ("triton", "torch"), "triton"),
    "gated_act": Op(("rows", "width"), ("triton", "torch"), "triton"),
    "qkv_rope_tile": Op(("n", "k"), TILES, "auto"),
    "linear_decode_tile": Op(("n", "k"), TILES, "auto"),
    "mlp_decode_tile": Op(("n", "k"), TILES, "auto"),
    # Of as many programs without splits, where a cache has room for ``tokens``.
    "attention_splits": Op(("programs", "tokens", "head_dim"), ("auto", "1", "2", "4", "8", "16", "32"), "auto"),
    "overlap": Op((), ("on", "off"), "on"),
}


@dataclass(frozen=True)
class Table:
    """The measurements of one GPU model: of every op, the choice for each bucket (in the order of ``Op.sizes``)."""

    path: Path
    gpu: str
    provenance: dict[str, Any]
    choices: dict[str, dict[tuple[int, ...], str]]


# An op, or an op at one bucket of sizes.
Where = str | tuple[str, tuple[int, ...]]
_forced: ContextVar[dict[Where, str]] = ContextVar("prunekit_kernels_choices", default={})  # noqa: B039 (never mutated)


@contextmanager
def choosing(at: Mapping[tuple[str, tuple[int, ...]], str] | None = None, /, **choices: str) -> Iterator[None]:
    """Within the block these ops take these choices, whatever the table says: for tests and measurements. ``at`` names
    an op and one bucket of its sizes (:func:`bucket`)."""
    forced = _forced.get().copy()
    forced.update(choices)
    for place, choice in (at or {}).items():
        forced[place] = choice
    token = _forced.set(forced)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(op: str, device: torch.device, *, dtype: torch.dtype = torch.bfloat16, **sizes: int) -> str:
    """One of ``OPS[op].choices`` for these sizes: forced, else measured on this GPU model, else the default.

    ``sizes`` are those that ``OPS[op].sizes`` names, widths padded or not. Raises PrunekitError where a table is there
    but can't be used.
    """
    known = OPS[op]
    asked = tuple(sizes[name] for name in known.sizes)
    if forced := _forced.get():
        choice = forced.get((op, bucket(op, asked))) or forced.get(op)
        if choice is not None:
            return choice
    planned = planned_gpu()
    if (planned is None and device.type != "cuda") or dtype == torch.float32:
        return known.default
    return _lookup(op, planned.name if planned else index_of(device), asked, os.environ.get(VARIABLE))


def overlapped(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether decode kernels start while the one before still runs
    (:class:`prunekit.kernels.ops.utils.launch.Launch`)."""
    return choose("overlap", device, dtype=dtype) == "on" and can_overlap(device)


def can_overlap(device: torch.device) -> bool:
    """Whether a device knows programmatic dependent launches."""
    return capability_of(device) >= (9, 0)


@lru_cache(maxsize=65536)
def _lookup(op: str, gpu: int | str, sizes: tuple[int, ...], file: str | None) -> str:
    table = _table(gpu if isinstance(gpu, str) else torch.cuda.get_device_name(gpu), file)
    return nearest(table, op, sizes) or OPS[op].default


@lru_cache
def _table(gpu: str, file: str | None) -> Table | None:
    return find(gpu, file)


def reload() -> None:
    """Read tables again at their next use."""
    _lookup.cache_clear()
    _table.cache_clear()


def bucket(op: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The bucket of sizes given in the order of ``OPS[op].sizes``."""
    return tuple(
        next_power_of_2(size) if name in _POWERS_OF_TWO else padded(size, 128)
        for name, size in zip(OPS[op].sizes, sizes, strict=True)
    )


def nearest(table: Table | None, op: str, sizes: tuple[int, ...]) -> str | None:
    """The choice of the measured bucket that is nearest, None where none is near."""
    here = bucket(op, sizes)
    found = None
    least = math.inf
    for there, choice in (table.choices.get(op, {}) if table else {}).items():
        off = [abs(math.log2(a / b)) for a, b in zip(here, there, strict=True)]
        if max(off, default=0) <= 1 and sum(off) < least:
            found, least = choice, sum(off)
    return found


def file_name(gpu: str) -> str:
    """The name of a GPU model's table."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def user_file(gpu: str) -> Path:
    """Where ``tune`` writes the table of a GPU model unless told otherwise."""
    return cache_place("kernels", make=False) / file_name(gpu)


def find(gpu: str, file: str | None = None) -> Table | None:
    """The table for a GPU model, None where it has not been measured.

    ``file``, where given, must be a table of this GPU. Raises PrunekitError where a table can't be read.
    """
    if file:
        table = read(Path(file).expanduser())
        if table.gpu != gpu:
            raise PrunekitError(
                f"{VARIABLE} names {file}, which was measured on {table.gpu}; this GPU is {gpu}. Unset the variable, "
                "or measure here with: python -m prunekit.kernels.tuning.tune"
            )
        return table
    for place in (user_file(gpu), SHIPPED / file_name(gpu)):
        if place.is_file():
            return read(place)
    return None


def read(path: Path) -> Table:
    """A table from its file. Raises PrunekitError where it is missing or not such a table."""
    data = read_json(path, "kernel table")

    def wrong(what: str) -> PrunekitError:
        return PrunekitError(
            f"The kernel table {path} {what}. Delete it, or make it again with: python -m prunekit.kernels.tuning.tune"
        )

    if not isinstance(data, dict) or "schema" not in data:
        raise wrong("is not a table that tune wrote")
    if data["schema"] != SCHEMA:
        raise wrong(f"has schema {data['schema']!r}; this prunekit reads {SCHEMA}")
    gpu, provenance, entries = data.get("gpu"), data.get("provenance"), data.get("entries")
    if not isinstance(gpu, str) or not isinstance(provenance, dict) or not isinstance(entries, list):
        raise wrong("lacks its gpu, its provenance or its entries")
    choices: dict[str, dict[tuple[int, ...], str]] = {}
    for number, entry in enumerate(entries):
        op = entry.get("op") if isinstance(entry, dict) else None
        known = OPS.get(op) if isinstance(op, str) else None
        if known is None:
            raise wrong(f"names an unknown op {op!r} in entry {number}; known are {', '.join(OPS)}")
        if entry.get("choice") not in known.choices:
            raise wrong(f"chooses {entry.get('choice')!r} for {op}; possible are {', '.join(known.choices)}")
        sizes = tuple(entry.get(name) for name in known.sizes)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise wrong(f"lacks one of {', '.join(known.sizes)} (positive integers) in entry {number}, of {op}")
        choices.setdefault(str(op), {})[bucket(str(op), sizes)] = entry["choice"]
    return Table(path, gpu, provenance, choices)
