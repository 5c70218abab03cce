"""Answers of models, kept in a file as they are made, so that a run that was stopped asks only what is missing."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.strict_json import parse

NAME = "answers.jsonl"
_FORMAT = "prunekit-answers"
_HEAD = json.dumps({"format": _FORMAT, "version": 1})
STOP, LENGTH = "stop", "length"
"""How an answer ends: by the model's own end, or at the limit of tokens."""


@dataclass(frozen=True)
class Answer:
    """What a model answered: its ``text``, how many ``tokens`` that is (None: the server does not tell), and how it
    ``finish``-ed; or the kind of ``error`` because of which there is none. ``detail`` is what the server said of it: it
    may hold the prompt, and is shown where texts are."""

    text: str = ""
    tokens: int | None = None
    finish: str = STOP
    error: str | None = None
    detail: str = ""

    @property
    def truncated(self) -> bool:
        return self.finish == LENGTH


class AnswerFile:
    """The answers that lie in a file, by their keys, and a place for more. Failures are not kept: they are asked again.

    ``fresh`` are the keys that were written since the last run that came to its end: answers of endpoints, behind which
    the model may have been changed, are only taken from there.
    """

    def __init__(self, handle: IO[bytes]):
        self._handle = handle
        self.kept: dict[str, Answer] = {}
        self.fresh: set[str] = set()

    def read(self, path: Path) -> None:
        """Take what the file holds. A last line that was cut off is taken away; answers of other broken lines are asked
        again. Raises PrunekitError where it does not begin as prunekit's do: it is left as it is."""
        self._handle.seek(0)
        end = 0
        for number, line in enumerate(self._handle):
            whole = line.endswith(b"\n")
            # The head itself may be cut off, in a run that was killed at once.
            if number == 0 and line.rstrip() != _HEAD.encode() and (whole or not _HEAD.encode().startswith(line)):
                raise PrunekitError(f"{path} holds no answers that prunekit wrote; move it away, or choose another -o.")
            if not whole:
                break
            end += len(line)
            if number:
                self._take(line)
        self._handle.seek(end)
        self._handle.truncate()
        if end == 0:
            self._write(_HEAD)

    def _take(self, line: bytes) -> None:
        try:
            said = parse(line)
            if said.get("finished") is True:
                self.fresh.clear()
                return
            key, made = said["key"], Answer(said["text"], said["tokens"], said["finish"])
            if not (isinstance(key, str) and isinstance(made.text, str) and made.finish in (STOP, LENGTH)):
                raise ValueError(key)
            if made.tokens is not None and not isinstance(made.tokens, int):
                raise ValueError(made.tokens)
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        self.kept[key] = made
        self.fresh.add(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        self.kept[key] = answer
        self.fresh.add(key)
        self._write(json.dumps({"key": key, "text": answer.text, "tokens": answer.tokens, "finish": answer.finish}))

    def end(self) -> None:
        """The run has come to its end."""
        self._write(json.dumps({"finished": True}))

    def _write(self, line: str) -> None:
        self._handle.write(line.encode() + b"\n")
        # Past this process's own memory: a kill loses nothing that was written.
        self._handle.flush()


@contextmanager
def answer_file(folder: Path) -> Iterator[AnswerFile]:
    """The file of answers in ``folder``, for this process alone. It holds texts, so that only its owner may read it.

    Raises PrunekitError where it can't be used, or another process uses it.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not stat.S_ISREG(os.lstat(path).st_mode)):
            raise PrunekitError(f"{path} is no regular file; move it away, or choose another -o.")
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600), "r+b")
    except OSError as error:
        raise PrunekitError(f"{path} can't be written: {error.strerror or error}; choose another -o.") from None
    with handle:
        _lock(handle, folder)
        made = AnswerFile(handle)
        made.read(path)
        yield made


def _lock(handle: Any, folder: Path) -> None:
    """The system drops the lock with the process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PrunekitError(f"Another process writes answers to {folder}; wait for it, or choose another -o.") from None
    except OSError:
        pass  # a file system without locks
