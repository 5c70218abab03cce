"""What was measured so far, as a JSON file that is whole at every moment: a session may be cut off at any."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common.failures import DeviceLost, describe
from prunekit.utils.files.atomic import rewrite_text

# 1 was that of the files of November 2026, with parts instead of blocks.
SCHEMA = 2
# Exit code of a process whose GPU context is dead: the supervisor starts another, which goes on after the failed one.
DEVICE_LOST = 75
REHEARSAL = (
    "No GPU: this is a rehearsal on the CPU with tiny shapes, the Triton kernels in Triton's interpreter. "
    "Nothing here is a measurement."
)

Record = dict[str, Any]


def write_json(path: Path, data: Any) -> None:
    """Atomically, with a rename; NaN and infinity are refused."""
    rewrite_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Seconds between writes where measurements are shorter: hundreds of checks would else spend their time writing.
WRITE_S = 0.5


def running_path(path: Path) -> Path:
    """The small file beside a block's own that says what is being measured."""
    return path.with_suffix(".running")


class Recorder:
    """The file of one block. Takes up where an earlier process stopped, and leaves out what it was doing then.

    ``seconds`` is how long the block may take, ``deadline`` a clock time (seconds since 1970) after which nothing new
    begins; None: no end.
    """

    def __init__(
        self, path: Path, block: str, header: Record, *, seconds: float | None = None, deadline: float | None = None
    ):
        self._path = path
        self._written = 0.0
        self.data: Record = {
            "schema": SCHEMA,
            "block": block,
            "status": "running",
            **header,
            "spent_s": 0.0,
            "records": [],
            "not_reached": [],
        }
        if path.exists():
            self.data = read_json(path)
        running = running_path(path)
        if running.exists():
            last = read_json(running)
            # A process may also have died behind a measurement that is recorded.
            if last["id"] not in {record["id"] for record in self.data["records"]}:
                why = last.get("error") or "the process died or hung in this measurement"
                self.data["records"].append({"id": last["id"], **last["fields"], "error": why})
            self.data["spent_s"] += max(0.0, min(time.time() - last["since"], last["limit_s"]))
        self._done = {record["id"] for record in self.data["records"]}
        self.data["not_reached"] = []
        self.data["status"] = "running"
        self._before, self._began = self.data["spent_s"], time.time()
        ends = [] if deadline is None else [deadline]
        if seconds is not None:
            ends.append(self._began + seconds - self._before)
        self._deadline = min(ends, default=float("inf"))
        self._write()
        running.unlink(missing_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds in which something may still begin."""
        return self._deadline - time.time()

    def has(self, name: str) -> bool:
        """Whether ``name`` is measured."""
        return name in self._done

    def measure(
        self, name: str, fields: Record, function: Callable[[], Record], *, limit_s: float, needs_s: float = 0.0
    ) -> Record | None:
        """Add ``function()`` under the id ``name``, with ``fields``; an exception becomes the record's ``error``.

        The supervisor ends the process where it takes longer than ``limit_s``. Not reached where less than ``needs_s``
        is left. Returns the record; None where it was not reached, or an earlier process had measured it.
        """
        if name in self._done:
            return None
        if self.left_s < needs_s:
            self.data["not_reached"].append(name)
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
        self._done.add(name)
        if record["took_s"] > WRITE_S or time.monotonic() - self._written > WRITE_S:
            self._write()
        return record

    def finish(self) -> None:
        """Nothing more will come."""
        self.data["status"] = "out of time" if self.data["not_reached"] else "complete"
        self._write()
        running_path(self._path).unlink(missing_ok=True)

    def _write(self) -> None:
        self.data["spent_s"] = round(self._before + time.time() - self._began, 3)
        write_json(self._path, self.data)
        self._written = time.monotonic()
