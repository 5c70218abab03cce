"""NaN, infinity and what overflows: one sentence that names the layer, by every method and in every command."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.kernels import generate, optimize
from prunekit.models.source import load_model, resolve
from prunekit.plan import whole_plan
from prunekit.plan.methods import METHODS
from prunekit.pruning.importance.base import IMPORTANCE, LAYER_IMPORTANCE
from prunekit.utils.numerics.finite import check_computed, first_not_finite, in_layer, is_finite, watched_layers
from tests.support.command import DEFAULT, Command, listing, save_tiny, write_text
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1."
BRIEF = ["--set", "sequences=8", "--set", "length=16", "--device", "cpu"]
QUICK = [*BRIEF, "--set", "ffn_multiple=1"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with every kind of weight, a text, and a plan that any weights of that shape fit."""
    from prunekit.models.source import resolve

    place = tmp_path_factory.mktemp("finite")
    save_tiny(place / "model", layers=2, bias=True)
    write_text(place / "text.txt", 2000)
    whole_plan(resolve(str(place / "model")).shape).save(place / "plan.json")
    return place


def spoiled(shared: Path, here: Path, change: Callable[[Tensors], Any]) -> Path:
    shutil.copytree(shared / "model", here / "model")
    file = here / "model" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return here / "model"


def filled(name: str, value: float, whole: bool = False) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors[name].view(-1)[slice(None) if whole else slice(5, 6)].fill_(value)


def refused(command: Command, here: Path, arguments: list[object]) -> str:
    before = listing(here)
    ended = command(*arguments)
    assert ended.code == 2 and ended.out == "", ended
    assert len(ended.err.splitlines()) == 1 and listing(here) == before, ended.err
    return ended.err


def prune(model: Path, shared: Path, method: str, *options: object) -> list[object]:
    named = [DEFAULT] if method == "prunekit" else ["--method", method]
    start = ["prune", model, "-o", model.parent / "out", "--params", "0.9", "--calib", shared / "text.txt"]
    return [*start, *(QUICK if METHODS[method].allocation.cuts_units else BRIEF), *named, *options]


PLACES = {
    **{name: f"Layer 1: {name}" for name in ("self_attn.q_proj.weight", "self_attn.k_proj.bias", "mlp.up_proj.weight")},
    **{name: f"Layer 1: {name}" for name in ("self_attn.v_proj.weight", "self_attn.o_proj.bias", "mlp.gate_proj.bias")},
    **{name: f"Layer 1: {name}" for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")},
    "input_layernorm.weight": "Layer 1: input_layernorm.weight",
    "model.norm.weight": "model.norm.weight",
    "model.embed_tokens.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("place", PLACES)
def test_every_kind_of_weight_is_refused_where_a_model_is_loaded(place: str, shared: Path, tmp_path: Path) -> None:
    for count, value in enumerate((math.nan, math.inf, -math.inf)):
        here = tmp_path / str(count)
        here.mkdir()
        model = spoiled(shared, here, filled(full_name(place), value, whole=count == 1))
        with pytest.raises(PrunekitError, match=rf"^{PLACES[place]} holds NaN or infinite weights.*again\.$"):
            load_model(resolve(str(model)), device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_them(method: str, command: Command, shared: Path, tmp_path: Path) -> None:
    """In whatever a method looks at or not: `random` looks at no weight at all."""
    place = [*PLACES][[*METHODS].index(method) % len(PLACES)]
    model = spoiled(shared, tmp_path, filled(full_name(place), math.nan))
    error = refused(command, tmp_path, prune(model, shared, method))
    assert f"{PLACES[place]} holds NaN or infinite weights" in error


def full_name(place: str) -> str:
    return place if place in PLACES and place.startswith(("model.", "lm_head.")) else LAYER + place


@pytest.mark.parametrize("units, layers", [("wanda", "loss-without"), ("taylor", "cosine"), ("random", None)])
def test_mixes_refuse_them_too(units: str, layers: str | None, command: Command, shared: Path, tmp_path: Path) -> None:
    assert units in IMPORTANCE
    model = spoiled(shared, tmp_path, filled(f"{LAYER}mlp.up_proj.weight", math.nan))
    options = ["--set", f"importance={units}"]
    method = "llm-pruner"
    if layers is not None and layers in LAYER_IMPORTANCE:
        method, options = "adapt-pruner", [*options, "--set", f"layer_importance={layers}"]
    assert "Layer 1: mlp.up_proj.weight" in refused(command, tmp_path, prune(model, shared, method, *options))


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "plan": lambda model, shared: ["plan", model, "--params", "0.9", "--calib", shared / "text.txt", *QUICK],
    "prune by a plan": lambda model, shared: [
        "prune", model, "-o", model.parent / "out", "--plan", shared / "plan.json",
    ],
    "analyze": lambda model, shared: [
        "analyze", model, "--calib", shared / "text.txt", "--set", "sequences=2", "--set", "length=16",
    ],
    "eval": lambda model, shared: ["eval", model, "--text", shared / "text.txt", "--length", 16],
    "eval of a baseline": lambda model, shared: [
        "eval", shared / "model", "--baseline", model, "--text", shared / "text.txt", "--length", 16,
    ],
    "generate": lambda model, shared: ["generate", model, "-p", "abc", "--max-new-tokens", 2],
    "generate in 8 bits": lambda model, shared: ["generate", model, "-p", "abc", "--quantize", "int8"],
    "bench": lambda model, shared: [
        "bench", model, "--baseline", shared / "model", "--prompt-tokens", 4, "--new-tokens", 2, "--repeats", 2,
        "--max-minutes", 0,
    ],
    "bench of a baseline": lambda model, shared: [
        "bench", shared / "model", "--baseline", model, "--prompt-tokens", 4, "--new-tokens", 2,
        "--max-minutes", 0, "--runtime", "prunekit",
    ],
    **{
        f"export to {target}": (
            lambda model, shared, target=target, more=more: [
                "export", model, "--to", target, "-o", model.parent / "out", *more,
            ]
        )
        for target, more in (
            ("hf", ["--no-verify"]), ("hf", []), ("torchscript", []), ("torch-export", ["--no-verify"]),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_them(name: str, command: Command, shared: Path, tmp_path: Path) -> None:
    model = spoiled(shared, tmp_path, filled(f"{LAYER}self_attn.v_proj.weight", math.nan))
    error = refused(command, tmp_path, COMMANDS[name](model, shared))
    assert "Layer 1: self_attn.v_proj.weight holds NaN or infinite weights" in error


@pytest.mark.parametrize(
    "name", ["plan", "analyze", "eval", "eval of a baseline", "generate", "generate in 8 bits", "export to hf"]
)
def test_finite_weights_whose_activations_overflow(name: str, command: Command, shared: Path, tmp_path: Path) -> None:
    model = spoiled(shared, tmp_path, filled(f"{LAYER}mlp.up_proj.weight", 3e38, whole=True))
    assert "Layer 1: its output" in refused(command, tmp_path, COMMANDS[name](model, shared))


def test_timing_refuses_what_overflows(command: Command, shared: Path, tmp_path: Path) -> None:
    model = spoiled(shared, tmp_path, filled(f"{LAYER}mlp.up_proj.weight", 3e38, whole=True))
    for runtime in ("torch", "prunekit"):
        arguments = [*COMMANDS["bench"](model, shared), "--no-memory", "--runtime", runtime]
        assert "model: Layer 1: its outputs are not finite" in refused(command, tmp_path, arguments)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "random"])
def test_methods_that_overflow_name_the_layer(method: str, command: Command, shared: Path, tmp_path: Path) -> None:
    model = spoiled(shared, tmp_path, filled(f"{LAYER}mlp.up_proj.weight", 3e38, whole=True))
    assert "Layer 1" in refused(command, tmp_path, prune(model, shared, method))


@pytest.mark.parametrize(
    "gone", ["mlp.", "self_attn.", "mlp.down_proj.", "input_layernorm.", "model.norm.", "lm_head."]
)
@pytest.mark.parametrize("method", ["prunekit", "slicegpt", "flap"])
def test_zeros_are_no_fault(method: str, gone: str, command: Command, shared: Path, tmp_path: Path) -> None:
    """What gives nothing but zeros, such as padding leaves: moments are singular, and a checkpoint is written."""

    def clear(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if name.startswith((gone, LAYER + gone)):
                tensor.zero_()

    model = spoiled(shared, tmp_path, clear)
    ended = command(*prune(model, shared, method))
    assert ended.code == 0, ended.err
    assert first_not_finite(load_file(tmp_path / "out" / "model.safetensors").items()) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_a_dtype_is_too_small_for(dtype: str, command: Command, shared: Path, tmp_path: Path) -> None:
    """The largest numbers of float32 round to infinity in bfloat16 too."""
    large = {"float16": 1e5, "bfloat16": torch.finfo(torch.float32).max}[dtype]
    model = spoiled(shared, tmp_path, filled(f"{LAYER}mlp.up_proj.weight", large))
    stored = ["prune", model, "-o", tmp_path / "out", "--plan", shared / "plan.json", "--store-dtype", dtype]
    assert f"up_proj.weight holds numbers too large for {dtype}" in refused(command, tmp_path, stored)
    ran = [*COMMANDS["generate"](model, shared), "--dtype", dtype]
    assert f"Layer 1: mlp.up_proj.weight holds numbers too large for {dtype}" in refused(command, tmp_path, ran)


def test_decoding_stops_at_the_token_whose_logits_are_not_finite() -> None:
    """One token's embedding is spoilt after the model was checked; what came before is passed on."""
    model = tiny_model("llama", layers=2)
    model.generation_config.eos_token_id = None
    packed = optimize(model)
    free = generate(packed, [[5, 9], [7]], max_new_tokens=6).sequences
    with torch.no_grad():
        model.model.embed_tokens.weight[free[1][2]] = math.inf
    seen: list[Any] = []
    for sample in ({}, {"do_sample": True, "top_k": 1, "seed": 1}):
        seen.clear()
        with pytest.raises(PrunekitError, match="Layer 0: its outputs are not finite"):
            generate(packed, [[5, 9], [7]], max_new_tokens=6, on_tokens=seen.append, **sample)
        assert 1 <= len(seen) <= 3
        assert all(tokens[1] == free[1][step] for step, tokens in enumerate(seen))


def test_optimize_refuses_them() -> None:
    model = tiny_model("llama", layers=2)
    model.model.layers[1].input_layernorm.weight.data[3] = math.inf
    with pytest.raises(PrunekitError, match=r"Layer 1: input_layernorm\.weight"):
        optimize(model)
    assert type(model.model.layers[0].mlp).__name__ == "LlamaMLP"


def test_what_is_finite() -> None:
    assert is_finite(torch.ones(3, 4)) and is_finite(torch.zeros(0)) and is_finite(torch.tensor([1 << 60]))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for value in (math.nan, math.inf, -math.inf):
            spoilt = torch.ones(5, 7, dtype=dtype)
            assert is_finite(spoilt)
            spoilt[3, 2] = value
            assert not is_finite(spoilt) and not is_finite(spoilt.T)
    named = [("a", torch.ones(2)), ("b", torch.tensor([math.nan])), ("c", torch.tensor([math.inf]))]
    assert first_not_finite(named) == "b" and first_not_finite(named[:1]) is None and first_not_finite([]) is None
    with pytest.raises(PrunekitError, match=r"^Layer 3: its sums are not finite"):
        check_computed(math.nan, 3, "its sums")
    with pytest.raises(PrunekitError, match=r"^Layer 2: no"), in_layer(2):
        raise PrunekitError("no")
    with pytest.raises(PrunekitError, match=r"^Layer 1: no"), in_layer(2), in_layer(1):
        raise PrunekitError("no")
    layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    with watched_layers(layers):
        layers[0](torch.ones(1, 2))
        with pytest.raises(PrunekitError, match="Layer 1"):
            layers[1](torch.full((1, 2), math.inf))
    assert not layers[1]._forward_hooks


def test_reports_hold_no_nan(command: Command, shared: Path) -> None:
    ended = command(*COMMANDS["eval"](shared / "model", shared), "--json")
    assert ended.code == 0 and json.loads(ended.out)
