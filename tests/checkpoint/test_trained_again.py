"""A pruned model that was trained and saved elsewhere still says what it is; a plan knows a model by its tensors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from prunekit.checkpoint.rebuild import rebuild
from prunekit.checkpoint.record import read_record
from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.target import Options
from prunekit.models.source import load_model, resolve
from prunekit.plan import Plan, whole_plan
from prunekit.utils.files.hashes import sha256
from tests.support.command import Command
from tests.support.tiny import random_plan, tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    tiny_model("llama", tied=True).save_pretrained(folder)
    return folder


def planned(folder: Path, drop: tuple[int, ...] = ()) -> Plan:
    source = resolve(str(folder))
    said = {"method": {"name": "taylor"}, "target": {"asked": "70 %"}}
    model = {"name": "tiny", "fingerprint": source.fingerprint}
    return replace(random_plan(source.shape, drop=drop), provenance={"model": model, **said})


def whole(folder: Path) -> Plan:
    return replace(whole_plan(resolve(str(folder)).shape), provenance={"method": {"name": "none"}})


@pytest.fixture(scope="module")
def pruned(dense: Path) -> Path:
    out = dense.parent / "pruned"
    rebuild(resolve(str(dense)), planned(dense, drop=(1,)), out)
    return out


def trained(pruned: Path, out: Path, loader: Any = AutoModelForCausalLM, change: bool = True) -> Path:
    model = loader.from_pretrained(pruned)
    if change:
        with torch.no_grad():
            next(model.parameters())[0, 0] += 1
    model.save_pretrained(out)
    return out


def shown(command: Command, folder: Path) -> dict[str, Any]:
    done = command("inspect", folder, "--json")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


def test_inspect_knows_a_model_that_was_trained_and_saved(pruned: Path, tmp_path: Path, command: Command) -> None:
    written = shown(command, pruned)
    assert written["weights_changed"] is False and written["verified_files"] > 3
    said = shown(command, trained(pruned, tmp_path / "out"))
    assert said["weights_changed"] is True and said["verified_files"] == 0
    same = ("layers", "source", "share_of_blocks", "layout", "architecture", "provenance", "versions")
    assert {key: said[key] for key in same} == {key: written[key] for key in same}
    assert shown(command, trained(pruned, tmp_path / "same", change=False))["weights_changed"] is False
    assert "changed after pruning" in command("inspect", tmp_path / "out").out


def test_without_its_plan_the_record_is_shown(pruned: Path, tmp_path: Path, command: Command) -> None:
    folder = trained(pruned, tmp_path / "out")
    (folder / "plan.json").write_text("something else")
    said = shown(command, folder)
    assert said["provenance"] == {} and (said["method"], said["target"]) == ("taylor", "70 %")
    out = command("inspect", folder).out
    assert "70 %" in out and "taylor" in out and "None" not in out


@pytest.mark.parametrize("record", [None, 3, {"source": 1}, {"source": "x" * 50_000}])
def test_a_strange_record_is_none(pruned: Path, tmp_path: Path, command: Command, record: Any) -> None:
    folder = trained(pruned, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    known = config["prunekit"]
    config["prunekit"] = {**known, **record} if isinstance(record, dict) else record
    (folder / "config.json").write_text(json.dumps(config))
    said = shown(command, folder)
    assert said["weights_changed"] is None and len(said["layers"]) == 3 and "source" not in said


def test_a_uniform_model_is_remembered_too(dense: Path, tmp_path: Path, command: Command) -> None:
    rebuild(resolve(str(dense)), planned(dense), tmp_path / "uniform", layout="uniform")
    said = shown(command, trained(tmp_path / "uniform", tmp_path / "out"))
    assert said["weights_changed"] is True and said["layout"] == "uniform"


def test_a_copy_keeps_the_record_and_a_second_pruning_makes_its_own(pruned: Path, tmp_path: Path) -> None:
    first = read_record(resolve(str(pruned)).config)
    made = export(resolve(str(pruned)), "hf", tmp_path / "half", Options(dtype="fp16"), verify=False)
    copied = resolve(str(made.path))
    assert first is not None
    assert read_record(copied.config) == replace(first, weights=copied.weights_digest)
    assert first.plan == sha256(made.path / "plan.json")
    folder = trained(pruned, tmp_path / "trained")
    changed = export(resolve(str(folder)), "hf", tmp_path / "changed", Options(dtype="fp16"), verify=False).path
    said = read_record(resolve(str(changed)).config)
    assert said is not None and said.weights == first.weights != resolve(str(changed)).weights_digest
    rebuild(resolve(str(folder)), whole(folder), tmp_path / "again")
    second = read_record(resolve(str(tmp_path / "again")).config)
    assert second is not None and second.source == "trained" and second.fingerprint != first.fingerprint


def test_a_dense_copy_says_nothing(dense: Path, tmp_path: Path) -> None:
    made = export(resolve(str(dense)), "hf", tmp_path / "copy", verify=False)
    assert "prunekit" not in json.loads((made.path / "config.json").read_text())


def resaved(dense: Path, out: Path, how: str) -> Path:
    shutil.copytree(dense, out)
    tensors = load_file(out / "model.safetensors")
    if how == "other shards":
        (out / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(dense).save_pretrained(out, max_shard_size="30KB")
        assert not (out / "model.safetensors").exists()
        return out
    if how == "with its tied head":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if how == "without the prefix":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if how == "with a computed table":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    if how == "one changed weight":
        tensors["model.norm.weight"][0] += 1
    save_file(dict(reversed(tensors.items())), out / "model.safetensors", metadata={"format": "pt", "by": how})
    return out


@pytest.mark.parametrize(
    "how", ["other shards", "another order", "with its tied head", "without the prefix", "with a computed table"]
)
def test_a_plan_fits_the_same_weights_saved_in_another_way(dense: Path, tmp_path: Path, how: str) -> None:
    again = resolve(str(resaved(dense, tmp_path / "again", how)))
    assert again.fingerprint == resolve(str(dense)).fingerprint


def test_a_plan_does_not_fit_other_weights(dense: Path, tmp_path: Path) -> None:
    again = resolve(str(resaved(dense, tmp_path / "again", "one changed weight")))
    assert again.fingerprint != resolve(str(dense)).fingerprint
    with pytest.raises(PrunekitError, match="whose weights differ"):
        rebuild(again, planned(dense), tmp_path / "out")


def test_a_plan_of_before_is_still_applied(dense: Path, tmp_path: Path) -> None:
    """Which told a model by its files."""
    source = resolve(str(dense))
    files = [[file.name, file.stat().st_size, sha256(file)] for file in source.weight_files()]
    old = replace(planned(dense), provenance={"model": {"name": "tiny", "fingerprint": source._hashed(files=files)}})
    assert old.provenance["model"]["fingerprint"] != source.fingerprint
    rebuild(source, old, tmp_path / "out")


def test_a_decoder_without_a_head_and_a_classifier_are_told(pruned: Path, tmp_path: Path, command: Command) -> None:
    assert shown(command, trained(pruned, tmp_path / "decoder", AutoModel))["weights_changed"] is True
    load_model(resolve(str(tmp_path / "decoder")), device="cpu")
    folder = trained(pruned, tmp_path / "classifier", AutoModelForSequenceClassification)
    assert shown(command, folder)["architecture"] == "PrunedLlamaForSequenceClassification"
    # Nothing is lacking where the config says that the head of the language model is no copy of the table.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert shown(command, folder)["weights_changed"] is True
    with pytest.raises(PrunekitError, match=r"no language model.*PrunedLlamaForSequenceClassification"):
        load_model(resolve(str(folder)), device="cpu")
    with pytest.raises(PrunekitError, match="no language model"):
        rebuild(resolve(str(folder)), whole(folder), tmp_path / "out")
