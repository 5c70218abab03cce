"""A folder that holds exactly the files which a list of hashes names, and is still the same when it is used."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from prunekit.errors import PrunekitError
from prunekit.utils.files.hashes import sha256

Seen = dict[str, tuple[int, ...]]
"""Each file's device, number, size and times of change, as they were when it was hashed."""

# Left by downloads and file managers, and by bench.py of an export. No runtime reads them: what they would read must be
# listed.
_NOT_OURS = (".cache", ".git", ".gitattributes", ".DS_Store", "bench.json")


def check_listed(folder: Path, files: Mapping[str, str], manifest: str) -> Seen:
    """Hash all that ``files`` (name to SHA-256; parts of a name are joined by /) lists in ``folder``.

    Raises PrunekitError that names what is missing, changed or not listed, every link that leads out of the folder, and
    whatever is neither file nor folder. ``manifest`` is the name of the file that holds the list.
    """
    for name, digest in files.items():
        if not is_plain(name) or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise PrunekitError(f"{folder / manifest} lists {name!r}, which is no file of this folder with a SHA-256.")
    parents = {str(parent) for each in files for parent in PurePosixPath(each).parents}
    for name in _walk(folder, "", parents):
        if name not in files and name != manifest:
            raise PrunekitError(
                f"{folder} holds {_shown(name)}, which its {manifest} does not list, so prunekit did not write it; "
                "move it elsewhere, or make this folder again."
            )
    seen = {manifest: _facts(folder / manifest)}
    damaged = []
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            damaged.append(name)
            continue
        before = _facts(path)
        if sha256(path) != digest:
            damaged.append(name)
        seen[name] = before
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        raise PrunekitError(
            f"{folder} is damaged: {', '.join(map(_shown, damaged[:3]))}{more} changed since it was written, or is "
            "missing. Copy it again, or make it again."
        )
    check_unchanged(folder, seen)
    return seen


def check_unchanged(folder: Path, seen: Seen) -> None:
    """Raises PrunekitError where a file is not the one that :func:`check_listed` saw."""
    for name, facts in seen.items():
        try:
            same = _facts(folder / name) == tuple(facts)
        except OSError:
            same = False
        if not same:
            raise PrunekitError(f"{folder / name} changed while it was in use; try again when nothing writes there.")


def is_plain(name: object) -> bool:
    """True for a relative path that stays in its folder, spelled the one way in which a list of files holds it."""
    return (
        isinstance(name, str)
        and name not in ("", ".")
        and name.isprintable()
        and "\\" not in name
        and ":" not in name
        and not name.startswith("/")
        and ".." not in name.split("/")
        and str(PurePosixPath(name)) == name
    )


def _walk(folder: Path, below: str, parents: set[str]) -> Iterator[str]:
    """Names of the files in ``folder``/``below`` and further down, refusing what is no plain file or folder."""
    with os.scandir(folder / below) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    root = os.path.realpath(folder)
    for entry in found:
        name = f"{below}/{entry.name}" if below else entry.name
        if not below and name in _NOT_OURS and not entry.is_symlink():
            continue
        if entry.is_symlink():
            aim = os.path.realpath(entry.path)
            if os.path.commonpath([root, aim]) != root:
                raise PrunekitError(
                    f"{folder} holds {_shown(name)}, a link that leads out of the folder; put the file itself there."
                )
        if entry.is_dir(follow_symlinks=False):
            if name not in parents:
                raise PrunekitError(
                    f"{folder} holds the folder {_shown(name)}, of which no file is listed, so prunekit did not write "
                    "it; move it elsewhere, or make this folder again."
                )
            yield from _walk(folder, name, parents)
        elif entry.is_file():
            yield name
        else:
            raise PrunekitError(f"{folder} holds {_shown(name)}, which is neither a file nor a folder; remove it.")


def _facts(path: Path) -> tuple[int, ...]:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise PrunekitError(f"{path} is no file; make this folder again.")
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
