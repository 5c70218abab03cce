"""Settings that hold for every test, and the models and environments that several of them share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch, tokenizers and huggingface_hub are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from filelock import FileLock

from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.models.source import Source, resolve
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.goals import parse_target
from prunekit.plan.recipe import Recipe
from prunekit.pruning.planner import PlanConfig, compute_plan
from prunekit.report import pictures
from tests.support.run_folder import run_folder

if TYPE_CHECKING:
    from tests.support.command import Command

# A test's files need not outlive a power cut.
os.fsync = lambda handle: None  # type: ignore[assignment]

# Tests make millions of small objects, and what they leave in cycles is small: looking for it seldom saves a twentieth.
gc.set_threshold(20_000, 20, 50)

# A picture that is drawn and looked at by nobody takes half a second.
pictures._DPI = 40

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

ROOT = Path(__file__).parent.parent

# The longest first, as `pytest --durations=0` tells them. What begins last should be short: then the processes of
# `make test`, which take whole files, end together.
LONG_FILES = (
    "export/formats/test_torch_export.py",
    "export/formats/test_onnx_genai.py",
    "export/formats/test_onnx.py",
    "benchmarks/test_gpu_check.py",
    "export/formats/test_openvino.py",
    "export/formats/test_gguf.py",
    "kernels/test_smollm2.py",
    "checkpoint/test_checkpoint.py",
    "kernels/test_runtime.py",
    "cli/test_cli.py",
    "fuzz/test_fuzz.py",
    "pruning/test_budgets.py",
    "pruning/test_importance.py",
    "kills/test_kills.py",
    "cli/test_no_network.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


_imported = 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Python's collector looks no more at the objects of modules that were imported, a million of them. Commands
    collect when they let go of a model, which took half a second each time."""
    global _imported
    if len(sys.modules) != _imported:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


def pytest_sessionfinish() -> None:
    """What the collector never saw would be told of as leaked."""
    gc.unfreeze()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command("plan", path, ...)`` runs prunekit's entry point in this process."""
    from tests.support.command import make_command

    return make_command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def single_threaded() -> Iterator[None]:
    """For a module of tiny models."""
    from tests.support.tiny import one_thread

    with one_thread():
        yield


@pytest.fixture(scope="session")
def smollm2() -> Source:
    """The built-in model, converted from its GGUF file the first time (half a minute)."""
    try:
        return resolve("smollm2-135m")
    except PrunekitError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def pruned_smollm2(smollm2: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """SmolLM2-135M with 79 % of its blocks left, at irregular widths: made once for all processes of a test run."""
    folder = run_folder(tmp_path_factory)
    with FileLock(folder / "pruned_smollm2.lock"):
        if not (folder / "pruned_smollm2").exists():
            config = PlanConfig(
                target=parse_target(None, "0.79", None),
                recipe=Recipe.of("fisher-global", ffn_multiple=1, sequences=8, length=64),
            )
            rebuild(smollm2, compute_plan(smollm2, config), folder / "pruned_smollm2")
    return resolve(str(folder / "pruned_smollm2"))


@pytest.fixture(scope="session")
def shortened_smollm2(pruned_smollm2: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Its first three layers, whose graphs take a tenth of the time to write; all of it for ``make test-whole``."""
    if os.environ.get("PRUNEKIT_WHOLE_MODELS"):
        return pruned_smollm2
    layers = enumerate(pruned_smollm2.shape.layers[:3])
    plan = Plan(pruned_smollm2.shape, tuple(LayerKeep.everything(index, layer) for index, layer in layers))
    folder = tmp_path_factory.mktemp("shortened") / "model"
    rebuild(pruned_smollm2, plan, folder)
    return resolve(str(folder))


@pytest.fixture(scope="session")
def compat_python() -> dict[str, str]:
    """The environment of a subprocess (``sys.executable``) that runs the oldest supported transformers."""
    folder = ROOT / ".compat" / "transformers-5.16"
    if not (folder / "transformers").is_dir():
        pytest.skip("make install prepares the oldest transformers; it is missing here")
    # The repository comes second so that a subprocess tests this source, installed or not.
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
