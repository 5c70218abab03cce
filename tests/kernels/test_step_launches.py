"""What a decode step starts on a GPU, counted on the CPU: kernels are recorded in place of run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.kernels import Runtime, optimize
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.models.families import FAMILIES
from tests.support.tiny import MODEL_TYPES, random_plan, rebuilt_model, tiny_model

QKV, ATTENTION, LINEAR, GATE_UP = (
    f"_{name}_kernel" for name in ("qkv_rope", "attention_decode", "linear_decode", "gate_up")
)
NORM = "_rms_norm_kernel"


class Recorder(TorchDispatchMode):
    """What reaches PyTorch's operators, but for views and fresh memory, and the kernels that would be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.launches: list[Launch] = []
        monkeypatch.setattr(Launch, "run", lambda launch: self.launches.append(launch))

    @property
    def kernels(self) -> list[str]:
        return [launch.kernel.__name__ for launch in self.launches]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not name.startswith(("empty", "new_empty")):
            view = (
                not func._schema.is_mutable
                and made.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr()
            )
            self.operators[name] += not view
        return made


def step_of(model: Any, batch: int, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A step of a runtime as a CUDA graph would record it."""
    runtime = Runtime(optimize(model), batch, 300)
    with using("triton"), torch.inference_mode(), Recorder(monkeypatch) as recorder:
        runtime._body()
    return recorder


@pytest.mark.parametrize("batch", (1, 2, 16))
def test_a_step_of_a_llama(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five launches a layer (of several sequences seven: norms stand alone), the head, and one that ends the step;
    nothing of PyTorch's own."""
    model = tiny_model("llama")
    made = step_of(model, batch, monkeypatch)
    norm = [] if batch == 1 else [NORM]
    layer = [*norm, QKV, ATTENTION, LINEAR, *norm, GATE_UP, LINEAR]
    assert made.kernels == [*layer * len(model.model.layers), *norm, LINEAR, "_next_token_kernel"]
    assert not +made.operators


@pytest.mark.parametrize("pruned", (False, True), ids=("dense", "pruned"))
@pytest.mark.parametrize("batch", (1, 2))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_family_leaves_a_small_operator_to_pytorch(
    model_type: str, batch: int, pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms of queries and keys, or behind a block's parts, are launches of their own, of our kernels."""
    model = tiny_model(model_type)
    if pruned:
        model = rebuilt_model(model, random_plan(FAMILIES[model_type].shape(model.config), seed=3))
    made = step_of(model, batch, monkeypatch)
    assert not +made.operators
    assert len(made.kernels) <= (8 if batch == 1 else 10) * len(model.model.layers) + 3


def test_launches_overlap_within_a_graph_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first kernel of a step reads positions early, which the last kernel of the step before has written. A graph
    begins when all before it has ended; a launch of its own would not wait."""
    monkeypatch.setattr("prunekit.kernels.ops.utils.dispatch.can_overlap", lambda device: True)
    model = tiny_model("llama")
    assert all(launch.overlap for launch in step_of(model, 1, monkeypatch).launches)
    runtime = Runtime(model, 1, 300)
    runtime.prefill(torch.ones(1, 3, dtype=torch.int64))
    with using("triton"), Recorder(monkeypatch) as recorder:
        runtime.step()
    assert recorder.launches and not any(launch.overlap for launch in recorder.launches)
