"""Writing leaves all or nothing; reading says what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from prunekit.errors import PrunekitError
from prunekit.utils.files.atomic import (
    check_output_folder,
    new_folder,
    read_json,
    rewrite_bytes,
    rewrite_text,
    write_text,
)
from prunekit.utils.files.hashes import sha256
from tests.support.command import listing
from tests.support.written import written


def test_rewrite_replaces_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    rewrite_text(file, "first ü")
    rewrite_bytes(file, b"second")
    assert listing(tmp_path) == {"a.txt": 6} and file.read_bytes() == b"second"


@pytest.mark.parametrize(
    ("umask", "folder", "plain"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_rights_are_those_of_any_new_file(umask: int, folder: int, plain: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "x")
        with new_folder(tmp_path / "out") as made:
            (made / "x").write_text("x")
            save_file({"a": torch.zeros(1)}, made / "w.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"a.txt": plain, "out": folder, "x": plain, "w.safetensors": plain}


def test_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with new_folder(out) as folder:
        (folder / "x").write_text("x")
        assert not out.exists() and folder.parent == out.parent and folder.name.startswith(".out.")
    assert listing(tmp_path) == {"a": None, "a/b": None, "a/b/out": None, "a/b/out/x": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_folder_vanishes_with_an_error(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(error), new_folder(tmp_path / "kept" / "made" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        raise error
    assert listing(tmp_path) == {"kept": None}


def test_an_error_names_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(PrunekitError, match=r"The file .*/out/x is wrong") as error,
        new_folder(tmp_path / "out") as folder,
    ):
        raise PrunekitError(f"The file {folder / 'x'} is wrong.")
    assert str(tmp_path / "out" / "x") in str(error.value)


def test_folder_is_replaced_only_where_asked_and_done(tmp_path: Path) -> None:
    out = written(tmp_path / "out", old="old")
    before = listing(tmp_path)
    with pytest.raises(PrunekitError, match="--overwrite"), new_folder(out):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(out, overwrite=True):
        raise ZeroDivisionError
    assert listing(tmp_path) == before
    with new_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("n")
        assert (out / "old").exists()
    assert listing(tmp_path) == {"out": None, "out/new": 1}


def test_disk_errors_are_worded(tmp_path: Path) -> None:
    with pytest.raises(PrunekitError, match=r"No space left on device\. Free some space"), new_folder(tmp_path / "x"):
        raise OSError(28, os.strerror(28))
    assert listing(tmp_path) == {}


def test_places_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, part in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "does not exist"),
        (Path("/dev/null"), "regular"),
    ):
        with pytest.raises(PrunekitError, match=part):
            write_text(path, "x")
    assert Path("/dev/null").is_char_device()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(PrunekitError, match="can't be made"):
            check_output_folder(path)
    with pytest.raises(PrunekitError, match="is a file"):
        check_output_folder(tmp_path / "file", overwrite=True)


@given(st.binary(max_size=30))
def test_json_or_a_sentence(data: bytes) -> None:
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"prunekit-json-{os.getpid()}"
    try:
        file.write_bytes(data)
        read_json(file, "plan")
    except PrunekitError as error:
        assert str(file) in str(error) and "not valid JSON" in str(error)
    finally:
        file.unlink()


def test_json_that_is_none(tmp_path: Path) -> None:
    for content in (b"[" * 100_000, b"1" * 5000, b"\xff", b'{"a": 1'):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(PrunekitError, match=r"The plan .* is not valid JSON"):
            read_json(tmp_path / "x", "plan")
    with pytest.raises(PrunekitError, match="does not exist"):
        read_json(tmp_path / "y", "plan")
    with pytest.raises(PrunekitError, match="is a folder"):
        read_json(tmp_path, "plan")
    with pytest.raises(PrunekitError, match="device"):
        read_json(Path("/dev/zero"), "plan")


def test_sha256_of_more_than_one_block(tmp_path: Path) -> None:
    import hashlib

    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
