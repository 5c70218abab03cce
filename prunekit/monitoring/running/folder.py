"""The folder of a watch: history.jsonl, state.json, watch.json, and a lock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import read_json, rewrite_text
from prunekit.utils.names import printable

STATE, HISTORY, WATCH, COMMAND_LOG = "state.json", "history.jsonl", "watch.json", "alarm.log"
_STATE_FORMAT, _WATCH_FORMAT, _VERSION = "prunekit-watch-state", "prunekit-watch", 1
_ROW = b'{"format": "prunekit-watch-window"'


class Folder:
    """Where one watch keeps what it needs to go on. Whatever ends a run, state.json is whole, and history.jsonl is cut
    back to what it tells of when the next run begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._history: Any = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else watches here while the block runs. Raises PrunekitError where somebody does."""
        from filelock import FileLock, Timeout

        self._make()
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise PrunekitError(
                f"Another `prunekit watch run` works in {printable(str(self.path))}; wait for it, or choose another "
                "folder with --output."
            ) from None
        except OSError as error:
            raise PrunekitError(
                f"{printable(str(self.path))} can't be written to ({error.strerror or error}); choose another folder."
            ) from None
        try:
            yield
        finally:
            if self._history is not None:
                self._history.close()
            lock.release()

    def _make(self) -> None:
        shown = printable(str(self.path))
        if self.path.exists() and not self.path.is_dir():
            raise PrunekitError(f"{shown} is a file; give the name of a folder with --output.")
        if not self.path.parent.is_dir():
            raise PrunekitError(f"The folder {self.path.parent} does not exist; make it, or write elsewhere.")
        found = self.path.is_dir() and any(self.path.iterdir())
        if found and not any((self.path / name).exists() for name in (STATE, ".lock")):
            raise PrunekitError(f"{shown} holds other things than a watch; choose another folder with --output.")
        with suppress(FileExistsError):
            self.path.mkdir()

    def read_state(self, baseline: str) -> dict[str, Any]:
        """What the last run left, {} where there was none. Raises PrunekitError where it is damaged or of another
        ``baseline`` (its SHA-256)."""
        path = self.path / STATE
        if not path.exists():
            return {}
        data = read_json(path, "state")
        if not isinstance(data, dict) or data.get("format") != _STATE_FORMAT or data.get("version") != _VERSION:
            raise PrunekitError(f"{printable(str(path))} is no state of a watch; choose another folder with --output.")
        if data.get("baseline") != baseline:
            raise PrunekitError(
                f"The watch in {printable(str(self.path))} goes on from another baseline; choose another folder with "
                "--output for the new one."
            )
        return data

    def open_history(self, size: int) -> None:
        """Cut the history back to ``size`` bytes, which state.json tells of, and write on from there."""
        path = self.path / HISTORY
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise PrunekitError(f"{printable(str(path))} is no regular file; move it away.")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as handle:
                ours = handle.read(len(_ROW)) == _ROW
            if not ours or path.stat().st_size < size:
                raise PrunekitError(
                    f"{printable(str(path))} is not what this watch wrote there; move it away, and state.json with it."
                )
        self._history = path.open("ab")
        self._history.truncate(size)

    def add_row(self, row: dict[str, Any]) -> None:
        """Add one window to the history."""
        line = json.dumps({"format": "prunekit-watch-window", **row}, allow_nan=False)
        self._history.write(line.encode() + b"\n")

    def write_state(self, state: dict[str, Any]) -> None:
        """Keep the history so far and ``state``, so that the next run goes on from here."""
        self._history.flush()
        os.fsync(self._history.fileno())
        size = os.fstat(self._history.fileno()).st_size
        data = {"format": _STATE_FORMAT, "version": _VERSION, "history_bytes": size, **state}
        rewrite_text(self.path / STATE, json.dumps(data, allow_nan=False) + "\n")

    def write_watch(self, watch: dict[str, Any]) -> None:
        """The summary that `prunekit report` reads."""
        data = {"format": _WATCH_FORMAT, "version": _VERSION, **watch}
        rewrite_text(self.path / WATCH, json.dumps(data, indent=1, allow_nan=False) + "\n")
