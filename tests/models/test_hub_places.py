"""Wherever Hugging Face takes a model it takes a pruned one: ways to save it, heads, adapters, batching."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.modeling import per_layer, pruned_class, register_pruned
from tests.support.tiny import MODEL_TYPES, VOCAB, model_code, one_thread, random_plan, rebuilt_model, tiny_model

families = pytest.mark.parametrize("model_type", MODEL_TYPES)
INPUT_IDS = torch.arange(2, 2 + 2 * 9).reshape(2, 9) % VOCAB


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register_pruned()
    with one_thread():
        yield


def rebuilt(model_type: str = "llama", **fields: Any) -> Any:
    model = tiny_model(model_type, **fields)
    return rebuilt_model(model, random_plan(FAMILIES[model_type].shape(model.config)))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    rebuilt().save_pretrained(folder)
    (folder / "plan.json").write_text("{}")
    return folder


class Hub:
    """Takes uploads and keeps the names of what was in the folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.uploaded: list[set[str]] = []
        repo = type("Repo", (), {"repo_id": "someone/pruned"})
        api = type("Api", (), {"create_repo": lambda self, name, **options: repo})()
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", api)
        mixin = transformers.utils.hub.PushToHubMixin
        monkeypatch.setattr(
            mixin, "_upload_modified_files", lambda _, folder, *a, **k: self.uploaded.append(set(os.listdir(folder)))
        )


@pytest.mark.parametrize("loader", [AutoModelForCausalLM, AutoModel, AutoConfig])
@pytest.mark.parametrize("how", ["save_pretrained", "push_to_hub"])
def test_what_is_uploaded_is_complete(
    pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: Any, how: str
) -> None:
    hub = Hub(monkeypatch)
    loaded = loader.from_pretrained(pruned)
    if how == "push_to_hub":
        loaded.push_to_hub("someone/pruned")
    else:
        loaded.save_pretrained(str(tmp_path / "out"), push_to_hub=True, repo_id="someone/pruned")
    code = {path.name for path in model_code(FAMILIES["llama"])}
    assert {*code, "config.json", "plan.json"} <= hub.uploaded[0]


def test_code_of_a_hub_repository_is_saved_as_the_folder_s_own(pruned: Path, tmp_path: Path) -> None:
    """transformers points a config that came from the hub at the repository's code, which may go away."""
    model = AutoModelForCausalLM.from_pretrained(pruned)
    model.config.auto_map = {auto: f"someone/pruned--{name}" for auto, name in model.config.auto_map.items()}
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == set(per_layer.AUTO_CLASSES)
    assert all(name.split(".")[0] == "modeling_pruned_llama" for name in auto_map.values())


def test_a_plan_that_is_there_is_kept(pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("mine")
    AutoConfig.from_pretrained(pruned).save_pretrained(tmp_path)
    assert (tmp_path / "plan.json").read_text() == "mine"


HEADS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}


@families
def test_heads_of_every_family(model_type: str, tmp_path: Path) -> None:
    """The head reads what the decoder computes; saved and loaded again it says the same."""
    model = rebuilt(model_type)
    model.save_pretrained(tmp_path / "lm")
    with torch.no_grad():
        hidden = model.model(INPUT_IDS).last_hidden_state
    for suffix, auto in HEADS.items():
        options = {} if suffix == "ForQuestionAnswering" else {"num_labels": 3}
        made = getattr(transformers, auto).from_pretrained(tmp_path / "lm", **options).eval()
        assert type(made) is pruned_class(FAMILIES[model_type], suffix)
        head = made.score if options else made.qa_outputs
        with torch.no_grad():
            wanted = head(hidden)
            out = made(INPUT_IDS)
        got = out.logits if options else torch.stack([out.start_logits, out.end_logits], -1)
        torch.testing.assert_close(got, wanted[:, -1] if suffix == "ForSequenceClassification" else wanted)
        if suffix == "ForSequenceClassification":
            loss = made(INPUT_IDS, labels=torch.tensor([0, 2])).loss
            torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(got, torch.tensor([0, 2])))
        made.save_pretrained(tmp_path / suffix)
        again = getattr(transformers, auto).from_pretrained(tmp_path / suffix).eval()
        with torch.no_grad():
            assert torch.equal(again(INPUT_IDS)[0], out[0])


def test_a_classifier_reads_the_last_token_that_is_no_padding() -> None:
    model = pruned_class(FAMILIES["llama"], "ForSequenceClassification")(rebuilt().config).eval()
    short = INPUT_IDS[:1, :5]
    padded = torch.cat([short, short.new_zeros(1, 4)], 1)
    with torch.no_grad():
        both = model(torch.cat([padded, INPUT_IDS[1:]]), attention_mask=None).logits
        torch.testing.assert_close(both[:1], model(short).logits)


def test_peft_adapts_a_pruned_model_as_the_stock_one(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = ModuleType("peft.utils.constants")
    peft.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING = {"llama": ["q_proj", "v_proj"]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peft.utils.constants", peft)
    assert rebuilt().config.to_dict()["model_type"] == "pruned_llama"
    assert peft.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["pruned_llama"] == ["q_proj", "v_proj"]


def test_continuous_batching_says_what_it_can_t_do() -> None:
    with pytest.raises(PrunekitError, match=r"layers of this model differ.*--layout uniform"):
        rebuilt().generate_batch([[3, 4, 5]], generation_config=GenerationConfig(max_new_tokens=2, eos_token_id=-1))


_RELOAD = """
import json, os, sys, types, torch, transformers
sys.modules["transformers.cli.serving.model_manager"] = types.SimpleNamespace(transformers=transformers)
from safetensors.torch import load_file
root, ids = sys.argv[1], torch.tensor(json.loads(sys.argv[2]))
asked = []
import builtins
builtins.input = lambda text="": asked.append(text) or "n"
done = {}
for name in sorted(os.listdir(root)):
    folder = os.path.join(root, name)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    if name == "config":
        done[name] = type(config).__name__
        continue
    architecture = config.architectures[0]
    auto = next(auto for auto, target in config.auto_map.items() if target.split(".")[1] == architecture)
    for round in ("loaded", "saved and loaded"):
        load = getattr(transformers, auto).from_pretrained
        model, info = load(folder, trust_remote_code=True, output_loading_info=True, dtype="auto")
        assert not info["missing_keys"] and not info["mismatched_keys"], (name, info)
        with torch.no_grad():
            got = model.eval()(ids)[0].float()
        want = load_file(os.path.join(root, name, "want.st"))["out"]
        assert torch.equal(got, want), (name, round, (got - want).abs().max())
        folder = os.path.join(root, name, "again")
        if round == "loaded":
            model.save_pretrained(folder)
            assert os.path.exists(os.path.join(folder, "per_layer.py")), name
    done[name] = architecture
transformers.AutoTokenizer.from_pretrained(os.path.join(root, "with_tokenizer"), trust_remote_code=False)
assert not asked and not [name for name in sys.modules if name.startswith("prunekit")]
# As `transformers serve` does in this module, when its packages are there.
folder = os.path.join(root, "plain")
config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = getattr(transformers, config.architectures[0]).from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(model.eval()(ids)[0].float(), load_file(os.path.join(folder, "want.st"))["out"])
try:
    model.generate_batch([[3, 4, 5]], generation_config=transformers.GenerationConfig(eos_token_id=-1))
except Exception as error:
    assert type(error).__name__ == "PrunekitError" and "--layout uniform" in str(error), repr(error)
else:
    sys.exit("continuous batching said nothing")
print(json.dumps(done))
"""


class _Recorder(dict[str, str]):
    """Folders of a pruned model, saved in every way, each with what the model computes."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = root

    def add(self, name: str, model: Any, save: Any) -> None:
        folder = self.root / name
        model.eval()
        save(folder)
        with torch.no_grad():
            save_file({"out": model(INPUT_IDS)[0].float().contiguous()}, folder / "want.st")
        self[name] = type(model).__name__


def _train(model: Any, out: Path) -> Any:
    """One step of transformers' Trainer, with a checkpoint."""
    rows = [{"input_ids": row, "labels": row} for row in INPUT_IDS]
    options = transformers.TrainingArguments(
        str(out),
        max_steps=1,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=2,
    )
    trainer = transformers.Trainer(model=model, args=options, train_dataset=rows)
    trainer.train()
    return trainer


def _save_every_way(pruned: Path, root: Path, scratch: Path) -> _Recorder:
    made = _Recorder(root)

    def fresh(auto: str = "AutoModelForCausalLM", **options: Any) -> Any:
        return getattr(transformers, auto).from_pretrained(pruned, **options)

    model = fresh()
    made.add("plain", model, model.save_pretrained)
    made.add("shards", model, lambda folder: model.save_pretrained(folder, max_shard_size="40KB"))
    made.add("state_dict", model, lambda folder: model.save_pretrained(folder, state_dict=model.state_dict()))
    half = fresh(dtype=torch.bfloat16)
    made.add("bfloat16", half, half.save_pretrained)
    decoder = fresh("AutoModel")
    made.add("decoder", decoder, decoder.save_pretrained)
    for suffix, auto in HEADS.items():
        options = {} if suffix == "ForQuestionAnswering" else {"num_labels": 3}
        head = fresh(auto, **options)
        made.add(suffix, head, head.save_pretrained)
    for model_type in MODEL_TYPES:
        lm = rebuilt(model_type)
        head = pruned_class(FAMILIES[model_type], "ForSequenceClassification")(lm.config)
        made.add(f"classifier_{model_type}", head, head.save_pretrained)
    trainer = _train(fresh(), scratch / "trainer")
    made.add("trainer", trainer.model, lambda folder: trainer.save_model(str(folder)))
    made.add("checkpoint", trainer.model, lambda folder: shutil.copytree(scratch / "trainer" / "checkpoint-1", folder))

    def with_accelerate(folder: Path) -> None:
        Accelerator(cpu=True).save_model(model, folder)
        model.config.save_pretrained(folder)

    made.add("accelerate", model, with_accelerate)
    fresh("AutoConfig").save_pretrained(root / "config")

    def with_tokenizer(folder: Path) -> None:
        model.save_pretrained(folder)
        Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a")).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')

    made.add("with_tokenizer", model, with_tokenizer)
    if importlib.util.find_spec("peft") is not None:
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(fresh(), LoraConfig(init_lora_weights=False, r=2))
        adapted.save_pretrained(scratch / "adapter")
        assert (scratch / "adapter" / "adapter_config.json").is_file()
        merged = adapted.merge_and_unload()
        made.add("peft_merged", merged, merged.save_pretrained)
    return made


@pytest.mark.filterwarnings("ignore")
def test_every_way_of_saving_reloads_without_prunekit(pruned: Path, tmp_path: Path) -> None:
    """And saved there again, it reloads again: the same logits to the last bit, no question asked."""
    made = _save_every_way(pruned, tmp_path / "ways", tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", _RELOAD, str(tmp_path / "ways"), json.dumps(INPUT_IDS.tolist())],
        cwd=tmp_path,
        env=environment | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {**made, "config": "PrunedLlamaConfig"}
