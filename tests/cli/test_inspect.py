"""`prunekit inspect` of plans and exports. For checkpoints see test_cli, for trained ones test_trained_again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from prunekit.export.export import export
from prunekit.models.source import resolve
from prunekit.plan import Plan
from tests.support.command import QUICK, Command, save_tiny, write_text

pytestmark = pytest.mark.usefixtures("single_threaded")
WRITTEN = Path(__file__).parents[1] / "golden" / "written"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    model = save_tiny(place / "model", max_position_embeddings=1024)
    return export(resolve(str(model)), "torchscript", place / "out").path


def seen(command: Command, path: Path) -> Any:
    done = command("inspect", path, "--json")
    assert done.code == 0 and done.err == "", done
    return done.json


def test_a_plan(command: Command, tmp_path: Path) -> None:
    model, text, file = save_tiny(tmp_path / "model"), write_text(tmp_path / "text.txt"), tmp_path / "plan.json"
    told = ("--method", "flap", "--calib", text, "--set", "protect_layers=1", *QUICK)
    assert command("plan", model, "--blocks", "0.7", "-o", file, *told).code == 0
    plan, data = Plan.load(file), seen(command, file)
    assert plan.recipe is not None and data["recipe"] == plan.recipe.to_dict()
    assert data["share_of_blocks"] == plan.share_of_blocks
    assert [layer["intermediate_size"] for layer in data["layers"]] == [
        layer.intermediate_size for layer in plan.shape.layers
    ]
    shown = command("inspect", file).out
    assert all(
        each in shown
        for each in (
            "--blocks 0.7",
            "flap",
            "text.txt",
            "protect_layers=1",
            "units=ffn,kv ",
            "compensate=true",
            "FFN width",
        )
    )


def test_a_plan_of_an_earlier_version(command: Command) -> None:
    assert seen(command, WRITTEN / "plan.json")["recipe"] is None
    assert "--blocks 0.7" in command("inspect", WRITTEN / "plan.json").out


def test_an_export_is_verified_and_never_opened(command: Command, exported: Path, tmp_path: Path) -> None:
    """TorchScript is a program: to look at one, nobody has to trust it."""
    data = seen(command, exported)
    assert (data["target"], data["dtype"], data["verified"], data["source"]) == ("torchscript", "fp32", True, "model")
    manifest = json.loads((exported / "prunekit-export.json").read_text())
    assert data["verified_files"] == len(manifest["files"]) > 2 and len(data["layers"]) == 4
    shown = command("inspect", exported).out
    assert "torchscript, fp32" in shown and "files as written" in shown
    spoilt = shutil.copytree(exported, tmp_path / "out")
    file = next(spoilt.glob("*.pt"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = command("inspect", spoilt)
    assert done.code == 2 and file.name in done.err and "changed since it was written" in done.err


def test_a_profile(command: Command, exported: Path, tmp_path: Path) -> None:
    from prunekit.utils.files.hashes import digests

    folder = tmp_path / "profile"
    shutil.copytree(exported, folder / "one")
    manifest = {"format": "prunekit-profile", "version": 1, "profile": "cpu", "exports": ["one"]}
    (folder / "prunekit-profile.json").write_text(json.dumps({**manifest, "files": digests(folder)}))
    data = seen(command, folder)
    assert data["profile"] == "cpu" and [each["target"] for each in data["exports"]] == ["torchscript"]
    assert "files as written" in command("inspect", folder).out
    for wrong in ({"exports": ["../one"]}, {"exports": "one"}, {"files": 3}):
        (folder / "prunekit-profile.json").write_text(json.dumps({**manifest, "files": {}, **wrong}))
        done = command("inspect", folder)
        assert done.code == 2 and "is damaged" in done.err, done


def test_what_is_none_of_these(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for path, said in ((tmp_path / "other.json", "is not a prunekit plan"), (tmp_path / "no", "no folder")):
        done = command("inspect", path)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err
