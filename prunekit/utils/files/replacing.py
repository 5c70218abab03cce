"""What ``--overwrite`` may replace: what prunekit wrote, whole and alone, and nothing that the run itself reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.strict_json import parse, read_regular
from prunekit.utils.names import printable

# What file managers leave in folders by themselves; Python leaves .pyc files in folders of their own.
_DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini"}
_COMPILED = "__pycache__"
_MOST = 64 * 2**20
PICTURE_MARK = "Made by prunekit"
PAGE_MARK = "prunekit report"
_PAGE = b"<!doctype html>"


@dataclass(frozen=True)
class Kind:
    """A folder that prunekit writes: ``what`` it is in words, ``manifest`` the file in it that lists all others with
    their SHA-256 under "files", ``format`` what that file says it is."""

    what: str
    manifest: str
    format: str


CHECKPOINT = Kind("model that prunekit wrote", "prunekit.json", "prunekit-checkpoint")
EXPORT = Kind("export", "prunekit-export.json", "prunekit-export")
PROFILE = Kind("exported profile", "prunekit-profile.json", "prunekit-profile")
DEMO = Kind("demo", "prunekit-demo.json", "prunekit-demo")
CANDIDATES = Kind("set of candidates", "prunekit-candidates.json", "prunekit-candidates-folder")
KINDS = (CHECKPOINT, EXPORT, PROFILE, DEMO, CANDIDATES)

# Of every entry below a folder what tells whether it was changed.
Snapshot = dict[str, tuple[int, int, int]]


def snapshot(folder: Path) -> Snapshot:
    """Size, time of change and inode of everything below ``folder``; links are not followed."""
    found: Snapshot = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            told = os.lstat(path)
            size = 0 if name in folders and not path.is_symlink() else told.st_size
            found[str(path.relative_to(folder))] = (size, told.st_mtime_ns, told.st_ino)
    return found


def check_place(path: Path, inputs: Iterable[Path]) -> None:
    """Raises PrunekitError where replacing ``path`` would take away what a run needs or a user stands on: an input or
    what holds one, the working folder, a home, a mount point, a link."""
    if path.is_symlink():
        raise PrunekitError(f"{path} is a link, which is not replaced; name what it leads to, or choose another name.")
    for each in inputs:
        if _holds(path, each):
            same = os.path.realpath(each) == os.path.realpath(path)
            raise PrunekitError(
                f"{path} {'is' if same else f'holds {each}, which is'} read by this very run, so it is not replaced; "
                "choose another name."
            )
    if not path.is_dir():
        return
    if _holds(path, Path.cwd()):
        raise PrunekitError(f"{path} is or holds the working folder, so it is not replaced; choose another name.")
    home = os.path.expanduser("~")
    if home != "~" and _holds(path, Path(home)):
        raise PrunekitError(f"{path} is or holds your home folder, so it is not replaced; choose another name.")
    if os.path.ismount(path):
        raise PrunekitError(f"{path} is a mount point, which can't be replaced; choose a name inside it.")


def local(*names: str | Path | None) -> tuple[Path, ...]:
    """The files and folders among ``names``; what names none (a hub id, a built-in text) is left out."""
    found = (Path(os.path.expanduser(name)) for name in names if name)
    return tuple(path for path in found if os.path.lexists(path))


def _holds(path: Path, inner: Path) -> bool:
    """True where ``inner`` is ``path`` or lies in it, by whatever names both are reached."""
    try:
        sought = os.stat(path)
        real = Path(os.path.realpath(inner))
        return any(each.exists() and os.path.samestat(os.stat(each), sought) for each in (real, *real.parents))
    except OSError:
        return False


def check_folder(path: Path, kind: Kind | None = None) -> Snapshot:
    """What is in the folder ``path``, so that it can be told whether it changes.

    Raises PrunekitError unless the folder is empty or holds what prunekit wrote as ``kind`` (None: as any), unchanged,
    and nothing else. Reads all files.
    """
    # Before they are read: what changes meanwhile must show.
    found = snapshot(path)
    if not found:
        return found
    kinds = KINDS if kind is None else (kind,)
    here = next((each for each in kinds if (path / each.manifest).is_file()), None)
    if here is None:
        what = kinds[0].what if len(kinds) == 1 else "thing that prunekit wrote"
        raise PrunekitError(f"{path} holds no {what}, so it is not replaced; choose another name.")
    _check_files(path, here, found)
    return found


def _check_files(path: Path, kind: Kind, found: Snapshot) -> None:
    listed = _listed(path / kind.manifest, kind)
    if listed is None:
        raise PrunekitError(
            f"{path / kind.manifest} does not list the files that were written with it, so {path} is not replaced; "
            "delete it yourself, or choose another name."
        )
    # Folders are not listed. One that holds something is judged by that.
    folders = {parent.as_posix() for name in (*listed, *found) for parent in Path(name).parents}
    for name in sorted(found):
        file = path / name
        posix, is_link = Path(name).as_posix(), file.is_symlink()
        if not is_link and _is_expected(file, posix, posix == kind.manifest or posix in folders):
            continue
        if posix not in listed or is_link:
            raise PrunekitError(
                f"{path} also holds {printable(name)}, which prunekit did not write, so it is not replaced; move that "
                "away, or choose another name."
            )
        if not file.is_file() or sha256(file) != listed[posix]:
            raise PrunekitError(
                f"{printable(name)} in {path} has been changed since prunekit wrote it, so the folder is not "
                "replaced; delete it yourself, or choose another name."
            )


def _is_expected(file: Path, name: str, ours: bool) -> bool:
    """True for the manifest and for folders that hold something (``ours``), and for what programs leave unasked."""
    if file.is_dir():
        return ours or file.name == _COMPILED
    parent = Path(name).parent.name
    return ours or (file.is_file() and (file.name in _DROPPINGS or (parent == _COMPILED and file.suffix == ".pyc")))


def _listed(manifest: Path, kind: Kind) -> dict[str, Any] | None:
    """The files of a manifest with their digests; None where it is damaged or of an earlier version without."""
    try:
        data = parse(read_regular(manifest, _MOST))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.get("format") != kind.format:
        return None
    files = data.get("files")
    return files if isinstance(files, dict) and files else None


def check_file(path: Path, what: str | None) -> None:
    """Raises PrunekitError unless the file ``path`` is empty or, by its beginning, a ``what`` that prunekit wrote: a
    "plan", a "latency-table", a "report", a "picture", a "page" with its "kpis" (None: any of these)."""
    try:
        with path.open("rb") as handle:
            start = handle.read(4096)
            if what in (None, "picture") and start[:4] in (b"\x89PNG", b"<?xm", b"%PDF"):
                ours = PICTURE_MARK.encode() in start + handle.read(_MOST)
            elif what in (None, "page") and start.startswith(_PAGE):
                ours = f'content="{PAGE_MARK}"'.encode() in start
            else:
                match = re.match(rb'\{\s*"format":\s*"prunekit-([a-z-]+)"', start)
                ours = match is not None and (what is None or match[1].decode() == what)
    except OSError as error:
        raise PrunekitError(f"{path} can't be read, so it is not replaced: {error.strerror or error}.") from None
    if start and not ours:
        raise PrunekitError(
            f"{path} is no {(what or 'file').replace('-', ' ')} that prunekit wrote, so it is not replaced; delete it "
            "yourself, or choose another name."
        )
