"""Wherever Hugging Face takes a model it takes a pruned one: ways to save it, heads, adapters, batching."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from prunekit.errors import PrunekitError
from prunekit.families import FAMILIES
from prunekit.modeling import model_code, per_layer, pruned_class, register

families = pytest.mark.parametrize("model_type", MODEL_TYPES)
INPUT_IDS = torch.arange(2, 2 + 2 * 9).reshape(2, 9) % VOCAB


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    register()
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
