"""Settings that hold for every test, and the models and environments that several of them share."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch, tokenizers and huggingface_hub are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.source import Source, resolve

torch.set_num_threads(2)

ROOT = Path(__file__).parent.parent


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
def compat_python() -> dict[str, str]:
    """The environment of a subprocess (``sys.executable``) that runs the oldest supported transformers."""
    folder = ROOT / ".compat" / "transformers-5.16"
    if not (folder / "transformers").is_dir():
        pytest.skip("make install prepares the oldest transformers; it is missing here")
    # The repository comes second so that a subprocess tests this source, installed or not.
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
