"""What was measured so far, as a JSON file that is whole at every moment: a session may be cut off at any."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from benchmarks.common.failures import DeviceLost, describe
from prunekit.utils.files.atomic import rewrite_text

SCHEMA = 1
# Exit code of a process whose GPU context is dead: the supervisor starts another, which goes on after the failed one.
DEVICE_LOST = 75

Record = dict[str, Any]


def write_json(path: Path, data: Any) -> None:
    """Atomically, with a rename; NaN and infinity are refused."""
    rewrite_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


# Seconds between writes: hundreds of short measurements would else spend their time writing.
WRITE_S = 2.0


def running_path(path: Path) -> Path:
    """The small file beside a part's own that says what is being measured."""
    return path.with_suffix(".running")


def passed(file: Path) -> set[str]:
    """The ids of the checks that passed in an earlier run's file."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return {record["id"] for record in data["records"] if record.get("ok")}


class Recorder:
    """The file of one part. Takes up where an earlier process stopped, and leaves out what it was doing then.

    ``deadline`` is a clock time (seconds since 1970) after which nothing new begins; None: no end. ``known`` are ids
    that need no measurement.
    """

    def __init__(
        self, path: Path, part: str, header: Record, deadline: float | None = None, known: Collection[str] = ()
    ):
        self._path, self._deadline = path, deadline
        self._written = 0.0
        self.data: Record = {
            "schema": SCHEMA,
            "part": part,
            "status": "running",
            **header,
            "records": [],
            "skipped": [],
        }
        if path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))
        running = running_path(path)
        if running.exists():
            last = json.loads(running.read_text(encoding="utf-8"))
            why = last.get("error") or "the process died or hung in this measurement"
            self.data["records"].append({"id": last["id"], **last["fields"], "error": why})
        self._done = {*known, *(record["id"] for record in self.data["records"])}
        self.data["skipped"] = []
        self._write()
        running.unlink(missing_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return float("inf") if self._deadline is None else self._deadline - time.time()

    def measure(
        self, name: str, fields: Record, function: Callable[[], Record], *, limit_s: float, needs_s: float = 0.0
    ) -> Record | None:
        """Add ``function()`` under the id ``name``, with ``fields``; an exception becomes the record's ``error``.

        The supervisor ends the process where it takes longer than ``limit_s``. Skipped where less than ``needs_s`` is
        left. Returns the record; None where it was skipped, is known, or an earlier process had measured it.
        """
        if name in self._done:
            return None
        if self.left_s < needs_s:
            self.data["skipped"].append(name)
            return None
        running = {"id": name, "fields": fields, "since": time.time(), "limit_s": limit_s}
        write_json(running_path(self._path), running)
        begin = time.perf_counter()
        try:
            record = {"id": name, **fields, **function()}
            json.dumps(record, allow_nan=False)  # what can't be written fails here, and not the whole file later
        except DeviceLost as error:
            print(f"  {name}: {error}", flush=True)
            self._write()
            write_json(running_path(self._path), {**running, "error": f"{error} (nothing ran on the GPU after it)"})
            os._exit(DEVICE_LOST)  # tearing down a dead context may hang
        except Exception as error:
            record = {"id": name, **fields, "error": describe(error)}
        record["took_s"] = round(time.perf_counter() - begin, 3)
        self.data["records"].append(record)
        if time.monotonic() - self._written > WRITE_S:
            self._write()
        return record

    def finish(self) -> None:
        """Nothing more will come."""
        self.data["status"] = "out of time" if self.data["skipped"] else "complete"
        self._write()
        running_path(self._path).unlink(missing_ok=True)

    def _write(self) -> None:
        write_json(self._path, self.data)
        self._written = time.monotonic()
