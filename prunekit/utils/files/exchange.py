"""Renames that fail rather than replace, and two names that change places in one step.

Linux and macOS have a system call for both. Where a filesystem lacks it, the nearest thing is done that loses nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

# The flags of Linux's renameat2 and of macOS's renamex_np.
_NEW, _SWAP = (1, 2) if sys.platform != "darwin" else (4, 2)
# What a kernel or a filesystem answers that does not know a flag.
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_HERE = -100  # AT_FDCWD


@cache
def _system_call() -> Callable[[bytes, bytes, int], int] | None:
    """Renames with flags; None where the C library has no such function."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        at = library.renameat2
        at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        return lambda old, new, flags: int(at(_HERE, old, _HERE, new, flags))
    if hasattr(library, "renamex_np"):
        plain = library.renamex_np
        plain.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint)
        return lambda old, new, flags: int(plain(old, new, flags))
    return None


def rename_with(old: Path, new: Path, flags: int) -> bool:
    """Rename by the system call. False where it does not exist here. Raises OSError where it fails."""
    call = _system_call()
    if call is None:
        return False
    if call(os.fsencode(old), os.fsencode(new), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(old), None, str(new))


def rename_new(old: Path, new: Path) -> None:
    """Rename ``old`` to ``new``, which must not exist. Raises FileExistsError where it does, be it a broken link."""
    if rename_with(old, new, _NEW):
        return
    if os.name != "posix":
        os.rename(old, new)  # fails where the name is taken
    elif stat.S_ISDIR(os.lstat(old).st_mode):
        _rename_folder(old, new)
    else:
        _rename_file(old, new)


def _rename_folder(old: Path, new: Path) -> None:
    # Making a folder fails where the name is taken, and a folder may only be renamed to one that is empty.
    os.mkdir(new)
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from None
        os.rmdir(new)
        raise


def _rename_file(old: Path, new: Path) -> None:
    try:
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this filesystem: hold the name with an empty file.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(old, new)
    else:
        os.unlink(old)


def swap(new: Path, old: Path, aside: Path) -> Path:
    """Give the folder ``new`` the name of the folder ``old``, in one step where the system can. Returns where the old
    one lies afterwards: at ``new``, or at ``aside``, a free name, which it took first."""
    if rename_with(new, old, _SWAP):
        return new
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    return aside


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all files below it, is on the disk, so that a power cut can't empty them."""
    if path.is_dir():
        for entry in os.scandir(path):
            if not entry.is_symlink():
                sync(Path(entry.path))
    elif not path.is_file():
        return
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # not readable by its owner: nothing more can be done for it
    try:
        os.fsync(handle)
    except OSError as error:
        # Some filesystems have no fsync for folders.
        if error.errno not in (*_UNKNOWN, errno.EBADF, errno.EACCES, errno.EROFS):
            raise
    finally:
        os.close(handle)
