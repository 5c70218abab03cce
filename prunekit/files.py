"""Writing so that nothing half-written is ever left behind, and reading JSON with errors that help."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.strict_json import parse, read_regular


def _explain(error: OSError, path: Path) -> PrunekitError:
    return PrunekitError(
        f"Could not write {path}: {error.strerror or error}. Free some space or choose another place; "
        "nothing was left behind."
    )


def check_output_file(path: Path) -> None:
    """Raises PrunekitError where a file can't be written at ``path``, before any long work is done."""
    if path.is_dir():
        raise PrunekitError(f"{path} is a folder; give the name of a file to write.")
    # A device would be replaced by a file of its name.
    if path.exists() and not path.is_file():
        raise PrunekitError(f"{path} is no regular file; give the name of a file to write.")
    if not path.parent.is_dir():
        raise PrunekitError(f"The folder {path.parent} does not exist; make it, or write elsewhere.")
    if not os.access(path.parent, os.W_OK):
        raise PrunekitError(f"The folder {path.parent} can't be written to; choose another place.")


def check_output_folder(path: Path, overwrite: bool = False) -> None:
    """Raises PrunekitError where a folder can't be made at ``path``: it exists, or its parent can't be written."""
    if path.exists() and not overwrite:
        raise PrunekitError(f"{path} already exists; choose another name, or say --overwrite to replace it.")
    if path.exists() and not path.is_dir():
        raise PrunekitError(f"{path} is a file; give the name of a folder to write.")
    # A fresh path may need several folders: the nearest one that exists must be writable.
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise PrunekitError(f"{path} can't be made, because {parent} can't be written to; choose another place.")


def check_replaceable(path: Path, marker: str, what: str) -> None:
    """Raises PrunekitError where replacing ``path`` would take away something else than a ``what``, which holds a file
    ``marker``: a home folder or a repository must not vanish by a slip of the hand."""
    if path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise PrunekitError(f"{path} holds no {what}, so it is not replaced; choose another name.")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a temporary neighbour of ``path``, then rename. Raises PrunekitError where that fails."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """:func:`write_text` for bytes."""
    check_output_file(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(data)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise _explain(error, path) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary neighbour that becomes ``path`` when the block ends well, and vanishes when it doesn't.

    Raises PrunekitError where ``path`` exists (unless ``overwrite``) or can't be written.
    """
    check_output_folder(path, overwrite)
    path = path.absolute()
    # Parents that had to be made are taken away again if nothing came of it.
    made = [parent for parent in path.parents if not parent.exists()]
    temporary = None
    done = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / "replaced")
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old / "replaced", path)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
        done = True
    except OSError as error:
        raise _explain(error, path) from None
    finally:
        if not done:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in made:
                try:
                    parent.rmdir()
                except OSError:
                    break


def cache_folder() -> Path:
    """Where converted models and measurements are kept: PRUNEKIT_CACHE, else prunekit in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("PRUNEKIT_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prunekit"


def is_endless(path: Path) -> bool:
    """True for devices such as /dev/zero, which would be read until the memory is full."""
    return path.is_char_device() or path.is_block_device()


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


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
