"""JSON from a file of unknown origin: bounded in size, depth and digits, with finite numbers and each key once."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

# A plan of 6 million units takes 40 MB; each of so many values takes up to 200 bytes.
MAX_BYTES = 64 << 20
_MAX_CONTAINERS = 1 << 20
_MAX_KEYS = 1 << 20
_MAX_VALUES = 1 << 23
MAX_DEPTH = 64
# Configs hold 10^30 for "no limit", in 31 digits. 40 of them are still a float's matter.
MAX_DIGITS = 40
_CHUNK = 1 << 20


def parse(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, with a clause that says why, where it is no JSON, or holds a number
    that is not finite or of more than 40 digits, a key twice in one object, or more than 64 levels of nesting."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    counts = ((b"[{", _MAX_CONTAINERS), (b":", _MAX_KEYS), (b",", _MAX_VALUES))
    if any(sum(data.count(sign) for sign in signs) > most for signs, most in counts):
        raise ValueError("it holds more values than any such file")
    try:
        made = json.loads(
            text,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep") from None
    _check_depth(made)
    return made


def read_regular(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; a pipe or a device is never waited for.

    Raises OSError where it can't be read, ValueError, with a clause that says why, where it is something else.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe, a device or a socket")
        if status.st_size > limit:
            raise ValueError(f"it has {status.st_size:,} bytes, where at most {limit:,} are read")
        blocks = []
        # Files below /proc have no size of their own, and one may grow while it is read.
        left = limit
        while left >= 0 and (block := os.read(handle, min(_CHUNK, left + 1))):
            blocks.append(block)
            left -= len(block)
        if left < 0:
            raise ValueError(f"it has more than {limit:,} bytes")
        return b"".join(blocks)
    finally:
        os.close(handle)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _finite(digits: str) -> float:
    # json.loads has already seen that it is a number.
    if len(digits) > 2 * MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} characters")
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {digits}, which is not finite")
    return value


def _short(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"a name occurs twice in one object: {twice[:60]!r}")
    return made


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
