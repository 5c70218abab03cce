"""Libraries that report their use to their makers don't do so on behalf of prunekit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read by huggingface_hub, transformers, datasets and vLLM when they are imported; the third asks a server once a data
# set, local ones too.
OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextmanager
def openvino_silent() -> Iterator[None]:
    """Import openvino in this block. It reports each import through a package of its own, which is not found here;
    without that package OpenVINO does the same and tells nobody. Nothing changes where openvino is imported already."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    # How the import system is told that there is no such module.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
