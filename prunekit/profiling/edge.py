"""Reading what bench.py of an export has written, on whatever machine: a stranger's file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import read_json

FORMAT, VERSION = "prunekit-bench-edge", 1
# A day: no token takes longer.
_MOST_SECONDS = 86_400.0
_LONGEST, _MOST_WORDS = 1000, 20


@dataclass(frozen=True)
class Timed:
    """Seconds of ``count`` runs: median, 20th and 80th percentile, the 95 % interval of the median (None for fewer than
    six runs); ``flags`` and ``why`` say what speaks against believing them."""

    median: float
    p20: float
    p80: float
    count: int
    interval: tuple[float, float] | None
    believed: bool
    flags: tuple[str, ...]
    why: tuple[str, ...]


@dataclass(frozen=True)
class EdgeBench:
    """What was measured of one export on one machine. ``export`` names it: target, dtype, device, the checkpoint's name
    and fingerprint (as the manifest holds them), and the SHA-256 of the manifest. ``ttft`` is the time to the first
    token, ``tpot`` that of each other one."""

    export: Mapping[str, str]
    machine: Mapping[str, Any]
    packages: Mapping[str, str]
    device: str
    config: Mapping[str, Any]
    ttft: Timed
    tpot: Timed
    peak_bytes: int | None
    before_bytes: int | None
    load: Mapping[str, Any]

    @property
    def believed(self) -> bool:
        return self.ttft.believed and self.tpot.believed


def is_edge(data: Any) -> bool:
    """Whether ``data``, parsed JSON, says that bench.py wrote it."""
    return isinstance(data, dict) and data.get("format") == FORMAT


def read_edge(path: Path | str) -> EdgeBench:
    """The file that bench.py wrote. Raises PrunekitError, which names the field, where it is something else, of another
    version, or holds what bench.py does not write."""
    return edge_of(read_json(Path(path), "result of bench.py"), str(path))


def edge_of(data: Any, where: str) -> EdgeBench:
    """As :func:`read_edge`, of JSON that was parsed already; ``where`` names it in messages."""
    if not is_edge(data):
        raise PrunekitError(f"{where} is no result of bench.py; run bench.py of an export folder, and give its file.")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise PrunekitError(
            f"{where} is of version {str(data.get('version'))[:20]} of bench.py, and this prunekit reads version "
            f"{VERSION}; export the model again, and run its bench.py."
        )
    found = _Fields(where, data)
    export = found.inner("export")
    machine, config = found.inner("machine"), found.inner("config")
    names = {name: export.text(name) for name in ("target", "dtype", "name", "device")}
    hashes = {name: export.digest(name) for name in ("fingerprint", "manifest_sha256")}
    counts = {name: config.whole(name, 1) for name in ("prompt_tokens", "new_tokens", "repeats")}
    packages = found.inner("packages")
    made = EdgeBench(
        export={**names, **hashes},
        machine={
            **{name: machine.text(name) for name in ("cpu", "os", "python")},
            "logical_cpus": machine.whole("logical_cpus", 1, none=True),
        },
        packages={name[:80]: packages.text(name) for name in list(packages.data)[:_MOST_WORDS]},
        device=found.text("device"),
        config={**counts, "warmup": config.whole("warmup", 0), "threads": config.whole("threads", 1, none=True)},
        ttft=_timed(found.inner("ttft")),
        tpot=_timed(found.inner("tpot")),
        peak_bytes=found.whole("peak_bytes", 0, none=True),
        before_bytes=found.whole("before_bytes", 0, none=True),
        load=found.inner("load").data,
    )
    if data.get("believed") is not made.believed:
        raise found.wrong("believed", "does not agree with its two figures")
    return made


class _Fields:
    """The fields of an object at ``place``, each checked when it is read."""

    def __init__(self, where: str, data: Any, place: str = ""):
        self.where, self.place = where, place
        self.data: dict[str, Any] = data

    def wrong(self, name: str, why: str) -> PrunekitError:
        return PrunekitError(
            f"{self.where} is damaged: {self.place}{name} {why}; run bench.py of the export again to make it anew."
        )

    def inner(self, name: str) -> _Fields:
        value = self.data.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "is no object")
        return _Fields(self.where, value, f"{self.place}{name}.")

    def text(self, name: str) -> str:
        value = self.data.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
            raise self.wrong(name, "is no text of ordinary length")
        return value

    def digest(self, name: str) -> str:
        value = self.text(name)
        if not re.fullmatch(r"[0-9a-f]{16,128}", value):
            raise self.wrong(name, "is no hash")
        return value

    def whole(self, name: str, least: int, *, none: bool = False) -> Any:
        value = self.data.get(name)
        if none and value is None:
            return None
        if type(value) is not int or not least <= value < 1 << 50:
            raise self.wrong(name, f"is no whole number of at least {least}")
        return value

    def seconds(self, name: str) -> float:
        return self.number(name, self.data.get(name))

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_SECONDS:
            raise self.wrong(name, "is no time in seconds")
        return float(value)

    def words(self, name: str) -> tuple[str, ...]:
        value = self.data.get(name)
        if not isinstance(value, list) or len(value) > _MOST_WORDS:
            raise self.wrong(name, "is no short list of texts")
        if not all(isinstance(each, str) and len(each) <= _LONGEST for each in value):
            raise self.wrong(name, "is no short list of texts")
        return tuple(value)


def _timed(found: _Fields) -> Timed:
    median, low, high = (found.seconds(name) for name in ("median", "p20", "p80"))
    if low > median:
        raise found.wrong("p20", "is above its median")
    if high < median:
        raise found.wrong("p80", "is below its median")
    interval = found.data.get("interval")
    if interval is not None and (not isinstance(interval, list) or len(interval) != 2):
        raise found.wrong("interval", "is no pair of times")
    made = Timed(
        median,
        low,
        high,
        found.whole("count", 1),
        None if interval is None else (found.number("interval", interval[0]), found.number("interval", interval[1])),
        found.data.get("believed") is True,
        found.words("flags"),
        found.words("why"),
    )
    if made.believed == bool(made.why):
        place = found.place.rstrip(".")
        raise _Fields(found.where, {}).wrong(place, "is believed and says why not, or the reverse")
    return made
