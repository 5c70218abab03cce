"""The baselines as their papers say, against references computed by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prunekit  # noqa: F401  (registers the classes of per-layer checkpoints)
from prunekit.checkpoint.manifest import verify
from prunekit.checkpoint.rebuild import rebuild
from prunekit.data.calibration import load_calibration
from prunekit.data.from_plan import text_of
from prunekit.errors import PrunekitError
from prunekit.models.biases import addable
from prunekit.models.dense import DenseModel
from prunekit.models.families import FAMILIES
from prunekit.models.source import Source, load_model, load_tokenizer, resolve
from prunekit.plan import Plan
from prunekit.plan.goals import parse_target
from prunekit.plan.methods import METHODS
from prunekit.plan.recipe import Recipe
from prunekit.pruning.allocation.global_sort import standardised
from prunekit.pruning.importance.scores import LayerScores, Scores
from prunekit.pruning.planner import PlanConfig, compute_plan
from prunekit.pruning.slicegpt import TurnedTensors, principal_axes, slice_model, sliced_config
from prunekit.recovery.flap_bias import compensate, is_compensated, output_biases
from tests.support.command import BRIEF, QUICK, Command, save_tiny, write_text
from tests.support.tiny import VOCAB, one_thread, random_plan, tiny_model, zeroed_model

INPUT_IDS = torch.randint(2, VOCAB, (5, 12), generator=torch.Generator().manual_seed(3))
BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
CLOSE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return resolve(str(save_tiny(tmp_path_factory.mktemp("models") / "llama")))


def config(text: Path, method: str, blocks: str = "0.7", **fields: Any) -> PlanConfig:
    return PlanConfig(
        target=parse_target(None, blocks, None),
        recipe=Recipe.of(method, ffn_multiple=1, calib=str(text), sequences=4, length=16, **fields),
        device="cpu",
    )


def slicing(text: Path) -> Recipe:
    return Recipe.of("slicegpt", calib=str(text), sequences=4, length=16)


def logits(model: Any, ids: torch.Tensor = INPUT_IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize(
    ("layers", "whole"),
    [(32, {0, 1, 2, 3, 30, 31}), (30, {0, 1, 2, 3, 28, 29}), (16, {0, 1, 15}), (4, {0}), (1, set())],
)
def test_llm_pruner_keeps_the_ends_that_its_scripts_keep(layers: int, whole: set[int]) -> None:
    assert METHODS["llm-pruner"].whole_layers(layers) == whole
    assert METHODS["wanda-sp"].whole_layers(layers) == set()


def test_llm_pruner_prunes_the_middle_alike(text: Path, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "deep", layers=16)))
    plan = compute_plan(source, config(text, "llm-pruner"))
    assert plan.provenance["protected_layers"] == [0, 1, 15]
    assert plan.provenance["method"]["whole_ends"] == [0.125, 0.0625]
    for index, (now, dense) in enumerate(zip(plan.shape.layers, source.shape.layers, strict=True)):
        assert (now == dense) == (index in (0, 1, 15)), index
    middle = [layer.intermediate_size for layer in plan.shape.layers[2:15]]
    assert max(middle) - min(middle) <= 1

    everywhere = compute_plan(source, config(text, "llm-pruner", protect_layers=frozenset()))
    assert everywhere.provenance["protected_layers"] == []
    assert everywhere.shape.layers[0] != source.shape.layers[0]
    chosen = compute_plan(source, config(text, "llm-pruner", protect_layers=frozenset({7})))
    assert [i for i, layer in enumerate(chosen.shape.layers) if layer == source.shape.layers[i]] == [7]
    with pytest.raises(PrunekitError, match=r"out of reach.*llm-pruner keeps the layers 0-1,15 whole"):
        compute_plan(source, config(text, "llm-pruner", "0.2"))
    compute_plan(source, config(text, "llm-pruner", "0.2", protect_layers=frozenset()))


def test_protected_layers_on_the_command_line(command: Command, text: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "deep", layers=8)
    arguments = ("--method", "llm-pruner", "--blocks", "0.7", "--calib", text, *QUICK, "--json")
    for options, whole in (((), [0, 7]), (("--set", "protect_layers=none"), []), (("--set", "protect_layers=3"), [3])):
        done = command("plan", model, "-o", tmp_path / "plan.json", "--overwrite", *arguments, *options)
        assert done.code == 0, done
        plan = Plan.load(tmp_path / "plan.json")
        assert plan.provenance["protected_layers"] == whole
        assert "llm-pruner" in plan.provenance["method"]["name"]


def caught_inputs(model: Any, names: tuple[str, ...], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs [B, L, n] of the modules of these names."""
    caught: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: caught.__setitem__(name, args[0].double())
        )
        for name in names
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    return caught


@pytest.mark.parametrize("name", ["minitron", "random"])
def test_alike_in_every_layer(name: str, command: Command, llama: Source, text: Path, tmp_path: Path) -> None:
    arguments = ("--method", name, "--blocks", "0.6", "--calib", text, *QUICK, "--json")
    kept = []
    for place, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(place)
        done = command("prune", llama.path, "-o", out, *arguments, "--set", f"seed={seed}")
        assert done.code == 0, done
        plan = verify(out).plan
        kept.append([keep.ffn for keep in plan.layers])
        widths = [layer.intermediate_size for layer in plan.shape.layers]
        assert max(widths) - min(widths) <= 1
        assert len({layer.num_attention_heads for layer in plan.shape.layers}) == 1
        assert torch.isfinite(logits(AutoModelForCausalLM.from_pretrained(out))).all()
    assert kept[0] == kept[1] and (name == "minitron" or kept[0] != kept[2])


def removed_inputs(model: Any, plan: Plan, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """W[:, j] · E[X_j] over the removed inputs j of every o_proj and down_proj, one after another."""
    names = ("self_attn.o_proj", "mlp.down_proj")
    modules = tuple(f"model.layers.{keep.index}.{name}" for keep in plan.layers for name in names)
    inputs = caught_inputs(model, modules, ids)
    dim = plan.source.head_dim
    made = {}
    for keep in plan.layers:
        heads = {head * dim + i for head in keep.query_heads for i in range(dim)}
        for name, kept in zip(names, (heads, set(keep.ffn)), strict=True):
            module = f"model.layers.{keep.index}.{name}"
            projection, mean = model.get_submodule(module), inputs[module].flatten(0, 1).mean(0)
            bias = torch.zeros(64, dtype=torch.float64)
            for column in range(projection.in_features):
                if column not in kept:
                    bias += projection.weight[:, column].detach().double() * mean[column]
            made[f"{module}.bias"] = bias if projection.bias is None else bias + projection.bias.detach().double()
    return made


def with_biases(model: Any, plan: Plan, biases: dict[str, torch.Tensor]) -> Any:
    """The dense model with what ``plan`` removes zeroed, and these output biases."""
    zeroed = zeroed_model(model, plan)
    fields = {**zeroed.config.to_dict(), "attention_bias": True, "mlp_bias": True}
    full = type(zeroed)(type(zeroed.config)(**fields))
    state = zeroed.state_dict() | {name: value.float() for name, value in biases.items()}
    zeros = {name: torch.zeros_like(value) for name, value in full.state_dict().items() if name.endswith("bias")}
    full.load_state_dict(zeros | state)
    return full.eval()


_OPEN = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "prunekit" not in sys.modules
with torch.no_grad():
    print(json.dumps(model(torch.tensor(json.loads(sys.stdin.read())), use_cache=False).logits.tolist()))
"""


def test_flap_puts_removed_means_into_biases(llama: Source, text: Path, tmp_path: Path) -> None:
    plan = compute_plan(llama, config(text, "flap"))
    assert plan.recipe is not None and is_compensated(plan, plan.recipe)
    assert plan.changes == BIASES and plan.provenance["method"]["compensate"] is True
    calibration = text_of(DenseModel(llama), plan, plan.recipe, "means were taken over", given=str(text))
    biases = compensate(DenseModel(llama, device="cpu"), plan, plan.recipe, calibration)
    written = rebuild(llama, plan, tmp_path / "out", weights=biases)
    # The target holds for all that was written, and nothing more would have fitted.
    budget = plan.provenance["target"]["parameters"]
    model = AutoModelForCausalLM.from_pretrained(written.path).eval()
    assert written.parameters == plan.shape.parameters == model.num_parameters() <= budget
    assert budget - written.parameters < plan.shape.ffn_channel_parameters == 3 * 64 + 2
    assert resolve(str(written.path)).shape == plan.shape

    dense = load_model(llama, device="cpu")
    ids = load_calibration(config(text, "flap").recipe.calibration, load_tokenizer(llama)).input_ids
    want = removed_inputs(dense, plan, ids)
    assert set(biases) == set(want)
    for name, bias in want.items():
        torch.testing.assert_close(biases[name], bias, rtol=1e-4, atol=1e-7)
    reference = logits(with_biases(dense, plan, want))
    assert error(logits(model), reference) < CLOSE
    assert error(logits(zeroed_model(dense, plan)), reference) > 100 * CLOSE

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(written.path)],
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
        input=json.dumps(INPUT_IDS.tolist()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert error(torch.tensor(json.loads(done.stdout.splitlines()[-1])), reference) < CLOSE

    uniform = rebuild(llama, plan, tmp_path / "uniform", weights=biases, layout="uniform")
    stock = FAMILIES["llama"].stock("LlamaForCausalLM").from_pretrained(uniform.path)
    assert error(logits(stock), reference) < CLOSE
    half = rebuild(llama, plan, tmp_path / "half", weights=biases, dtype="bfloat16")
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(half.path).parameters()} == {torch.bfloat16}


def test_flap_keeps_biases_that_are_there(text: Path, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "biased", bias=True)))
    plan = compute_plan(source, config(text, "flap"))
    assert plan.changes == {} and is_compensated(plan, plan.recipe)
    dense = load_model(source, device="cpu")
    biases = output_biases(dense, source.family, plan, INPUT_IDS, batch_size=2)
    want = removed_inputs(dense, plan, INPUT_IDS)
    for name, bias in want.items():
        torch.testing.assert_close(biases[name], bias, rtol=1e-4, atol=1e-7)
    written = rebuild(source, plan, tmp_path / "out", weights=biases)
    model = AutoModelForCausalLM.from_pretrained(written.path).eval()
    assert written.parameters == model.num_parameters() == plan.shape.parameters
    assert error(logits(model), logits(with_biases(dense, plan, want))) < CLOSE


@pytest.mark.parametrize(
    ("model_type", "projections", "bare"),
    [
        ("smollm3", ["self_attn.o_proj", "mlp.down_proj"], ""),
        ("qwen3", ["self_attn.o_proj"], "Qwen3 models have no bias on down_proj"),
        ("gemma2", ["self_attn.o_proj"], "Gemma 2 models have no bias on down_proj"),
        ("mistral", [], "Mistral models have no bias on o_proj and down_proj"),
        ("phi3", [], "Phi-3 models have no bias on o_proj and down_proj"),
    ],
)
def test_families_that_carry_less(
    model_type: str, projections: list[str], bare: str, command: Command, text: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", model_type)
    options = ("--method", "flap", "--blocks", "0.7", "--calib", text, *QUICK)
    done = command("prune", model, "-o", tmp_path / "out", *options)
    assert done.code == 0, done
    assert bare in " ".join(done.out.split()) and ("no bias" in done.out) == bool(bare)
    plan = verify(tmp_path / "out").plan
    assert plan.provenance["compensation"]["projections"] == projections
    assert plan.provenance["compensation"].get("without", "").startswith(bare)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert made.num_parameters() == plan.shape.parameters <= plan.provenance["target"]["parameters"]
    assert torch.isfinite(logits(made)).all()
    ffn_alone, _ = addable(FAMILIES[model_type], made.config, ("ffn",))
    assert "o_bias" not in ffn_alone


def test_flap_from_a_plan_file(command: Command, llama: Source, text: Path, tmp_path: Path) -> None:
    """The plan names its text by name alone, so prune must be told where it lies; the result is the same."""
    file, options = tmp_path / "plan.json", ("--method", "flap", "--blocks", "0.7", "--calib", text, *QUICK)
    assert command("plan", llama.path, "-o", file, *options).code == 0
    assert command("prune", llama.path, "-o", tmp_path / "once", *options).code == 0
    done = command("prune", llama.path, "-o", tmp_path / "twice", "--plan", file, "--calib", text, "--device", "cpu")
    assert done.code == 0, done
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("once", "twice")]
    assert weights[0] == weights[1]
    other = write_text(tmp_path / "other.txt", 3000)
    for extra, said in (
        ((), "give that text with --calib"),
        (("--calib", other), "calibration text is another one"),
        (("--calib", text, "--method", "flap"), "--method would have no effect"),
    ):
        refused = command("prune", llama.path, "-o", tmp_path / "no", "--plan", file, *extra)
        assert refused.code == 2 and said in refused.err and "Traceback" not in refused.err, refused
    assert not (tmp_path / "no").exists()
    with pytest.raises(PrunekitError, match=r"self_attn.o_proj.bias was not given; compute them with"):
        rebuild(llama, Plan.load(file), tmp_path / "no")


def test_weights_replace_what_slicing_gives(llama: Source, tmp_path: Path) -> None:
    plan = random_plan(llama.shape, drop=(1,))
    keep = plan.layers[1]
    name = f"model.layers.{keep.index}.mlp.down_proj.weight"
    given = torch.randn(64, len(keep.ffn), dtype=torch.float64)
    for layout in ("per-layer", "uniform"):
        written = rebuild(llama, plan, tmp_path / layout, layout=layout, weights={name: given})  # type: ignore[arg-type]
        made = AutoModelForCausalLM.from_pretrained(written.path).model.layers[1].mlp.down_proj.weight
        assert torch.equal(made[:, : len(keep.ffn)], given.float()) and not made[:, len(keep.ffn) :].any()
    for wrong, said in (
        ({name: given[:, 1:]}, "is given with the shape"),
        ({"model.layers.1.mlp.down_proj.weight": given}, "no such tensor"),
        ({f"model.layers.{keep.index}.mlp.down_proj.bias": given[:, 0]}, "no such tensor"),
        ({"model.norm.bias": given[:, 0]}, "no such tensor"),
        ({"model.norm.weight": given}, "the plan makes it"),
    ):
        with pytest.raises(PrunekitError, match=said):
            rebuild(llama, plan, tmp_path / "no", weights=wrong)
    with pytest.raises(PrunekitError, match="only together with qkv_bias"):
        rebuild(llama, replace(plan, changes={"o_bias": True}), tmp_path / "no")
    with pytest.raises(PrunekitError, match="'vocab_size', which no plan can"):
        replace(plan, changes={"vocab_size": 5})


SLICEABLE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3")


def turned(source: Source, axes: torch.Tensor) -> Any:
    model = source.family.stock(source.family.causal_lm_class)(sliced_config(source, axes.shape[1]))
    model.load_state_dict(dict(TurnedTensors(source, axes)))
    return model.eval()


def random_axes(seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(matrix).Q


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", SLICEABLE)
def test_a_rotation_changes_no_logit(model_type: str, tied: bool, tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "model", model_type, tied=tied, bias=True)))
    dense = load_model(source, device="cpu")
    want = logits(dense)
    axes, shares = principal_axes(dense, source.family, INPUT_IDS, 2)
    torch.testing.assert_close(axes.T @ axes, torch.eye(64, dtype=torch.float64))
    assert shares.sum().item() == pytest.approx(1) and (shares.diff() <= 1e-12).all()
    assert error(logits(turned(source, axes)), want) < 1e-4
    # Keeping the leading axes loses less than keeping as many of any other directions.
    for width in (56, 40):
        sliced, chance = turned(source, axes[:, :width]), turned(source, random_axes()[:, :width])
        assert error(logits(sliced), want) < 0.9 * error(logits(chance), want)


def test_axes_are_those_of_all_places(llama: Source) -> None:
    dense = load_model(llama, device="cpu")
    names = [f"model.layers.{i}.{name}" for i in range(4) for name in ("input_layernorm", "post_attention_layernorm")]
    covariance = torch.zeros(64, 64, dtype=torch.float64)
    for x in caught_inputs(dense, (*names, "model.norm"), INPUT_IDS).values():
        for token in x.flatten(0, 1):
            token = token / (token.square().mean() + dense.config.rms_norm_eps).sqrt()
            covariance += torch.outer(token, token)
    axes, shares = principal_axes(dense, llama.family, INPUT_IDS, 2)
    torch.testing.assert_close(
        axes.T @ covariance @ axes, torch.diag(shares * covariance.trace()), rtol=1e-5, atol=1e-5
    )


def test_states_that_leave_axes_unused_lose_nothing(tmp_path: Path) -> None:
    """The mean square is taken over fewer channels, and the norms' gains must make good for that."""
    model = tiny_model("llama")
    axes = random_axes(1)
    inside = (axes[:, :56] @ axes[:, :56].T).float()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ inside)
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.copy_(inside @ projection.weight)
    model.save_pretrained(tmp_path / "model")
    source = resolve(str(tmp_path / "model"))
    found, shares = principal_axes(model, source.family, INPUT_IDS)
    assert shares[56:].sum() < 1e-10
    small = turned(source, found[:, :56])
    assert small.model.norm.weight[0].item() == pytest.approx((64 / 56) ** 0.5)
    assert error(logits(small), logits(model)) < 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_slicegpt_on_the_command_line(tied: bool, command: Command, text: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", tied=tied)
    out = tmp_path / "out"
    done = command("prune", model, "-o", out, "--method", "slicegpt", "--blocks", "0.79", "--calib", text, *BRIEF)
    assert done.code == 0 and "Hidden states have" in done.out and not list(out.glob("*.py")), done
    made = FAMILIES["llama"].stock("LlamaForCausalLM").from_pretrained(out).eval()
    report = verify(out)
    plan, source = report.plan, resolve(str(model))
    assert report.damaged == () and resolve(str(out)).shape == plan.shape
    budget = plan.provenance["target"]["parameters"]
    assert budget == int(0.79 * source.shape.block_parameters + 1e-6) + source.shape.embedding_parameters
    assert made.num_parameters() == plan.shape.parameters <= budget
    # 64 channels in multiples of 8, which are multiples of the 8 heads too; untying costs a table.
    width = plan.changes["hidden_size"]
    assert width % 8 == 0 and not made.config.tie_word_embeddings
    assert replace(plan.shape, hidden_size=width + 8).parameters > budget
    assert made.config.hidden_size == width and made.config.head_dim == 16
    dense = load_model(source, device="cpu")
    sliced = error(logits(made), logits(dense))
    assert sliced < error(logits(turned(source, random_axes()[:, :width])), logits(dense))
    assert 0 < plan.provenance["kept_variance"] < 1
    again = command(
        "prune",
        model,
        "-o",
        tmp_path / "again",
        "--method",
        "slicegpt",
        "--blocks",
        "0.79",
        "--calib",
        text,
        *QUICK,
        "--json",
    )
    assert again.json["pruned"]["parameters"] == made.num_parameters()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    shown = command("inspect", out)
    assert shown.code == 0 and "slicegpt: rotate allocation" in shown.out
    with pytest.raises(PrunekitError, match="which no plan can do again"):
        rebuild(source, plan, tmp_path / "no")


def test_slicegpt_of_layers_that_differ(llama: Source, text: Path, tmp_path: Path) -> None:
    pruned = resolve(str(rebuild(llama, random_plan(llama.shape), tmp_path / "pruned").path))
    config = PlanConfig(parse_target("0.8", None, None), slicing(text), device="cpu")
    save_tiny(tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").glob("tokenizer*"):
        (pruned.path / file.name).write_bytes(file.read_bytes())
    plan, written = slice_model(pruned, config, tmp_path / "out")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert written.architecture == "PrunedLlamaForCausalLM" and written.parameters == made.num_parameters()
    assert resolve(str(written.path)).shape == plan.shape
    assert error(logits(made), logits(load_model(pruned, device="cpu"))) < 1


@pytest.mark.parametrize(("model_type", "multiple"), [("llama", 6), ("qwen2", 8)])
def test_slicegpt_minds_what_the_stock_config_takes(model_type: str, multiple: int, text: Path, tmp_path: Path) -> None:
    """Llama's config refuses hidden sizes that its heads don't divide, here six; Qwen2's does not."""
    folder = save_tiny(tmp_path / "m", model_type, hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    config = PlanConfig(parse_target("0.8", None, None), slicing(text), device="cpu")
    plan, written = slice_model(resolve(str(folder)), config, tmp_path / "out")
    width = plan.changes["hidden_size"]
    assert plan.provenance["rounding"]["hidden_multiple"] == multiple and width % multiple == 0
    budget = plan.provenance["target"]["parameters"]
    assert written.parameters <= budget < replace(plan.shape, hidden_size=width + multiple).parameters
    stock = FAMILIES[model_type].stock(written.architecture).from_pretrained(tmp_path / "out")
    assert torch.isfinite(logits(stock)).all()


@pytest.mark.parametrize(
    ("model_type", "options", "said"),
    [
        ("gemma2", (), "slicegpt can't turn Gemma 2 models"),
        ("olmo2", (), "slicegpt can't turn OLMo-2 models"),
        ("llama", ("--set", "allocation=uniform"), "slicegpt removes no units"),
        ("llama", ("--set", "protect_layers=0"), "none can be protected"),
        ("llama", ("--blocks", "0.01"), "out of reach for slicegpt"),
    ],
)
def test_slicegpt_refusals(
    model_type: str, options: tuple[str, ...], said: str, command: Command, text: Path, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", model_type)
    target = () if "--blocks" in options else ("--blocks", "0.79")
    given = ("--method", "slicegpt", *target, *options, "--calib", text, *BRIEF)
    done = command("prune", model, "-o", tmp_path / "out", *given)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done
    assert not (tmp_path / "out").exists()


def test_slicegpt_has_no_plan(command: Command, llama: Source, text: Path, tmp_path: Path) -> None:
    done = command(
        "plan",
        llama.path,
        "-o",
        tmp_path / "plan.json",
        "--method",
        "slicegpt",
        "--blocks",
        "0.7",
        "--calib",
        text,
        *QUICK,
    )
    assert done.code == 2 and "no widths to plan; use `prunekit prune --method slicegpt`" in done.err
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("heads", [1, 4])
def test_flap_standardises_channels_before_heads(heads: int) -> None:
    """As its code does: z-scores of channels, and of these the mean over every head (or KV group)."""
    channels = torch.rand(heads, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(heads)) ** 4
    ffn = torch.rand(30, dtype=torch.float64)
    query = channels.mean(-1)
    layer = LayerScores(query.sum(1), query, ffn, channels.std(correction=0).item())
    got = standardised(Scores("flap", (layer,))).layers[0]
    z = (channels - channels.mean()) / channels.std(correction=0)
    torch.testing.assert_close(got.query_heads, z.mean(-1))
    torch.testing.assert_close(got.kv_heads, z.mean((1, 2)))
    torch.testing.assert_close(got.ffn, (ffn - ffn.mean()) / ffn.std(correction=0))
