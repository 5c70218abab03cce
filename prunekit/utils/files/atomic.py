"""Writing so that nothing half-written is left and nothing of the user's is lost, and reading JSON with errors that
help."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.files.exchange import rename_new, swap, sync, sync_entry
from prunekit.utils.files.full_disk import no_room
from prunekit.utils.files.leftovers import (
    Claim,
    claim_file,
    claim_folder,
    erase,
    forget,
    free_name,
    is_inside_claim,
    missing_parents,
    output_of,
    remove,
    sweep_and_tell,
)
from prunekit.utils.files.replacing import Kind, Snapshot, check_file, check_folder, check_place, snapshot
from prunekit.utils.files.strict_json import parse, read_regular
from prunekit.utils.names import printable
from prunekit.utils.process.stopping import undisturbed


def _explain(error: OSError, path: Path) -> PrunekitError:
    return _refused(error.strerror or str(error), path)


def _refused(why: str, path: Path, owned: bool = False) -> PrunekitError:
    what = "name another folder in PRUNEKIT_CACHE" if owned else "choose another place"
    return PrunekitError(
        f"Could not write {output_of(path)}: {why}. Free some space or {what}; nothing was left behind."
    )


def check_output_file(
    path: Path, overwrite: bool = False, *, what: str | None = None, inputs: Iterable[Path] = ()
) -> None:
    """Raises PrunekitError where a file can't be written at ``path``, before any long work is done.

    A file that exists is replaced only with ``overwrite``, and only if it is a ``what`` that prunekit wrote (see
    :func:`~prunekit.utils.files.replacing.check_file`) and none of ``inputs``. Takes away what dead runs left there.
    """
    if path.is_dir():
        raise PrunekitError(f"{path} is a folder; give the name of a file to write.")
    # A device would be replaced by a file of its name.
    if path.exists() and not path.is_file():
        raise PrunekitError(f"{path} is no regular file; give the name of a file to write.")
    if not path.parent.is_dir():
        raise PrunekitError(f"The folder {path.parent} does not exist; make it, or write elsewhere.")
    if not os.access(path.parent, os.W_OK):
        raise PrunekitError(f"The folder {path.parent} can't be written to; choose another place.")
    _sweep(path)
    if os.path.lexists(path):
        if not overwrite:
            raise PrunekitError(f"{path} already exists; choose another name, or say --overwrite to replace it.")
        check_place(path, inputs)
        check_file(path, what)


def check_output_folder(
    path: Path, overwrite: bool = False, *, kind: Kind | None = None, inputs: Iterable[Path] = ()
) -> Snapshot | None:
    """Raises PrunekitError where a folder can't be made at ``path``: its name is taken, or its parent can't be written.

    A folder that exists is replaced only with ``overwrite``, and only if prunekit wrote it as ``kind`` (None: as
    anything), all of it, and it holds none of ``inputs``: what a run reads. Returns what is in it now, None where there
    is none. Takes away what dead runs left there.
    """
    # A fresh path may need several folders: the nearest one that exists must be writable.
    parent = path.absolute().parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    _sweep(path)
    if os.path.lexists(path):
        if not overwrite:
            raise PrunekitError(f"{path} already exists; choose another name, or say --overwrite to replace it.")
        if path.exists() and not path.is_dir():
            raise PrunekitError(f"{path} is a file; give the name of a folder to write.")
        check_place(path, inputs)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PrunekitError(f"{path} can't be made, because {parent} can't be written to; choose another place.")
    return check_folder(path, kind) if os.path.lexists(path) else None


def _sweep(path: Path) -> None:
    path = path.absolute()
    if not is_inside_claim(path):
        sweep_and_tell(path.parent, path.name)


def write_text(
    path: Path, text: str, overwrite: bool = False, *, what: str | None = None, inputs: Iterable[Path] = ()
) -> None:
    """Write ``text`` to a temporary neighbour of ``path``, which gets its name when it is whole.

    Raises PrunekitError where that fails, or where the name is taken, as :func:`check_output_file` says.
    """
    write_bytes(path, text.encode(), overwrite, what=what, inputs=inputs)


def write_bytes(
    path: Path, data: bytes, overwrite: bool = False, *, what: str | None = None, inputs: Iterable[Path] = ()
) -> None:
    """:func:`write_text` for bytes."""
    check_output_file(path, overwrite, what=what, inputs=inputs)
    _write(path, data, replace=overwrite, durable=not is_inside_claim(path.absolute()))


def rewrite_text(path: Path, text: str, *, durable: bool = False) -> None:
    """:func:`rewrite_bytes` for text."""
    rewrite_bytes(path, text.encode(), durable=durable)


def rewrite_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file whose name is prunekit's own, such as in its cache: what is there is replaced. Where it is to be
    ``durable``, it has reached the disk afterwards.

    Raises PrunekitError where that fails."""
    if path.is_dir():
        raise PrunekitError(f"{path} is a folder, where prunekit keeps a file; move it away.")
    _sweep(path)
    _write(path, data, replace=True, durable=durable)


def keep_bytes(path: Path, data: bytes) -> None:
    """Keep a result in the cache, so that it needn't be computed again. Where that is impossible, one line on stderr
    says so, and the run goes on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rewrite_bytes(path, data)
    except (OSError, PrunekitError) as error:
        why = (error.strerror or error) if isinstance(error, OSError) else str(error).partition(". ")[0]
        _tell_once(path.parent, f"prunekit: results are not kept in {path.parent} for the next time ({why})")


_told: set[Path] = set()


def _tell_once(about: Path, line: str) -> None:
    if about not in _told:
        _told.add(about)
        print(printable(line), file=sys.stderr)  # noqa: T201


def _write(path: Path, data: bytes, *, replace: bool, durable: bool) -> None:
    path = path.absolute()
    claim = None
    try:
        claim = claim_file(path.parent, path.name)
        with claim.path.open("wb") as handle:
            handle.write(data)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        with undisturbed():
            if replace:
                os.replace(claim.path, path)
            else:
                _name_new(claim, path)
            forget(claim)
        if durable:
            sync_entry(path.parent)
    except OSError as error:
        raise _explain(error, path) from None
    finally:
        if claim is not None:
            remove(claim)


@contextmanager
def new_folder(
    path: Path,
    overwrite: bool = False,
    *,
    kind: Kind | None = None,
    inputs: Iterable[Path] = (),
    owned: bool = False,
) -> Iterator[Path]:
    """A temporary neighbour that becomes ``path`` when the block ends well, and vanishes when it doesn't.

    Raises PrunekitError where ``path`` exists or can't be written, as :func:`check_output_folder` says. What appears or
    changes under the name meanwhile is not replaced: the result gets another name then, which the error tells.
    ``owned`` is for names that are prunekit's own, such as in its cache: whatever is there is replaced.
    """
    if owned:
        _sweep(path)
        before = snapshot(path) if path.is_dir() else None
    else:
        before = check_output_folder(path, overwrite, kind=kind, inputs=inputs)
    path = path.absolute()
    claim = None
    with missing_parents(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            claim = claim_folder(path.parent, path.name)
            yield claim.path
            if not is_inside_claim(path):
                _open_up(claim.path)
                sync(claim.path)
            with undisturbed():
                _publish(claim, path, before, owned)
        except OSError as error:
            raise _refused(error.strerror or str(error), path, owned) from None
        except Exception as error:
            why = None if claim is None else no_room(error, claim.path)
            if why is not None and not (isinstance(error, PrunekitError) and "Free some space" in str(error)):
                raise _refused(why, path, owned) from None
            # A name that is gone when it is read says nothing.
            if claim is not None and isinstance(error, PrunekitError) and str(claim.path) in str(error):
                raise PrunekitError(str(error).replace(str(claim.path), str(path))) from error
            raise
        finally:
            # Nothing is left of it where it got its name.
            if claim is not None:
                remove(claim)


def _open_up(folder: Path) -> None:
    """Give all files below ``folder`` the rights of its own, whatever rights a library gave them: safetensors writes
    for the owner alone, others for everyone. The folder has those of the user's umask."""
    rights = folder.stat().st_mode & 0o777
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            if path.is_symlink():
                continue
            mode = path.stat().st_mode & 0o777
            wanted = rights if name in folders else (rights & 0o666) | (mode & rights & 0o111)
            if mode != wanted:
                path.chmod(wanted)


def _publish(claim: Claim, path: Path, before: Snapshot | None, owned: bool) -> None:
    """Give a finished folder its name. ``before`` is what had been there when it was last checked."""
    if before is None or not os.path.lexists(path):
        _name_new(claim, path)
        old = None
    else:
        if not owned and (path.is_symlink() or not path.is_dir() or snapshot(path) != before):
            raise _kept(claim, path, "changed")
        old = swap(claim.path, path, free_name(path.parent, path.name, "old"))
    forget(claim)
    if not is_inside_claim(path):
        sync_entry(path.parent)
    if old is not None:
        erase(old)


def _name_new(claim: Claim, path: Path) -> None:
    try:
        rename_new(claim.path, path)
    except FileExistsError:
        raise _kept(claim, path, "appeared") from None


def _kept(claim: Claim, path: Path, what: str) -> PrunekitError:
    """Hours of work are not thrown away because a name was taken: the result gets another one."""
    for number in range(1, 1000):
        other = path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            rename_new(claim.path, other)
        except FileExistsError:
            continue
        forget(claim)
        return PrunekitError(f"{path} {what} while this ran, so it was not replaced; the result is in {other}.")
    raise OSError(errno.EEXIST, "it is taken, and so are 999 names like it")


def cache_folder() -> Path:
    """Where converted models and measurements are kept: PRUNEKIT_CACHE, else prunekit in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("PRUNEKIT_CACHE")
    try:
        if own:
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunekit"
    except RuntimeError:  # HOME is not set, and the system does not know the user
        raise PrunekitError(
            "No home folder is known to keep converted models and measurements in; name a folder in the environment "
            "variable PRUNEKIT_CACHE."
        ) from None


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file. Raises PrunekitError where it is missing, no file, or not JSON. ``what`` names it."""
    try:
        return parse(read_regular(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise PrunekitError(f"The {what} {path} does not exist; check the path.") from None
    except IsADirectoryError:
        raise PrunekitError(f"The {what} {path} is a folder; give the JSON file inside it.") from None
    except ValueError as error:  # not UTF-8, not JSON, or more than any such file holds
        raise PrunekitError(
            f"The {what} {path} is not valid JSON ({error}); it may be cut short. Make it again."
        ) from None
    except OSError as error:
        raise PrunekitError(f"The {what} {path} can't be read: {error.strerror or error}.") from None
