"""ONNX Runtime's sessions on a device: no other one than was asked for."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.device import kind_of
from prunekit.export.target import CPU, runtime_errors

PROVIDERS = {CPU: "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_RECORD = "session.record_ep_graph_assignment_info"


def check_provider(kind: str) -> None:
    """Raises PrunekitError where the installed ONNX Runtime was built without ``kind`` (``cpu``, ``cuda``)."""
    import onnxruntime

    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        raise PrunekitError(
            f"The installed ONNX Runtime {onnxruntime.__version__} was built without {kind}; run `pip uninstall -y "
            "onnxruntime && pip install onnxruntime-gpu`, or leave --device out."
        )


def open_session(model: Path, threads: int | None = None, device: str = CPU) -> Any:
    """An onnxruntime.InferenceSession of ``model`` on ``device``.

    Raises PrunekitError where ONNX Runtime refuses the file, or would run it elsewhere than on ``device``: it takes the
    CPU without a word where its CUDA libraries are missing.
    """
    import onnxruntime

    kind, index = kind_of(device), device.partition(":")[2] or "0"
    check_provider(kind)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Every decode step has a shape of its own, and a memory plan kept for each would only grow.
    options.enable_mem_pattern = False
    options.add_session_config_entry(_RECORD, "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    providers: list[Any] = [PROVIDERS[CPU]]
    if kind != CPU:
        with _silent():
            # Of the packages that bring CUDA for PyTorch, which are on no path that ONNX Runtime searches.
            onnxruntime.preload_dlls()
        # TF32 is on by default, and rounds float32 to ten bits. Whatever CUDA has no kernel for falls to the CPU.
        providers.insert(0, (PROVIDERS[kind], {"device_id": index, "use_tf32": "0"}))
    with runtime_errors(f"ONNX Runtime refuses {model}"), _silent():
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    if PROVIDERS[kind] not in session.get_providers():
        raise PrunekitError(
            f"ONNX Runtime {onnxruntime.__version__} could not start {PROVIDERS[kind]} and would run on the CPU; it "
            f"needs the libraries of CUDA {getattr(onnxruntime, 'cuda_version', '')} and cuDNN 9, which `pip install "
            "'onnxruntime-gpu[cuda,cudnn]'` brings."
        )
    return session


@contextmanager
def _silent() -> Iterator[None]:
    """What is said about providers that can't be loaded: lines of their own on stdout and stderr."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    with redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            onnxruntime.set_default_logger_severity(2)  # as it was: warnings


def node_facts(session: Any) -> dict[str, Any]:
    """``nodes``: how many nodes of its graph each provider runs; ``on_cpu``: which operators the CPU runs beside
    another provider, and how many of each."""
    nodes: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for group in session.get_provider_graph_assignment_info():
        given = group.get_nodes()
        nodes[group.ep_name] += len(given)
        if group.ep_name == PROVIDERS[CPU]:
            left.update(node.op_type for node in given)
    return {"nodes": dict(nodes), "on_cpu": dict(left.most_common()) if len(session.get_providers()) > 1 else {}}
