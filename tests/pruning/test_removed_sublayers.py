"""Layers without attention or without FFN: computed, cached, counted, stored, refitted, allocated, refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, StaticCache

from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.modeling import pruned_class, pruned_config, register_pruned
from prunekit.models.modeling.per_layer import NoAttention, NoFFN
from prunekit.models.source import resolve
from prunekit.plan import LayerKeep, Plan, whole_plan
from prunekit.plan.allocations import check_units
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation import Problem, allocation
from prunekit.pruning.allocation.base import check_compensable
from prunekit.recovery.refit import RefitConfig, refit
from tests.support.command import Command, save_tiny, set_options, write_text
from tests.support.fake_session import SMOLLM2, FakeSession
from tests.support.tiny import (
    MODEL_TYPES,
    VOCAB,
    one_thread,
    padded_model,
    rebuilt_model,
    tiny_config,
    tiny_model,
    zeroed_model,
)
from tests.support.tiny_session import logits, nothing, tiny_session

families = pytest.mark.parametrize("model_type", MODEL_TYPES)
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    register_pruned()
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _ids(sequences: int = 16, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).abs().max() / want.abs().max()).item()


def _bare(index: int, layer: LayerShape, *gone: str) -> LayerKeep:
    """Everything of a layer but these sub-layers."""
    keep = LayerKeep.everything(index, layer)
    if "attention" in gone:
        keep = LayerKeep(index, (), (), keep.ffn)
    return LayerKeep(index, keep.kv_heads, keep.query_heads, ()) if "ffn" in gone else keep


def _plan(shape: ModelShape, attention: tuple[int, ...] = (0, 2), ffn: tuple[int, ...] = (1,)) -> Plan:
    """The layers named lack that sub-layer; the last layer is cut, with FFN channels and a KV group gone."""
    layers = [
        _bare(index, layer, *(kind for kind, which in (("attention", attention), ("ffn", ffn)) if index in which))
        for index, layer in enumerate(shape.layers)
    ]
    layers[-1] = LayerKeep(3, layers[-1].kv_heads[:3], layers[-1].query_heads[:6], layers[-1].ffn[:50])
    return Plan(shape, tuple(layers))


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@families
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_without_is_one_that_adds_nothing(model_type: str, bias: bool) -> None:
    """The dense model with output projections of zero, in one forward and token by token with a cache."""
    model = tiny_model(model_type, bias=bias)
    family = FAMILIES[model_type]
    plan = _plan(family.shape(model.config))
    rebuilt, zeroed = rebuilt_model(model, plan), zeroed_model(model, plan)
    # The reference, checked against one in which sub-layers are cut out of the forward.
    hooked = copy.deepcopy(zeroed_model(model, whole_plan(plan.source)))
    for keep in plan.layers:
        layer = hooked.model.layers[keep.index]
        if "attention" in keep.shape.removed:
            layer.self_attn.register_forward_hook(lambda module, args, output: (torch.zeros_like(output[0]), None))
        if "ffn" in keep.shape.removed:
            layer.mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    ids = _ids(3)
    last = rebuilt_model(model, Plan(plan.source, (*whole_plan(plan.source).layers[:3], plan.layers[3])))
    hooked.model.layers[3] = last.model.layers[3]
    want = logits(zeroed, ids)
    assert _difference(logits(hooked, ids), want) <= TOLERANCE
    assert _difference(logits(model, ids), want) > 0.05
    assert _difference(logits(rebuilt, ids), want) <= TOLERANCE
    assert _parameters(rebuilt) == plan.shape.parameters < plan.source.parameters
    assert family.shape(rebuilt.config) == plan.shape
    layers = rebuilt.model.layers
    assert isinstance(layers[0].self_attn, NoAttention) and isinstance(layers[1].mlp, NoFFN)
    for shape, layer in zip(plan.shape.layers, layers, strict=True):
        assert sum(p.numel() for p in layer.parameters()) == plan.source.layer_parameters(shape)

    cache, steps = None, []
    with torch.no_grad():
        for start, stop in [(0, 14), *((i, i + 1) for i in range(14, 24))]:
            out = rebuilt(ids[:, start:stop], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    assert _difference(torch.cat(steps, 1), want) <= TOLERANCE
    assert cache.get_seq_length() == 24
    assert cache.layers[0].keys.numel() == 3 * cache.layers[0].keys.shape[2]


@families
def test_generation_with_a_cache_is_generation_without(model_type: str) -> None:
    model = tiny_model(model_type)
    plan = _plan(FAMILIES[model_type].shape(model.config))
    rebuilt, zeroed = rebuilt_model(model, plan), zeroed_model(model, plan)
    ids = _ids(3, 14)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    want = zeroed.generate(ids, **options)
    assert torch.equal(rebuilt.generate(ids, use_cache=False, **options), want)
    assert torch.equal(rebuilt.generate(ids, **options), want)
    assert torch.equal(rebuilt.generate(ids, cache_implementation="static", **options), want)
    assert torch.equal(rebuilt.generate(ids, num_beams=3, **options), zeroed.generate(ids, num_beams=3, **options))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_every_attention_gone(model_type: str) -> None:
    """What is left are FFNs, token by token; nothing is cached but lengths."""
    model = tiny_model(model_type)
    shape = FAMILIES[model_type].shape(model.config)
    plan = Plan(shape, tuple(_bare(index, layer, "attention") for index, layer in enumerate(shape.layers)))
    rebuilt = rebuilt_model(model, plan)
    ids = _ids(2, 12)
    assert _difference(logits(rebuilt, ids), logits(zeroed_model(model, plan), ids)) <= TOLERANCE
    assert plan.shape.kv_bytes_per_token() == 0 and not plan.shape.is_uniform
    assert torch.equal(rebuilt.generate(ids, max_new_tokens=5, do_sample=False)[:, :12], ids)


def test_a_cache_that_was_allocated_beforehand() -> None:
    model = tiny_model("llama")
    rebuilt = rebuilt_model(model, _plan(FAMILIES["llama"].shape(model.config)))
    ids = _ids(2, 12)
    want = logits(rebuilt, ids)
    cache = StaticCache(config=rebuilt.config, max_cache_len=32)
    cache.early_initialization(
        batch_size=2, num_heads=[1, 4, 1, 3], head_dim=16, dtype=torch.float32, device=torch.device("cpu")
    )
    with torch.no_grad():
        first = rebuilt(ids[:, :7], past_key_values=cache, use_cache=True).logits
        second = rebuilt(ids[:, 7:], past_key_values=cache, use_cache=True).logits
    assert _difference(torch.cat([first, second], 1), want) <= TOLERANCE


@families
def test_the_padded_twin_has_zeros_there(model_type: str) -> None:
    model = tiny_model(model_type, bias=True)
    plan = _plan(FAMILIES[model_type].shape(model.config))
    ids = _ids(2)
    assert _difference(logits(padded_model(model, plan), ids), logits(zeroed_model(model, plan), ids)) <= TOLERANCE


def test_counts_by_hand() -> None:
    shape = ModelShape(8, 4, 10, False, (LayerShape(4, 2, 5),) * 3, True, True, True, "head", 4)
    attention = (16 * 8 + 16) + 2 * (8 * 8 + 8) + (8 * 16 + 8) + 2 * 8 + 2 * 4
    ffn = 3 * 8 * 5 + 2 * 5 + 8 + 2 * 8
    cut = shape.with_layers((LayerShape(0, 0, 5), LayerShape(4, 2, 0), LayerShape(4, 2, 5)))
    assert cut.block_parameters == 2 * attention + 2 * ffn
    assert cut.kv_bytes_per_token() == 2 * 2 * 2 * 4 * 2
    assert shape.flops_per_token(7) - cut.flops_per_token(7) == 2 * (16 * 8 * 2 + 8 * 8 * 2 + 3 * 8 * 5) + 4 * 4 * 4 * 7
    assert [layer.removed for layer in cut.layers] == [("attention",), ("ffn",), ()]
    assert cut.layers[0].group_size == 0 and cut.bare_layer == 0 and shape.bare_layer is None
    for heads in ((0, 2), (2, 0)):
        with pytest.raises(PrunekitError, match="shared equally"):
            LayerShape(*heads, 5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODEL_TYPES), st.lists(st.sampled_from([(), ("attention",), ("ffn",)]), min_size=4, max_size=4))
def test_any_plan_is_written_and_read_and_builds_a_config(model_type: str, gone: list[tuple[str, ...]]) -> None:
    family = FAMILIES[model_type]
    config = tiny_config(model_type)
    shape = family.shape(config)
    plan = Plan(shape, tuple(_bare(index, shape.layers[index], *kinds) for index, kinds in enumerate(gone)))
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    made = pruned_config(family, config, plan.shape.layers, range(4))
    assert family.shape(made) == plan.shape
    again = pruned_class(family, "Config").from_dict(json.loads(made.to_json_string()))
    assert family.shape(again) == plan.shape
    stored = made.to_dict()["per_layer_config"]
    assert [tuple(stored.get(str(i), {}).get("skip", ())) for i in range(4)] == [
        tuple({"attention": "attention", "ffn": "mlp"}[kind] for kind in kinds) for kinds in gone
    ]


@families
def test_stock_classes_refuse_it(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    shape = FAMILIES[model_type].shape(model.config)
    for gone in ("attention", "ffn"):
        plan = Plan(shape, (_bare(0, shape.layers[0], gone), *whole_plan(shape).layers[1:]))
        rebuilt_model(model, plan).save_pretrained(tmp_path / gone)
        with pytest.raises(RuntimeError, match="per-layer attribute"):
            FAMILIES[model_type].stock(FAMILIES[model_type].causal_lm_class).from_pretrained(tmp_path / gone)


_FRESH = """
import json, sys, torch
from transformers import AutoModelForCausalLM
folder, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert not [name for name in sys.modules if name.startswith("prunekit")]
with torch.no_grad():
    assert torch.equal(model(ids).logits, torch.load(folder + "/want.pt"))
options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
model.save_pretrained(folder + "/again")
again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
print("loaded")
"""


def _fresh(folder: Path, ids: torch.Tensor, environment: dict[str, str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", _FRESH, str(folder), json.dumps(ids.tolist())],
        capture_output=True,
        text=True,
        env={**environment, "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"},
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written by rebuild, whose layers 0 and 2 have no attention and whose layer 1 has no FFN."""
    folder = tmp_path_factory.mktemp("bare")
    source = resolve(str(save_tiny(folder / "dense", bias=True)))
    rebuild(source, _plan(source.shape), folder / "bare")
    return folder / "bare"


def test_the_round_trip(bare: Path, tmp_path: Path) -> None:
    source = resolve(str(bare))
    assert source.shape == Plan.load(bare / "plan.json").shape
    model = AutoModelForCausalLM.from_pretrained(bare)
    dense = AutoModelForCausalLM.from_pretrained(bare.parent / "dense")
    ids = _ids(2, 12)
    want = logits(zeroed_model(dense, Plan.load(bare / "plan.json")), ids)
    assert _difference(logits(model, ids), want) <= TOLERANCE
    assert _parameters(model) == source.shape.parameters
    assert json.loads((bare / "prunekit.json").read_text())["parameters"] == source.shape.parameters
    folder = tmp_path / "fresh"
    shutil.copytree(bare, folder)
    torch.save(logits(model, ids), folder / "want.pt")
    assert (
        _fresh(folder, ids, {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}) == "loaded\n"
    )


def test_the_oldest_transformers_loads_it(bare: Path, tmp_path: Path, compat_python: dict[str, str]) -> None:
    folder = tmp_path / "old"
    shutil.copytree(bare, folder)
    ids = _ids(2, 12)
    torch.save(logits(AutoModelForCausalLM.from_pretrained(bare), ids), folder / "want.pt")
    assert _fresh(folder, ids, compat_python) == "loaded\n"


def test_a_checkpoint_that_lacks_a_sublayer_it_should_have(bare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(bare, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["per_layer_config"]["0"]["skip"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrunekitError, match=r"lack model\.layers\.0\.self_attn"):
        resolve(str(folder))


def test_uniform_from_the_dense_model_but_not_from_what_is_left(bare: Path, tmp_path: Path) -> None:
    plan = Plan.load(bare / "plan.json")
    rebuild(resolve(str(bare.parent / "dense")), plan, tmp_path / "twin", layout="uniform")
    twin, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "twin", bare))
    assert type(twin).__name__ == "LlamaForCausalLM"
    ids = _ids(2)
    assert _difference(logits(twin, ids), logits(model, ids)) <= TOLERANCE
    source = resolve(str(bare))
    with pytest.raises(PrunekitError, match="Layer 0 has no attention, and what a stock layer would need"):
        rebuild(source, whole_plan(source.shape), tmp_path / "no", layout="uniform")
    rebuild(source, whole_plan(source.shape), tmp_path / "copy")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "copy"), ids), logits(model, ids))


@families
def test_refit_makes_up_for_what_is_gone(model_type: str) -> None:
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    plan = _plan(family.shape(model.config), (1,), (2,))
    used, pruned = copy.deepcopy(model), rebuilt_model(model, plan)
    made = refit(used, family, plan.source, plan.layers, _ids(64), RefitConfig(1.0))
    gone = [f"model.layers.{index}.{name}." for index, kind in ((1, "attention"), (2, "ffn"))
            for name in family.sublayer_modules(kind)]  # fmt: skip
    assert not any(name.startswith(tuple(gone)) for name in made.weights)
    assert set(made.weights) == {name for name in pruned.state_dict() if name.startswith("model.layers.")}
    other = _ids(8, seed=1)
    bare = logits(pruned, other)
    for name, weight in made.weights.items():
        pruned.state_dict()[name].copy_(weight)
    dense = logits(model, other).log_softmax(-1)
    losses = [(dense.exp() * (dense - each.log_softmax(-1))).sum(-1).mean() for each in (logits(pruned, other), bare)]
    assert losses[0] < losses[1]
    assert torch.allclose(logits(used, other), logits(pruned, other), atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "phi3"])
def test_a_missing_sublayer_is_measured_as_it_is(model_type: str) -> None:
    model = tiny_model(model_type, bias=True)
    dense = copy.deepcopy(model)
    session = tiny_session(model, _ids())
    calls: list[int] = []
    units = ("ffn", "attention-layer", "ffn-layer")
    curves = session.curves(lambda steps=1: calls.append(steps), units)
    assert sum(calls) == session.curve_steps() + 2 * 4
    ids = _ids()
    first = logits(dense, ids).log_softmax(-1)
    for kind, what in (("attention", LayerShape(0, 0, 96)), ("ffn", LayerShape(8, 4, 0))):
        shape = session.source
        plan = Plan(
            shape, (*whole_plan(shape).layers[:1], _bare(1, shape.layers[1], kind), *whole_plan(shape).layers[2:])
        )
        second = logits(zeroed_model(dense, plan), ids).log_softmax(-1)
        kl = (first.exp() * (first - second)).sum(-1).mean().item()
        assert curves[1].loss(what) == pytest.approx(kl, rel=1e-3)
        assert curves[1].keep(1, what).shape == what
    assert torch.equal(logits(model, ids), logits(dense, ids))


def _silent(model: Any) -> Any:
    """Layers 1 and 3 have an attention, layer 2 an FFN that adds next to nothing."""
    with torch.no_grad():
        for layer in (1, 3):
            model.model.layers[layer].self_attn.o_proj.weight.mul_(1e-3)
        model.model.layers[2].mlp.down_proj.weight.mul_(1e-3)
    return model


def test_what_adds_nothing_goes_first() -> None:
    model = _silent(tiny_model("llama"))
    shape = FAMILIES["llama"].shape(model.config)
    gone = 2 * shape.attention_parameters(shape.layers[0]) + shape.ffn_parameters(shape.layers[0])
    problem = Problem(shape.parameters - gone, Rounding(4), units=("ffn", "attention-layer", "ffn-layer"))
    made = allocation("optimal")(tiny_session(model, _ids()), problem, nothing)
    assert [keep.shape.removed for keep in made.keeps] == [(), ("attention",), ("ffn",), ("attention",)]
    assert Plan(shape, made.keeps).shape.parameters == problem.budget


def test_protected_layers_keep_both_and_a_layer_without_either_is_dropped() -> None:
    model = _silent(tiny_model("llama"))
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.mul_(1e-4)
        model.model.layers[1].self_attn.o_proj.weight.mul_(1e3)
    shape = FAMILIES["llama"].shape(model.config)
    problem = Problem(
        shape.parameters - shape.layer_parameters(shape.layers[0]),
        Rounding(96),
        units=("attention-layer", "ffn-layer"),
        protected=frozenset({3}),
    )
    made = allocation("optimal")(tiny_session(model, _ids()), problem, nothing)
    plan = Plan(shape, made.keeps)
    assert plan.dropped_layers == (2,) and plan.shape.parameters == problem.budget


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 0.95), st.integers(0, 99))
def test_every_budget_is_met(share: float, seed: int) -> None:
    shape = replace(SMOLLM2, layers=SMOLLM2.layers[:8])
    budget = int(share * shape.block_parameters) + shape.embedding_parameters
    units = ("ffn", "kv", "query", "attention-layer", "ffn-layer")
    problem = Problem(budget, Rounding(64), units=units, protected=frozenset({0}))
    made = allocation("optimal")(FakeSession(shape, seed), problem, nothing)
    plan = Plan(shape, made.keeps)
    assert plan.shape.parameters <= budget and plan.layers[0] == LayerKeep.everything(0, shape.layers[0])


def test_units_and_where_they_have_a_price() -> None:
    problem = Problem(1, Rounding(), units=("attention-layer",))
    assert problem.rounding.attention_choices(LayerShape(8, 4, 9), problem.units) == ((4, 2), (0, 0))
    smallest = Rounding(64).floor(SMOLLM2, ("ffn", "ffn-layer"), frozenset({1}))
    assert smallest.layers[:2] == (LayerShape(9, 3, 0), SMOLLM2.layers[1])
    for unit in ("attention-layer", "ffn-layer"):
        check_units("optimal", ("ffn", unit))
        with pytest.raises(
            PrunekitError, match=f"{unit} is decided by measured loss curves, which the allocation adapt"
        ):
            check_units("adapt", ("ffn", unit))
        with pytest.raises(PrunekitError, match="refit=true"):
            check_compensable(("ffn", unit))
    with pytest.raises(PrunekitError, match="attention-layer, ffn-layer, separated by commas"):
        Problem(1, Rounding(), units=("layers",))


def test_layers_that_all_lack_the_same_are_no_stock_layers(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "dense")))
    plan = Plan(source.shape, tuple(_bare(index, layer, "ffn") for index, layer in enumerate(source.shape.layers)))
    written = rebuild(source, plan, tmp_path / "out")
    assert written.architecture == "PrunedLlamaForCausalLM" and written.parameters == plan.shape.parameters
    assert resolve(str(tmp_path / "out")).shape == plan.shape


def _fail(command: Command, *arguments: object) -> str:
    ended = command(*arguments)
    assert ended.code == 2 and "Traceback" not in ended.err, ended
    return " ".join(ended.err.split())


SHORT = (*set_options(sequences=24, length=16, batch_size=8, ffn_multiple=1), "--device", "cpu")


def test_from_the_command_line(command: Command, tmp_path: Path) -> None:
    _silent(tiny_model("llama")).save_pretrained(tmp_path / "dense")
    save_tiny(tmp_path / "other")
    for file in (tmp_path / "other").glob("*token*"):
        shutil.copy(file, tmp_path / "dense")
    text = write_text(tmp_path / "text.txt", 12_000)
    # A silent sub-layer goes without loss, which bfloat16 products would hide.
    exact = ("--calib", text, "--dtype", "float32", *SHORT)
    told = ("--blocks", "0.58", "--set", "units=ffn,kv,query,attention-layer,ffn-layer", *exact)
    ended = command("prune", tmp_path / "dense", "--method", "prunekit", *told, "-o", tmp_path / "out")
    assert ended.code == 0, ended
    assert "none of 8" in ended.out and "none of 96" in ended.out
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert {kind for layer in plan.shape.layers for kind in layer.removed} == {"attention", "ffn"}
    inspected = command("inspect", tmp_path / "out")
    assert inspected.code == 0 and "none" in inspected.out
    stated = command("inspect", tmp_path / "out", "--json").json
    assert stated["parameters"] == plan.shape.parameters
    assert stated["kv_bytes_per_token"] == plan.shape.kv_bytes_per_token(4)
    evaluated = command("eval", tmp_path / "out", "--text", text, "--length", "32", "--device", "cpu", "--json")
    assert evaluated.code == 0, evaluated
    timed = command(
        "bench", tmp_path / "out", "--baseline", tmp_path / "dense", "--batch-size", "1", "--prompt-tokens", "8",
        "--new-tokens", "4", "--repeats", "2", "--max-minutes", "0", "--no-memory", "--json",
    )  # fmt: skip
    assert timed.code == 0, timed


def test_what_it_can_be_exported_to(bare: Path, command: Command, tmp_path: Path) -> None:
    ended = command("export", bare, "--to", "hf", "-o", tmp_path / "hf")
    assert ended.code == 0, ended
    ids = _ids(2)
    copied, model = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "hf", bare))
    assert torch.equal(logits(copied, ids), logits(model, ids))
    for to in ("onnx", "gguf", "torchscript", "torch-export", "tensorrt"):
        said = _fail(command, "export", bare, "--to", to, "--no-verify", "-o", tmp_path / to)
        if "needs" not in said:
            assert f"Layer 0 has no attention, and {to} takes no such layers; export it with --to hf" in said
        assert not (tmp_path / to).exists()
    said = _fail(command, "export", bare, "--to", "hf", "--layout", "uniform", "-o", tmp_path / "uniform")
    assert "--layout uniform" in said and not (tmp_path / "uniform").exists()


def test_what_else_refuses_it(bare: Path, command: Command, tmp_path: Path) -> None:
    for arguments in (("plan", bare, "--blocks", "0.8", "-o", tmp_path / "plan.json"), ("analyze", bare)):
        assert "Layer 0 has no attention, and a model without it can't be scored" in _fail(command, *arguments)
    from prunekit.kernels import optimize

    model = AutoModelForCausalLM.from_pretrained(bare)
    with pytest.raises(PrunekitError, match="transformers' own generate"):
        optimize(model)


def test_vllm_refuses_it(bare: Path) -> None:
    """It builds models with an attention implementation of that name."""
    AttentionInterface.register("vllm", lambda *args, **kwargs: None)
    config = AutoConfig.from_pretrained(bare)
    config._attn_implementation = "vllm"
    with pytest.raises(ValueError, match="vLLM takes no layers without attention or FFN"):
        AutoModelForCausalLM.from_config(config)
