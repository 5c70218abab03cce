"""The cache: taken only where it is as written, made again where it is not, and nobody else's to write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.models.source import resolve
from prunekit.pruning.curves.curve_store import CurveStore
from prunekit.pruning.curves.loss_curves import FfnCurve, HeadChoice, LayerCurves
from prunekit.utils.files import cache
from prunekit.utils.files.cache import cache_place, is_as_sealed, read_kept, seal, write_kept
from prunekit.utils.files.kept_tensors import read_kept_tensors, write_kept_tensors
from prunekit.utils.files.private_folder import clear
from tests.support.tiny_gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache.TRUST, raising=False)
    return tmp_path / "cache"


def _rewrite(file: Path) -> None:
    """Other numbers under the same names, shapes and metadata: what only a digest shows."""
    with safe_open(file, "pt") as handle:
        said = dict(handle.metadata() or {})
    save_file({name: tensor * 0 + 1 for name, tensor in load_file(file).items()}, file, metadata=said)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").touch()


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "rewritten": _rewrite,
    "a bit": _flip,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "garbage": lambda file: file.write_bytes(b"\xff" * 4000),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "rewritten"])
def test_loss_curves(damage: str, tmp_path: Path) -> None:
    store = CurveStore(tmp_path / "curves")
    curves = LayerCurves(FfnCurve((1, 0), (0.0, 1.0, 2.0)), {(1, 1): HeadChoice((0,), (0,), 0.5)})
    for index in range(2):
        store.keep(index, curves)
    store.keep_removed(1, {"ffn": 3.5})
    assert store.curves(0) == store.curves(1) == curves and store.removed(1) == {"ffn": 3.5} and not store.removed(0)
    DAMAGE[damage](tmp_path / "curves" / "layer-1.json")
    assert store.curves(1) is None and store.curves(0) == curves
    store.keep(1, curves)
    assert store.curves(1) == curves
    # Whole files of another model, or of another layer, are none of this one.
    shutil.copy(tmp_path / "curves" / "layer-0.json", tmp_path / "curves" / "layer-1.json")
    assert store.curves(1) is None
    (tmp_path / "curves").rename(tmp_path / "other")
    assert CurveStore(tmp_path / "other").curves(0) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_kept_tensors(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "0-8.safetensors"
    tensors = {"ids": torch.arange(12).reshape(2, 6), "a": torch.tensor(0.5)}

    def is_read() -> bool:
        found = read_kept_tensors(file)
        return found is not None and all(torch.equal(found[name], each) for name, each in tensors.items())

    write_kept_tensors(file, tensors)
    assert is_read()
    DAMAGE[damage](file)
    assert read_kept_tensors(file) is None
    write_kept_tensors(file, tensors)
    assert is_read()


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "rewritten"])
def test_kept_objects(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "task-x.json"
    data = {"best": [[1, 2, 3]], "kl": 0.25, "name": "é\x1b"}
    write_kept(file, {**data, "best": [(1, 2, 3)]})
    assert read_kept(file) == data
    DAMAGE[damage](file)
    assert read_kept(file) is None
    write_kept(file, data)
    assert read_kept(file) == data
    file.write_text(json.dumps({**json.loads(file.read_text()), "kl": 0.2}))
    assert read_kept(file) is None
    write_kept(file, data)
    file.rename(tmp_path / "task-y.json")
    assert read_kept(tmp_path / "task-y.json") is None


def test_sealed_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/d").write_bytes(b"4")
    seal(tmp_path)
    assert is_as_sealed(tmp_path)
    (tmp_path / "c").touch()
    assert not is_as_sealed(tmp_path)
    (tmp_path / "c").unlink()
    assert is_as_sealed(tmp_path)
    (tmp_path / "below/d").write_bytes(b"5")
    assert not is_as_sealed(tmp_path)
    (tmp_path / "below/d").write_bytes(b"4")
    assert is_as_sealed(tmp_path)
    (tmp_path / "b").write_bytes(b"3")
    assert not is_as_sealed(tmp_path)


def test_a_converted_gguf_with_other_weights_is_made_again(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "t.gguf")
    found = resolve(str(file))
    before = found.fingerprint
    _rewrite(found.path / "model.safetensors")
    assert resolve(str(file)).fingerprint == before
    shutil.rmtree(found.path)
    found.path.write_text("no folder")
    assert resolve(str(file)).fingerprint == before


def test_it_is_made_for_its_owner_alone(place: Path) -> None:
    before = os.umask(0)
    try:
        made = cache_place("curves", "x")
    finally:
        os.umask(before)
    assert made == place / "curves" / "x"
    assert {each.stat().st_mode & 0o777 for each in (place, place / "curves", made)} == {0o700}


@pytest.mark.parametrize("which", ["", "curves", "curves/x"])
def test_others_may_not_write_to_it(which: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_place("curves", "x")
    place.joinpath(which).chmod(0o777)
    with pytest.raises(PrunekitError, match=r"other users may write to .*PRUNEKIT_TRUST_CACHE=1"):
        cache_place("curves", "x")
    monkeypatch.setenv(cache.TRUST, "1")
    cache_place("curves", "x")


def test_folders_above_it(tmp_path: Path, place: Path) -> None:
    cache_place("curves")
    tmp_path.chmod(0o777)
    with pytest.raises(PrunekitError, match="other users may write"):
        cache_place("curves")
    # As in /tmp: what is there can only be moved by its owner.
    tmp_path.chmod(0o1777)
    assert cache_place("curves") == place / "curves"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_folder(place: Path) -> None:
    cache_place("curves")
    os.chown(place, 12345, 12345)
    with pytest.raises(PrunekitError, match="belongs to another user"):
        cache_place("curves")


def test_what_is_no_folder_is_taken_away(place: Path) -> None:
    cache_place()
    (place / "curves").write_text("x")
    assert cache_place("curves", "x").is_dir()
    clear(place / "curves")
    (place / "curves").symlink_to("nowhere")
    assert cache_place("curves", "x").is_dir()
