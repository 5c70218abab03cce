"""A full disk, for whatever writes: one sentence, exit code 2, nothing left. A limit on the size of files stands in for
the disk, so that no rights are needed."""

from __future__ import annotations

import pwd
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.target import runtime_errors
from prunekit.models.source import resolve
from prunekit.report import pictures
from prunekit.utils.files import cache
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.full_disk import has_room
from prunekit.utils.files.leftovers import temporary_folder
from tests.support.command import QUICK, Command, Ended, listing, save_tiny, write_text

pytestmark = pytest.mark.usefixtures("single_threaded")
# Below every weight file of the model, above all that is written beside it.
ROOM = 60_000


@pytest.fixture(autouse=True)
def _pictures_are_as_large_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than the room that a test leaves."""
    monkeypatch.setattr(pictures, "_DPI", 150)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", layers=2)


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(ended: Ended, here: Path) -> None:
    assert ended.code == 2, ended
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("Writing model shards")]
    assert line.startswith("prunekit: ") and "Free some space" in line and "Traceback" not in ended.err
    assert ".prunekit-new-" not in line
    assert listing(here) == {}


EXPORTS = {
    "hf": None,
    "vllm": None,
    "gguf": "gguf",
    "torchscript": None,
    "torch-export": None,
    "onnx": "onnxscript",
    "onnx-genai": "onnxruntime_genai",
}


@pytest.mark.parametrize("target", EXPORTS)
def test_exports(target: str, model: Path, command: Command, tmp_path: Path) -> None:
    needs = EXPORTS[target]
    if needs is not None and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    if target == "gguf":
        (bare := tmp_path.parent / f"{tmp_path.name}-bare").mkdir()
        for name in ("config.json", "model.safetensors"):
            (bare / name).write_bytes((model / name).read_bytes())
        model = bare
    with room(ROOM):
        ended = command("export", model, "--to", target, "-o", tmp_path / "out", "--no-verify")
    refused(ended, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "-o", "plan.json", "--blocks", "0.7", "--method", "magnitude", *QUICK),
        ("latency-table", "-o", "table.json", "--length", "8", "--widths", "2", "--repeats", "2", "--device", "cpu"),
        ("eval", "-o", "report.json", "--max-tokens", "64", "--length", "16", "--text"),
        ("analyze", "-o", "analysis.json", *QUICK[:4], "--device", "cpu", "--calib"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_files(
    arguments: tuple[str, ...], model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_text(tmp_path.parent / f"{tmp_path.name}.txt")
    monkeypatch.chdir(tmp_path)
    if arguments[-1] in ("--text", "--calib"):
        arguments = (*arguments, str(text))
    with room(40):
        ended = command(arguments[0], model, *arguments[1:])
    refused(ended, tmp_path)


def test_candidates(model: Path, command: Command, tmp_path: Path) -> None:
    """What was measured is kept: with room, the same command has only the folder to write."""
    told = ("--params", "0.7", "--method", "magnitude", *QUICK, "--length", "16", "--max-tokens", "64")
    with room(20_000):
        ended = command("candidates", model, "-o", tmp_path / "out", *told)
    refused(ended, tmp_path)
    assert command("candidates", model, "-o", tmp_path / "out", *told).code == 0


def test_a_picture(model: Path, command: Command, tmp_path: Path) -> None:
    """The plan, which is whole, stays."""
    plan = ("plan", model, "-o", tmp_path / "plan.json", "--blocks", "0.7", "--method", "magnitude", *QUICK)
    with room(9_000):
        ended = command(*plan, "--picture", tmp_path / "widths.png")
    assert ended.code == 2 and "Free some space" in ended.err and len(ended.err.splitlines()) == 1
    assert [*listing(tmp_path)] == ["plan.json"]


def test_a_cache_that_is_full_costs_time_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    place = cache.cache_place("tasks")
    with room(10):
        cache.write_kept(place / "a.json", {"a": "x" * 100})
        cache.write_kept(place / "b.json", {"a": "x" * 100})
    assert capsys.readouterr().err.count("results are not kept") == 1
    assert list(place.iterdir()) == []


def test_openvino_says_it_in_cpp(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    given = ops.parameter([-1, 200], np.float32)
    product = ops.matmul(given, ops.constant(np.ones((200, 200), dtype=np.float32)), False, False)
    refusal = pytest.raises(PrunekitError, match=r"could not be written whole\. Free some space")
    with refusal, new_folder(tmp_path / "out") as folder, runtime_errors("OpenVINO can't convert it"), room(ROOM):
        openvino.save_model(openvino.Model([product], [given]), folder / "model.xml", compress_to_fp16=False)
    assert listing(tmp_path) == {}


def test_llama_cpp_says_it_in_cpp(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from prunekit.export.formats.gguf.quantize import quantise

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model / name).read_bytes())
    made = export(resolve(str(bare)), "gguf", tmp_path / "plain", verify=False)
    (plain,) = made.path.glob("*.gguf")
    refusal = pytest.raises(PrunekitError, match=r"could not|Could not")
    with refusal, new_folder(tmp_path / "out") as folder, room(ROOM):
        quantise(plain, folder / "model.gguf", "q8_0")
    assert not (tmp_path / "out").exists()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME is not set, and the system does not know the user: as in a container with a user number of its own."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "PRUNEKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(PrunekitError, match=r"No home folder is known.* PRUNEKIT_CACHE"):
        cache.cache_place("tasks")


def test_without_a_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(PrunekitError, match=r"No temporary folder can be made.* TMPDIR"), temporary_folder("bench"):
        pass


def test_whether_there_is_room_for_a_file(tmp_path: Path) -> None:
    assert has_room(tmp_path, 1000) and has_room(tmp_path / "not" / "yet", 1000) and not has_room(tmp_path, 1 << 60)
    with room(ROOM):
        assert has_room(tmp_path, ROOM - 1) and not has_room(tmp_path, ROOM)
