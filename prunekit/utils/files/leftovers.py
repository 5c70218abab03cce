"""Temporary files and folders that tell whose they are, so that a later run can take away what a dead one left.

A name says which output it belongs to, which machine and start of it (boot), and which process. The owner holds a lock
on it while it lives, which the system drops with the process, however that ends.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.utils.files.exchange import rename_new
from prunekit.utils.names import printable
from prunekit.utils.process.stopping import undisturbed

_NAME = re.compile(
    r"\.(?P<label>.+)\.prunekit-(?P<role>new|old)-(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<pid>[0-9]+)"
    r"-[0-9a-f]{8}",
    re.DOTALL,
)
# A name has 255 bytes at most, and what is added takes about 50.
_LONGEST = 190


@dataclass(frozen=True)
class Claim:
    """A temporary file or folder of this process, locked by ``handle`` (None where there are no locks)."""

    path: Path
    handle: int | None
    pid: int


_claims: dict[Path, Claim] = {}
# Folders that hold an output which is not there yet, and were made for it, with the process that did.
_parents: dict[Path, int] = {}


def label(name: str) -> str:
    """What stands for the output ``name`` in the names of its temporary files."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()[:32]


@cache
def _machine() -> tuple[str, str]:
    """Short digests of this machine's name and of its start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = ""
    return tuple(hashlib.sha256(each.encode()).hexdigest()[:8] for each in (platform.node(), boot))  # type: ignore[return-value]


def free_name(parent: Path, name: str, role: str = "new") -> Path:
    """A name beside the output ``name`` that nothing has, in a form that :func:`sweep` knows."""
    host, boot = _machine()
    return parent / f".{label(name)}.prunekit-{role}-{host}-{boot}-{os.getpid()}-{secrets.token_hex(4)}"


def claim_folder(parent: Path, name: str, *, private: bool = False) -> Claim:
    """An empty temporary folder for the output ``name``, with the rights that any new folder has (``private``: none for
    others). Raises OSError where it can't be made."""
    return _claim(parent, name, lambda path: os.mkdir(path, 0o700 if private else 0o777))


def claim_file(parent: Path, name: str) -> Claim:
    """:func:`claim_folder` for an empty file."""
    return _claim(parent, name, lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))


def _claim(parent: Path, name: str, make: Callable[[Path], None]) -> Claim:
    while True:
        with undisturbed():
            path = free_name(parent, name)
            _claims[path] = Claim(path, None, os.getpid())
            try:
                make(path)
                handle = _lock(path)
            except BlockingIOError:
                del _claims[path]  # another run took it for a dead one's, between the two steps, and removes it
                continue
            except FileNotFoundError:
                del _claims[path]
                if parent.is_dir():
                    continue
                raise
            except BaseException:
                remove(_claims[path])
                raise
            _claims[path] = claim = Claim(path, handle, os.getpid())
            return claim


def _lock(path: Path) -> int | None:
    """Lock a file or folder. None where that is impossible here. Raises BlockingIOError where another has the lock, or
    has removed what was locked."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.lstat(path)):
            raise BlockingIOError(errno.EWOULDBLOCK, "it was replaced")
    except FileNotFoundError:
        os.close(handle)
        raise BlockingIOError(errno.EWOULDBLOCK, "it was removed") from None
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle


def forget(claim: Claim) -> None:
    """It is no temporary any more: it got its name."""
    _claims.pop(claim.path, None)
    if claim.handle is not None and claim.pid == os.getpid():
        os.close(claim.handle)


def remove(claim: Claim) -> bool:
    """Take a temporary away. False where something of it stays."""
    with undisturbed():
        erase(claim.path)
        if (gone := not os.path.lexists(claim.path)) and claim.path in _claims:
            forget(claim)
        return gone


def erase(path: Path) -> None:
    """Remove a file, or a folder with all in it, as far as the system lets."""
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except OSError:
        pass


def discard(path: Path) -> None:
    """Remove a folder that has its name. It loses that first, so that nobody finds a part of it there: what a kill
    leaves is :func:`sweep`'s. Raises OSError where it can't be renamed."""
    aside = free_name(path.parent, path.name)
    with undisturbed():
        os.rename(path, aside)
        erase(aside)


@contextmanager
def missing_parents(path: Path) -> Iterator[None]:
    """Folders above ``path`` that are missing when the block begins, and hold nothing when it ends, are taken away."""
    made = [parent for parent in path.parents if not parent.exists()]
    _parents.update(dict.fromkeys(made, os.getpid()))
    try:
        yield
    finally:
        with undisturbed():
            _remove_empty(made)
            for each in made:
                _parents.pop(each, None)


def _remove_empty(folders: list[Path]) -> None:
    for folder in sorted(folders, reverse=True):  # the inner ones first
        with suppress(OSError):
            folder.rmdir()


def is_inside_claim(path: Path) -> bool:
    """True for what lies in a temporary folder of this process: it is not yet under its name."""
    return any(parent in _claims for parent in path.parents)


def output_of(path: Path) -> Path:
    """The output that a temporary of this process is for, where ``path`` lies in one; else ``path``."""
    for place in (*reversed(path.parents), path):
        if place in _claims and (match := _NAME.fullmatch(place.name)):
            return place.with_name(match["label"])
    return path


def remove_all() -> list[Path]:
    """Take away every temporary of this process. Returns those that can't be."""
    mine = [claim for claim in _claims.values() if claim.pid == os.getpid()]
    left = [claim.path for claim in mine if not remove(claim)]
    _remove_empty([path for path, pid in _parents.items() if pid == os.getpid()])
    return left


atexit.register(remove_all)


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder for the length of the block, in ``parent`` or where the system keeps temporary files, for this user
    alone. ``name`` says what it is for. Raises PrunekitError where it can't be made."""
    folder = TemporaryFolder(name, parent)
    try:
        yield folder.path
    finally:
        folder.remove()


class TemporaryFolder:
    """:func:`temporary_folder` until nothing refers to it, or the process ends."""

    def __init__(self, name: str, parent: Path | None = None):
        try:
            place = parent or Path(tempfile.gettempdir())
            if not is_inside_claim(place / name):
                sweep_and_tell(place, name)
            claim = claim_folder(place, name, private=True)
        except OSError as error:
            raise PrunekitError(
                f"No temporary folder can be made: {error.strerror or error}. Name one that you may write to, with "
                "space, in the environment variable TMPDIR."
            ) from None
        self.path = claim.path
        self.remove = weakref.finalize(self, remove, claim)


@dataclass(frozen=True)
class Swept:
    """What :func:`sweep` did: names of what was removed, restored (an old folder whose replacement died half way), and
    left because it may belong to a live process on another machine."""

    removed: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def sweep(folder: Path, *names: str) -> Swept:
    """Take away what dead runs left in ``folder``: temporaries for the outputs ``names`` (none: for any).

    Only what has a name that nothing but this module gives, belongs to this user, and is locked by no process.
    """
    wanted = {label(name): name for name in names}
    removed: list[str] = []
    restored: list[str] = []
    left: list[str] = []
    try:
        entries = [entry for entry in os.scandir(folder) if ".prunekit-" in entry.name]
    except OSError:
        return Swept()
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None or (wanted and match["label"] not in wanted) or not _is_own(entry):
            continue
        path = Path(entry.path)
        if path in _claims:
            continue
        if not _same_machine(match):
            left.append(entry.name)
            continue
        with undisturbed():
            try:
                handle = _lock(path)
            except OSError:
                continue  # its owner lives, or it has just gone
            if handle is None:
                left.append(entry.name)
                continue
            try:
                target = folder / wanted.get(match["label"], match["label"])
                if match["role"] == "old" and not os.path.lexists(target):
                    rename_new(path, target)
                    restored.append(target.name)
                else:
                    erase(path)
                    (left if os.path.lexists(path) else removed).append(entry.name)
            except OSError:
                left.append(entry.name)
            finally:
                os.close(handle)
    return Swept(tuple(removed), tuple(restored), tuple(left))


def _is_own(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_symlink() and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except (OSError, AttributeError):
        return False


def _same_machine(match: re.Match[str]) -> bool:
    """Locks of other machines can't be seen here. Another start of this machine has ended all that ran before."""
    host, boot = _machine()
    return match["boot"] == boot or match["host"] == host


def sweep_and_tell(folder: Path, *names: str) -> None:
    """:func:`sweep`, and one line for each kind of thing it did, on stderr."""
    swept = sweep(folder, *names)
    for words, those in (
        ("removed what an earlier run that was killed left there", swept.removed),
        ("gave back its name to what an earlier run that was killed had moved aside", swept.restored),
        ("another machine may still work on these, so they were left; delete them if none does", swept.left),
    ):
        if those:
            print(f"prunekit: in {folder}: {words}: {', '.join(map(printable, those))}", file=sys.stderr)  # noqa: T201
