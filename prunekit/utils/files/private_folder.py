"""Folders that no other user may write to, so that what lies in them is what their owner put there."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path


def make_private(folder: Path) -> None:
    """Make ``folder`` and its missing parents, for this user alone. Raises OSError where that can't be."""
    missing = []
    place = folder
    while not place.exists():
        missing.append(place)
        place = place.parent
    for each in reversed(missing):
        try:
            each.mkdir(mode=0o700)
        except FileExistsError:
            # Another process was faster; if it was a file that appeared, the next step says so.
            if not each.is_dir():
                raise


def why_not_private(folder: Path, top: Path) -> str | None:
    """A clause that says how other users could change what ``folder`` holds, which lies in ``top`` or is it; None where
    they can't. Above ``top``, folders in which anyone may write but only move what is theirs (/tmp) will do.
    """
    if not hasattr(os, "geteuid"):
        return None
    place, top = Path(os.path.realpath(folder)), Path(os.path.realpath(top))
    for each in (place, *place.parents):
        try:
            status = each.stat()
        except OSError:
            continue
        inside = each == top or top in each.parents
        if status.st_uid not in (0, os.geteuid()):
            return f"{each} belongs to another user ({status.st_uid})"
        if _others_write(status) and (inside or not status.st_mode & stat.S_ISVTX):
            return f"other users may write to {each}"
    return None


def _others_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(group: int) -> bool:
    """Whether nobody but this user and root is in it: many systems give every user such a group, and a umask for it."""
    import grp
    import pwd

    try:
        found, me = grp.getgrgid(group), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return found.gr_name == me.pw_name and not set(found.gr_mem) - {me.pw_name, "root"}


def clear(path: Path) -> None:
    """Take away whatever lies at ``path``: a folder with all it holds, a file, a link, or nothing. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
