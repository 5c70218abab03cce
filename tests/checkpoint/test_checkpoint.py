"""Rebuilt checkpoints: the same model in any process that may open them, and nothing else in the folder."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prunekit.checkpoint import rebuild as checkpoint
from prunekit.checkpoint.manifest import verify
from prunekit.checkpoint.rebuild import Written, rebuild
from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.source import Source, load_model, resolve
from prunekit.plan import LayerKeep, Plan, compose
from prunekit.plan.shape import ModelShape
from prunekit.utils.files.replacing import snapshot
from tests.pruning.test_session import draw_keep
from tests.support.tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_model, zeroed_model
from tests.support.tiny_text import tiny_tokenizer

ROOT = Path(__file__).parents[2]
families = pytest.mark.parametrize("model_type", MODEL_TYPES)
INPUT_IDS = torch.randint(2, VOCAB, (2, 14), generator=torch.Generator().manual_seed(5))
STEPS = 5
SHARD = 100_000  # bytes; the largest tensor, an embedding table of 32 KiB, fits several times
FP32_TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _light() -> Iterator[None]:
    with one_thread():
        yield


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(INPUT_IDS, use_cache=False).logits


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    assert torch.isfinite(got).all()
    return ((got - want).abs().max() / want.abs().max()).item()


def save_source(
    folder: Path, model_type: str = "llama", *, dtype: torch.dtype = torch.float32, **fields: Any
) -> Source:
    """A tiny dense model on disk in several shards, with tokenizer and generation files beside it."""
    model = tiny_model(model_type, **fields).to(dtype)
    model.save_pretrained(folder, max_shard_size="120KB")
    tiny_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": {"x": "code.X"}}))
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return resolve(str(folder))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def open_auto(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@dataclass
class Built:
    root: Path
    sources: dict[str, Source]
    plans: dict[str, Plan]
    written: dict[str, Written]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A per-layer checkpoint of every family, and one stock (uniform) one, with what each of them must say."""
    root = tmp_path_factory.mktemp("built")
    built = Built(root, {}, {}, {})
    for place, name in enumerate((*MODEL_TYPES, "alike")):
        model_type = "llama" if name == "alike" else name
        source = save_source(root / "dense" / name, model_type, tied=place % 2 == 0, bias=True)
        if name == "alike":
            keep = LayerKeep(0, (0, 2), (0, 1, 4, 5), tuple(range(1, 65)))
            plan = Plan(source.shape, tuple(LayerKeep(i, keep.kv_heads, keep.query_heads, keep.ffn) for i in (0, 2, 3)))
        else:
            # Every third family loses a layer, too: one whose attention differs from its neighbours'.
            plan = random_plan(source.shape, drop=(1,) if place % 3 == 0 else ())
        built.sources[name], built.plans[name] = source, plan
        built.written[name] = rebuild(source, plan, root / "pruned" / name, max_shard_bytes=SHARD)
        model = open_auto(root / "pruned" / name)
        tokens = model.generate(INPUT_IDS, max_new_tokens=STEPS, do_sample=False)
        save_file({"logits": logits(model), "tokens": tokens}, root / f"{name}.want")
    return built


@families
def test_rebuilt_from_disk_equals_zeroed(model_type: str, built: Built) -> None:
    source, plan, written = built.sources[model_type], built.plans[model_type], built.written[model_type]
    model = open_auto(written.path)
    assert type(model).__name__ == FAMILIES[model_type].pruned_causal_lm_class == written.architecture
    dense = load_model(source, device="cpu")
    assert difference(logits(dense), logits(zeroed_model(dense, plan))) > 0.1
    assert difference(logits(model), logits(zeroed_model(dense, plan))) <= FP32_TOLERANCE
    assert torch.equal(logits(model), logits(rebuilt_model(dense, plan)))
    assert torch.equal(logits(model), load_file(built.root / f"{model_type}.want")["logits"])
    assert written.parameters == plan.shape.parameters == sum(p.numel() for p in model.parameters())
    assert written.weight_bytes == 4 * written.parameters
    assert resolve(str(written.path)).shape == plan.shape


@families
def test_files_of_a_checkpoint(model_type: str, built: Built) -> None:
    folder = built.written[model_type].path
    names = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    code = {f"modeling_pruned_{model_type}.py", "per_layer.py"}
    copied = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    own = {"README.md", "config.json", "plan.json", "prunekit.json", "model.safetensors.index.json"}
    assert names == code | copied | own
    # Code of the source never comes along, nor a pointer to it.
    assert "auto_map" not in json.loads((folder / "tokenizer_config.json").read_text())

    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config and "_name_or_path" not in config
    for path in folder.iterdir():
        # Where it was made is nobody's business: paths name users and customers.
        assert str(built.root).encode() not in path.read_bytes(), path.name
    assert Plan.load(folder / "plan.json").layers == built.plans[model_type].layers

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2 and {path.name for path in shards} == set(index["weight_map"].values())
    stored = {path.name: load_file(path) for path in shards}
    assert {name: file for file, held in stored.items() for name in held} == index["weight_map"]
    sizes = [sum(t.nbytes for t in held.values()) for held in stored.values()]
    assert sum(sizes) == index["metadata"]["total_size"] == built.written[model_type].weight_bytes
    assert max(sizes) <= SHARD
    # Shards are filled: no two neighbours would have fitted into one.
    assert all(a + b > SHARD for a, b in itertools.pairwise(sizes))


@families
def test_manifest_verifies_until_a_file_changes(model_type: str, built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built.written[model_type].path, folder)
    report = verify(folder)
    assert report.damaged == () and report.files == len(list(folder.iterdir())) - 1
    assert report.facts["source"]["fingerprint"] == built.sources[model_type].fingerprint
    victim = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    (folder / "per_layer.py").unlink()
    assert set(verify(folder).damaged) == {victim.name, "per_layer.py"}


_OPEN = """
import json, os, sys
mode, root, version = sys.argv[1:]
if mode != "prunekit":
    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "prunekit":
                raise ImportError(f"{name} is blocked")
    sys.meta_path.insert(0, Blocked())
    try:
        import prunekit
    except ImportError:
        pass
    else:
        sys.exit("prunekit was importable")
import torch, transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
assert transformers.__version__.startswith(version), transformers.__version__
if mode == "prunekit":
    import prunekit
remote = mode == "remote"
input_ids = torch.tensor(json.loads(sys.stdin.read()))
worst = 0.0
opened = [(name, remote) for name in sorted(os.listdir(os.path.join(root, "pruned")))]
if remote:
    # Before any remote code has run: a stock checkpoint needs none.
    opened.insert(0, ("alike", False))
for name, trusted in opened:
    options = {"trust_remote_code": trusted}
    if name == "gemma2":
        # transformers 5.16 takes sdpa by default, which leaves out Gemma 2's softcap; the stock model is off, too.
        options["attn_implementation"] = "eager"
    model = AutoModelForCausalLM.from_pretrained(os.path.join(root, "pruned", name), **options).eval()
    place = type(model).__module__.split(".")[0]
    assert place == ("transformers" if name == "alike" else "transformers_modules" if remote else "prunekit"), place
    want = load_file(os.path.join(root, name + ".want"))
    with torch.no_grad():
        got = model(input_ids, use_cache=False).logits
    worst = max(worst, ((got - want["logits"]).abs().max() / want["logits"].abs().max()).item())
    steps = want["tokens"].shape[1] - input_ids.shape[1]
    tokens = model.generate(input_ids, max_new_tokens=steps, do_sample=False)
    assert torch.equal(tokens, want["tokens"]), name
print(json.dumps([len(opened), worst]))
"""


def open_elsewhere(mode: str, built: Built, cwd: Path, environment: dict[str, str], version: str) -> tuple[int, float]:
    """How many checkpoints a fresh process opened, and the largest difference of their logits."""
    modules = {"HF_MODULES_CACHE": str(cwd / "modules"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, mode, str(built.root), version],
        cwd=cwd,
        env=environment | modules,
        input=json.dumps(INPUT_IDS.tolist()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    count, worst = json.loads(done.stdout.splitlines()[-1])
    return count, worst


def test_opens_without_prunekit(built: Built, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    count, worst = open_elsewhere("remote", built, tmp_path, environment, "5.")
    # The one whose layers are all alike twice: as a stock checkpoint, too.
    assert count == len(MODEL_TYPES) + 2 and worst == 0


def test_opens_with_prunekit_and_no_remote_code(built: Built, tmp_path: Path) -> None:
    count, worst = open_elsewhere("prunekit", built, tmp_path, os.environ | {"PYTHONPATH": str(ROOT)}, "5.")
    assert count == len(MODEL_TYPES) + 1 and worst == 0


@pytest.mark.parametrize("mode", ["remote", "prunekit"])
def test_opens_in_the_oldest_transformers(
    mode: str, built: Built, tmp_path: Path, compat_python: dict[str, str]
) -> None:
    # Another version may compute the same in another order.
    count, worst = open_elsewhere(mode, built, tmp_path, compat_python, "5.16.")
    assert count == len(MODEL_TYPES) + {"remote": 2, "prunekit": 1}[mode] and worst <= FP32_TOLERANCE


def test_layers_all_alike_are_a_stock_checkpoint(built: Built) -> None:
    """No modelling file, no per_layer_config. test_opens_without_prunekit opens it without remote code."""
    written, plan = built.written["alike"], built.plans["alike"]
    assert written.architecture == "LlamaForCausalLM" and written.layout == "per-layer"
    config = json.loads((written.path / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_hidden_layers"] == 3
    assert not {"per_layer_config", "auto_map"} & set(config)
    assert not list(written.path.glob("*.py"))
    dense = load_model(built.sources["alike"], device="cpu")
    want = logits(zeroed_model(dense, plan))
    assert difference(load_file(built.root / "alike.want")["logits"], want) <= FP32_TOLERANCE


@families
def test_stock_class_fails_loudly(model_type: str, built: Built, tmp_path: Path) -> None:
    """Never a model with random or mis-shaped layers, however the config is bent."""
    family = FAMILIES[model_type]
    stock = family.stock(family.causal_lm_class)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        stock.from_pretrained(built.written[model_type].path)
    folder = tmp_path / "bent"
    shutil.copytree(built.written[model_type].path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "architectures": [family.causal_lm_class]}
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    for opener in (stock, AutoModelForCausalLM):
        with pytest.raises((RuntimeError, ValueError), match=r"per-layer attribute|head_dim|hidden"):
            opener.from_pretrained(folder)
    # Without the overrides the weights no longer fit the widths.
    del config["per_layer_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"mismatch"):
        stock.from_pretrained(folder)


def smaller(shape: ModelShape, seed: int, drop: tuple[int, ...] = ()) -> Plan:
    rng = random.Random(seed)
    return Plan(shape, tuple(draw_keep(rng, i, layer) for i, layer in enumerate(shape.layers) if i not in drop))


@families
def test_pruning_again_equals_pruning_once(model_type: str, built: Built, tmp_path: Path) -> None:
    first = built.plans[model_type]
    source = resolve(str(built.written[model_type].path))
    second = smaller(source.shape, 1, drop=(1,))
    twice = rebuild(source, second, tmp_path / "twice")
    layers = tuple(first.layers[keep.index].compose(keep) for keep in second.layers)
    both = compose(first, second)
    assert both == Plan(first.source, layers) and both.shape == second.shape
    once = rebuild(built.sources[model_type], both, tmp_path / "once")
    got, want = tensors(twice.path), tensors(once.path)
    assert set(got) == set(want) and twice.parameters == once.parameters == second.shape.parameters
    for name, tensor in want.items():
        # OLMo-2's norms are rescaled at every step, rounding each time.
        torch.testing.assert_close(got[name], tensor, rtol=1e-6 if model_type == "olmo2" else 0, atol=0)
    configs = [json.loads((written.path / "config.json").read_text()) for written in (twice, once)]
    # What differs is what each says it was made from.
    records = [config.pop("prunekit") for config in configs]
    assert [record["source"] for record in records] == [source.path.name, built.sources[model_type].path.name]
    assert configs[0] == configs[1]
    dense = load_model(built.sources[model_type], device="cpu")
    want_logits = logits(zeroed_model(dense, Plan(first.source, layers)))
    assert difference(logits(open_auto(twice.path)), want_logits) <= FP32_TOLERANCE


@families
def test_uniform_layout_is_the_same_model_in_the_stock_class(model_type: str, built: Built, tmp_path: Path) -> None:
    source, plan = built.sources[model_type], built.plans[model_type]
    written = rebuild(source, plan, tmp_path / "uniform", layout="uniform")
    assert written.layout == "uniform" and written.architecture == FAMILIES[model_type].causal_lm_class
    assert not list(written.path.glob("*.py"))
    model = FAMILIES[model_type].stock(written.architecture).from_pretrained(written.path)
    want = load_file(built.root / f"{model_type}.want")["logits"]
    assert difference(logits(model), want) <= FP32_TOLERANCE
    assert written.parameters == sum(p.numel() for p in model.parameters()) > plan.shape.parameters


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text", "qwen2"])
def test_head_counts_that_the_stock_config_refuses(model_type: str, built: Built, tmp_path: Path) -> None:
    """6 query heads don't divide 64 channels, so some stock configs refuse: dense head counts, narrow FFNs."""
    for step, source in enumerate((built.sources[model_type], resolve(str(built.written[model_type].path)))):
        keeps = []
        for index, layer in enumerate(source.shape.layers):
            # The first layer keeps three heads, so that three is the most of any layer.
            heads = tuple(range(min(3, layer.num_key_value_heads)))
            queries = tuple(head * layer.group_size + i for head in heads for i in range(layer.group_size))
            keeps.append(LayerKeep(index, heads, queries, tuple(range(30 - index))))
        plan = Plan(source.shape, tuple(keeps))
        pruned = rebuild(source, plan, tmp_path / f"pruned{step}")
        uniform = rebuild(source, plan, tmp_path / f"uniform{step}", layout="uniform")
        config = json.loads((uniform.path / "config.json").read_text())
        assert config["intermediate_size"] == 30
        if model_type != "qwen2":
            assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 4)
        assert difference(logits(open_auto(uniform.path)), logits(open_auto(pruned.path))) <= FP32_TOLERANCE


def test_layers_all_alike_with_refused_heads_stay_per_layer(built: Built, tmp_path: Path) -> None:
    source = built.sources["llama"]
    keep = ((0, 1, 3), (0, 1, 2, 3, 6, 7), tuple(range(40)))
    plan = Plan(source.shape, tuple(LayerKeep(i, *keep) for i in range(4)))
    written = rebuild(source, plan, tmp_path / "out")
    assert written.architecture == "PrunedLlamaForCausalLM"
    dense = load_model(source, device="cpu")
    assert difference(logits(open_auto(written.path)), logits(zeroed_model(dense, plan))) <= FP32_TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_dtype(dtype: str, built: Built, tmp_path: Path) -> None:
    wanted = getattr(torch, dtype)
    plan = built.plans["qwen3"]
    written = rebuild(built.sources["qwen3"], plan, tmp_path / "out", dtype=dtype)
    exact, got = tensors(built.written["qwen3"].path), tensors(written.path)
    assert all(torch.equal(tensor, exact[name].to(wanted)) for name, tensor in got.items())
    assert written.weight_bytes == 2 * plan.shape.parameters
    assert json.loads((written.path / "config.json").read_text())["dtype"] == dtype
    assert open_auto(written.path).dtype == wanted

    # "auto" keeps what the source has.
    half = save_source(tmp_path / "half", "qwen3", dtype=wanted, bias=True)
    kept = rebuild(half, plan, tmp_path / "kept")
    assert json.loads((kept.path / "config.json").read_text())["dtype"] == dtype
    assert {tensor.dtype for tensor in tensors(kept.path).values()} == {wanted}
    with pytest.raises(PrunekitError, match="dtype must be auto, float32"):
        rebuild(half, plan, tmp_path / "no", dtype="int8")


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    save_source(folder)
    file = sorted(folder.glob("*.safetensors"))[0]
    held = load_file(file)
    name = next(iter(sorted(held)))
    held[name].view(-1)[0] = 1e6
    save_file(held, file, metadata={"format": "pt"})
    source = resolve(str(folder))
    keeps = tuple(LayerKeep.everything(i, layer) for i, layer in enumerate(source.shape.layers))
    with pytest.raises(PrunekitError, match=rf"{name} holds numbers too large for float16"):
        rebuild(source, Plan(source.shape, keeps), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    rebuild(source, Plan(source.shape, keeps), tmp_path / "out", dtype="bfloat16")


def test_one_shard_in_memory(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one shard of tensors lives at a time, and the one that is being read."""
    limit, saved, peak = 60_000, [], 0
    alive: list[weakref.ref[torch.Tensor]] = []
    walk, save = checkpoint._TensorCutter.__iter__, checkpoint.save_file

    def watch(self: Any) -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal peak
        for name, tensor in walk(self):
            alive.append(weakref.ref(tensor))
            peak = max(peak, sum(t.nbytes for ref in alive if (t := ref()) is not None))
            yield name, tensor

    def record(held: dict[str, torch.Tensor], *args: Any, **options: Any) -> None:
        saved.append(sum(tensor.nbytes for tensor in held.values()))
        save(held, *args, **options)

    monkeypatch.setattr(checkpoint._TensorCutter, "__iter__", watch)
    monkeypatch.setattr(checkpoint, "save_file", record)
    written = rebuild(built.sources["llama"], built.plans["llama"], tmp_path / "out", max_shard_bytes=limit)
    largest = max(tensor.nbytes for tensor in tensors(written.path).values())
    assert sum(saved) == written.weight_bytes > 4 * limit
    assert max(saved) <= limit
    # A view would keep the whole dense tensor alive behind a small one.
    assert largest < peak <= limit + 2 * largest


def test_a_tensor_larger_than_a_shard_has_one_to_itself(built: Built, tmp_path: Path) -> None:
    written = rebuild(built.sources["llama"], built.plans["llama"], tmp_path / "out", max_shard_bytes=1)
    files = list(written.path.glob("*.safetensors"))
    assert all(len(load_file(file)) == 1 for file in files) and len(files) == len(tensors(written.path))
    assert torch.equal(logits(open_auto(written.path)), load_file(built.root / "llama.want")["logits"])
    whole = rebuild(built.sources["llama"], built.plans["llama"], tmp_path / "whole")
    assert [path.name for path in whole.path.glob("*.safetensors*")] == ["model.safetensors"]


@families
def test_saved_again_by_transformers(model_type: str, built: Built, tmp_path: Path) -> None:
    model = open_auto(built.written[model_type].path)
    model.save_pretrained(tmp_path / "again")
    again = open_auto(tmp_path / "again")
    assert type(again) is type(model)
    assert torch.equal(logits(again), logits(model))
    assert resolve(str(tmp_path / "again")).shape == built.plans[model_type].shape


@families
def test_source_without_a_head(model_type: str, tmp_path: Path) -> None:
    """AutoModel saves a decoder without its head, and its tensors without the prefix "model."."""
    model = tiny_model(model_type, tied=True, layers=2)
    model.model.save_pretrained(tmp_path / "dense")
    source = resolve(str(tmp_path / "dense"))
    assert "embed_tokens.weight" in tensors(tmp_path / "dense")
    plan = random_plan(source.shape)
    written = rebuild(source, plan, tmp_path / "out")
    assert set(tensors(written.path)) == {f"model.{name}" for name in tensors(tmp_path / "dense")}
    assert difference(logits(open_auto(written.path)), logits(zeroed_model(model, plan))) <= FP32_TOLERANCE


def test_same_inputs_same_bytes(built: Built, tmp_path: Path) -> None:
    again = rebuild(built.sources["phi3"], built.plans["phi3"], tmp_path / "again", max_shard_bytes=SHARD)
    folder = built.written["phi3"].path
    assert {p.name: p.read_bytes() for p in again.path.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_plans_of_another_model_are_refused(built: Built, tmp_path: Path) -> None:
    source, plan = built.sources["llama"], built.plans["llama"]
    with pytest.raises(PrunekitError, match="made of a model of another shape"):
        rebuild(built.sources["phi3"], plan, tmp_path / "out")
    stranger = Plan(plan.source, plan.layers, {"model": {"name": "other", "fingerprint": "0" * 64}})
    with pytest.raises(PrunekitError, match="made of 'other', whose weights differ"):
        rebuild(source, stranger, tmp_path / "out")
    with pytest.raises(PrunekitError, match="layout must be per-layer or uniform"):
        rebuild(source, plan, tmp_path / "out", layout="wide")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_existing_folders_are_safe(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, plan, out = built.sources["llama"], built.plans["llama"], tmp_path / "out"
    rebuild(source, plan, out)
    with pytest.raises(PrunekitError, match="already exists"):
        rebuild(source, plan, out)
    before = snapshot(out)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_manifest", fail)
        with pytest.raises(PrunekitError, match="No space left"):
            rebuild(source, plan, out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and snapshot(out) == before
    rebuild(source, plan, out, overwrite=True)
    assert snapshot(out) != before and verify(out).damaged == ()
    (out / "mine").touch()
    with pytest.raises(PrunekitError, match="also holds mine"):
        rebuild(source, plan, out, overwrite=True)
    assert (out / "mine").exists()
