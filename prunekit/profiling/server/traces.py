"""Requests from the user's disk: prompts, traces of others' servers, and prunekit's own request logs."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.profiling.server.config import ServerConfig
from prunekit.profiling.server.workload import Job, Workload
from prunekit.utils.files.text_stream import read_lines
from prunekit.utils.moments import seconds_since_1970
from prunekit.utils.names import printable

_MOST_TOKENS = 1 << 20
# Lines, and requests, that are read at all.
_MOST_LINES = 10_000_000
_MOST_JOBS = 100_000
_BURST = ("Timestamp", "Request tokens", "Response tokens")
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_LOG_TIMES = ("ts", "timestamp", "time")
_IN = ("n_in", "input_length", "gen_ai.usage.input_tokens", "prompt_tokens")
_OUT = ("n_out", "output_length", "gen_ai.usage.output_tokens", "completion_tokens")


def load_workload(config: ServerConfig, run_id: str) -> Workload:
    """What ``config`` names. Raises PrunekitError where a file can't be read, or no line of it is a request."""
    path = config.prompts or config.trace
    if path is None:
        return Workload(config, "synthetic", run_id, format="synthetic")
    # More than is sent: rows of a trace need not be in the order of their times, and each load, and each rate of a
    # search, sends texts of its own while there are any.
    reader = _Reader(path, is_trace=config.trace is not None, tokens=config.tokens)
    jobs: list[Job] = []
    for job in reader.jobs():
        jobs.append(job)
        if len(jobs) >= _MOST_JOBS:
            break
    if not jobs:
        what = (
            "trace: BurstGPT's or Azure's CSV, JSONL with timestamp, input_length and output_length, or a request log"
        )
        raise PrunekitError(
            f"No line of {path} is a request ({reader.bad:,} were read); give a "
            + (f"{what}." if config.trace is not None else 'JSONL file of rows like {"prompt": "..."}.')
        )
    if config.trace is not None:
        jobs.sort(key=lambda job: job.at or 0.0)
    kind = "trace" if config.trace is not None else "prompts"
    return Workload(config, kind, run_id, tuple(jobs), reader.bad, reader.format, reader.digest.hexdigest())


class _Reader:
    """Reads jobs line by line. ``bad`` counts lines that are none, ``format`` says which format the lines have."""

    def __init__(self, path: Path, *, is_trace: bool, tokens: int):
        self.path, self.is_trace, self.tokens = path, is_trace, tokens
        self.bad, self.format = 0, ""
        self.digest = hashlib.sha256()

    def jobs(self) -> Iterator[Job]:
        lines = read_lines(self.path)
        head: list[str] | None = None
        begun = False
        for number, line in enumerate(lines):
            if number >= _MOST_LINES:
                return
            if not line.strip():
                continue
            self.digest.update(line.encode("utf-8", "replace") + b"\n")
            first, begun = not begun, True
            if first and self.is_trace and not line.lstrip().startswith("{"):
                head = self._header(line)
                continue
            try:
                job = self._row(dict(zip(head, next(csv.reader([line])), strict=False))) if head else self._json(line)
            except (ValueError, KeyError, TypeError, RecursionError, StopIteration, csv.Error, OverflowError):
                job = None
            if job is None:
                self.bad += 1
            else:
                yield job

    def _header(self, line: str) -> list[str]:
        names = [each.strip() for each in next(csv.reader([line]))]
        for label, wanted in (("BurstGPT CSV", _BURST), ("Azure CSV", _AZURE)):
            if set(wanted) <= set(names):
                self.format = label
                return names
        raise PrunekitError(
            f"The first line of {self.path} names no columns of a trace that is known ({printable(line[:80])}); "
            f"BurstGPT's has {', '.join(_BURST)}, Azure's {', '.join(_AZURE)}."
        )

    def _row(self, row: Mapping[str, str]) -> Job | None:
        time, read, written = (row[name] for name in (_BURST if self.format.startswith("Burst") else _AZURE))
        # BurstGPT has rows of requests that failed: nothing was written.
        return self._job(_seconds(time), int(float(read)), int(float(written)))

    def _json(self, line: str) -> Job | None:
        row = json.loads(line)
        if not isinstance(row, dict):
            return None
        prompt, messages = _text(row)
        if not self.is_trace:
            self.format = self.format or "prompts (JSONL)"
            tokens = _first(row, ("max_tokens", *_OUT), self.tokens)
            return None if prompt is None and messages is None else Job(prompt, 0, _bounded(tokens), None, messages)
        log = "input_length" not in row
        self.format = self.format or ("request log" if log else "Mooncake or Bailian JSONL")
        when = next(row[name] for name in _LOG_TIMES if name in row)
        # Mooncake's times are whole milliseconds, Bailian's are seconds.
        at = when / 1000 if not log and isinstance(when, int) else _seconds(when)
        return self._job(at, _first(row, _IN, None), _first(row, _OUT, None), prompt, messages)

    def _job(
        self,
        at: float,
        read: Any,
        written: Any,
        prompt: str | None = None,
        messages: tuple[dict[str, Any], ...] | None = None,
    ) -> Job | None:
        if int(written) <= 0 or int(read) <= 0:
            return None
        return Job(prompt, _bounded(read), _bounded(written), at, messages)


def _text(row: Mapping[str, Any]) -> tuple[str | None, tuple[dict[str, Any], ...] | None]:
    """The prompt or the messages of a row; neither where it has none."""
    prompt = row.get("prompt", row.get("text"))
    if isinstance(prompt, str) and prompt.strip():
        return prompt, None
    messages = row.get("messages")
    if isinstance(messages, list) and messages and all(isinstance(each, dict) and "role" in each for each in messages):
        # What the model answered then is not asked again.
        end = len(messages) - (messages[-1]["role"] == "assistant")
        return None, tuple(messages[:end]) or None
    return None, None


def _first(row: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    return next((row[name] for name in names if isinstance(row.get(name), int | float)), default)


def _bounded(value: Any) -> int:
    return max(1, min(_MOST_TOKENS, int(value)))


def _seconds(value: Any) -> float:
    """Seconds of a number, or of a date and time."""
    try:
        made = seconds_since_1970(float(value))
    except ValueError:
        made = seconds_since_1970(str(value))
    if not abs(made) < 1e12:
        raise ValueError("no time")
    return made
