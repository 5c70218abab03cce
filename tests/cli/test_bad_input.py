"""Bad input through the real command line: one clear line, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.models.families import supported
from tests.support.command import Command, listing, run_apart, save_tiny
from tests.support.spoiled import Place, Shared, make_shared, must_refuse, nan_in
from tests.support.tiny_text import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return make_shared(tmp_path_factory.mktemp("shared"))


def hostile_index(place: Place) -> Path:
    file = place.model / "model.safetensors"
    file.rename(place.here / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (place.model / "model.safetensors.index.json").write_text(json.dumps(index))
    return place.model


def pickled(place: Place) -> Path:
    (place.model / "model.safetensors").rename(place.model / "pytorch_model.bin")
    return place.model


def cut_short(place: Place) -> Path:
    file = place.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return place.model


def lying_header(place: Place) -> Path:
    """A header that adds up to the file's length, with a tensor whose shape does not fit its bytes."""
    file = place.model / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [63]
    raw = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(raw) == length
    file.write_bytes(data[:8] + raw + data[8 + length :])
    return place.model


def other_model(place: Place) -> Path:
    return place.weights(lambda tensors: tensors["model.norm.weight"].add_(1.0))


def huge_plan(data: dict[str, Any]) -> None:
    width = 10**13
    for layer, entry in zip(data["source"]["layers"], data["layers"], strict=True):
        layer["intermediate_size"] = entry["intermediate_size"] = width
        entry["keep"]["ffn"] = f"0-{width - 1}"


def wider_by_hand(data: dict[str, Any]) -> None:
    data["layers"][0]["intermediate_size"] += 1


def unequal_heads(data: dict[str, Any]) -> None:
    entry = data["layers"][0]
    entry.update(num_attention_heads=4, num_key_value_heads=4)
    entry["keep"].update(kv_heads="0-3", query_heads="0-2,4")


def changed_byte(place: Place) -> Path:
    file = place.pruned / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return place.pruned


def manifest(place: Place, **fields: Any) -> Path:
    return Place._edit(place.pruned / "prunekit.json", fields)


def other_tokenizer(place: Place) -> Path:
    tiny_tokenizer(extra=("<one>", "<two>")).save_pretrained(place.model)
    return place.model


def larger_tokenizer(place: Place) -> Path:
    """Its tokens go beyond the model's embeddings."""
    tiny_tokenizer(extra=tuple(f"<{number}>" for number in range(60))).save_pretrained(place.model)
    return place.model


Case = tuple[Callable[[Place], list[object]], tuple[str, ...]]

MODELS: dict[str, Case] = {
    "no model": (lambda p: ["plan", "--params", "0.8"], ("Missing argument", "--help")),
    "missing path": (lambda p: p.plan("--params", "0.8", model=p.here / "nowhere"), ("no model", "hub id")),
    "nonsense name": (lambda p: p.plan("--params", "0.8", model="no such/thing/at all"), ("no model", "smollm2-135m")),
    "very long name": (lambda p: p.plan("--params", "0.8", model="x" * 5000), ("no model",)),
    "a file": (lambda p: p.plan("--params", "0.8", model=p.shared.text), ("not a .gguf", "folder")),
    "empty folder": (lambda p: p.plan("--params", "0.8", model=p.here), ("no config.json", "save_pretrained")),
    "MoE": (
        lambda p: p.plan("--params", "0.8", model=p.config(model_type="mixtral")),
        ("mixture of experts", supported()),
    ),
    "encoder": (
        lambda p: p.plan("--params", "0.8", model=p.config(model_type="bert")),
        ("not a decoder-only", supported()),
    ),
    "multimodal": (
        lambda p: p.plan("--params", "0.8", model=p.config(model_type="llava")),
        ("more than a text decoder", "extract", supported()),
    ),
    "MLA": (
        lambda p: p.plan("--params", "0.8", model=p.config(model_type="deepseek_v3")),
        ("latent attention", supported()),
    ),
    "unknown type": (
        lambda p: p.plan("--params", "0.8", model=p.config(model_type="zzz")),
        ("'zzz'", "What works: " + supported()),
    ),
    "pickled only": (lambda p: p.plan("--params", "0.8", model=pickled(p)), ("pickled", "save_pretrained")),
    "cut short": (lambda p: p.plan("--params", "0.8", model=cut_short(p)), ("cut short", "Download it again")),
    "lying header": (lambda p: p.plan("--params", "0.8", model=lying_header(p)), ("damaged", "Download it again")),
    "index leaves folder": (
        lambda p: p.plan("--params", "0.8", model=hostile_index(p)),
        ("'../outside.safetensors'", "download it again"),
    ),
    "config not JSON": (lambda p: p.plan("--params", "0.8", model=_spoil(p, "{")), ("not valid JSON",)),
    "config with an endless number": (
        lambda p: p.plan("--params", "0.8", model=_spoil(p, '{"a": ' + "9" * 5000 + "}")),
        ("not valid JSON",),
    ),
    "absurd layers": (
        lambda p: p.plan("--params", "0.8", model=p.config(num_hidden_layers=10**9)),
        ("num_hidden_layers", "from 1 to"),
    ),
    "layers that are no number": (
        lambda p: p.plan("--params", "0.8", model=p.config(per_layer_config={"²": {}})),
        ("names layer '²'",),
    ),
    # Loading would make up 16 GiB of embeddings.
    "absurd vocabulary": (
        lambda p: p.plan("--params", "0.8", model=p.config(vocab_size=1 << 26)),
        ("embed_tokens", "don't belong together"),
    ),
    "padding beyond the vocabulary": (
        lambda p: p.plan("--params", "0.8", model=p.config(pad_token_id=99_999)),
        ("could not be loaded",),
    ),
    "quantised": (
        lambda p: p.plan("--params", "0.8", model=p.config(quantization_config={"quant_method": "awq"})),
        ("quantised", "awq", "unquantised model"),
    ),
    "no tokenizer": (lambda p: p.plan("--params", "0.8", model=_without_tokenizer(p)), ("no tokenizer", "copy")),
    "tokenizer of a larger model": (
        lambda p: p.plan("--params", "0.8", "--calib", p.write("t.txt", "~}|{" * 100), model=larger_tokenizer(p)),
        ("tokenizer", "don't belong together"),
    ),
    "NaN, taylor": (
        lambda p: p.plan("--params", "0.8", model=p.weights(nan_in("model.layers.2.mlp.up_proj.weight"))),
        ("Layer 2", "mlp.up_proj.weight", "NaN", "again"),
    ),
    "NaN, fisher": (
        lambda p: p.plan(
            "--params",
            "0.8",
            "--method",
            "fisher-global",
            model=p.weights(nan_in("model.layers.1.self_attn.k_proj.weight")),
        ),
        ("Layer 1", "self_attn.k_proj.weight", "NaN"),
    ),
    "NaN, magnitude": (
        lambda p: p.plan(
            "--params",
            "0.8",
            "--method",
            "magnitude",
            model=p.weights(nan_in("model.layers.3.mlp.down_proj.weight")),
        ),
        ("Layer 3", "mlp.down_proj.weight", "NaN"),
    ),
}


def _spoil(place: Place, text: str) -> Path:
    (place.model / "config.json").write_text(text)
    return place.model


def _without_tokenizer(place: Place) -> Path:
    for file in place.model.glob("tokenizer*"):
        file.unlink()
    return place.model


OPTIONS: dict[str, Case] = {
    "no target": (lambda p: p.plan(), ("at least one target", "--params 0.8", "--flops 0.75", "--latency 0.7")),
    "one of two larger": (lambda p: p.plan("--params", "9B", "--blocks", "1.5"), ("not a share", "0.79")),
    "FLOPs by another method": (
        lambda p: p.plan("--flops", "0.8"),
        ("--flops 0.8", "optimal, which", "--method prunekit", "adapt-pruner"),
    ),
    "KV cache out of reach": (
        lambda p: p.plan("--kv-cache", "0.1", "--params", "0.8", "--set", "allocation=optimal"),
        ("--kv-cache 0.1", "out of reach", "least possible is 512", "--kv-cache 0.2501"),
    ),
    "latency without a table": (lambda p: p.plan("--latency", "0.8"), ("--latency 0.8", "--latency-table FILE")),
    "latency table is missing": (
        lambda p: p.plan("--latency", "0.8", "--latency-table", "no.json"),
        ("latency table no.json", "does not exist"),
    ),
    "latency table is a plan": (
        lambda p: p.plan("--latency", "0.8", "--latency-table", p.shared.plan),
        ("is not a latency table", "prunekit latency-table"),
    ),
    "table of no latency": (
        lambda p: ["latency-table", p.shared.model, "-o", p.here / "t.json", "--phase", "sleep"],
        ("phase", "prefill or decode", "'sleep'"),
    ),
    "table of longer texts": (
        lambda p: ["latency-table", p.shared.model, "-o", p.here / "t.json", "--length", "257"],
        ("257", "256 positions", "--length"),
    ),
    "target 0": (lambda p: p.plan("--params", "0"), ("must keep something", "between 0 and 1")),
    "target -1": (lambda p: p.plan("--params", "-1"), ("not a target", "0.8")),
    "target nan": (lambda p: p.plan("--params", "nan"), ("not a target",)),
    "target 1e999": (lambda p: p.plan("--params", "1e999"), ("nothing to prune", "ask for less")),
    "larger than the model": (lambda p: p.plan("--params", "9B"), ("nothing to prune", "ask for less")),
    "blocks 1.5": (lambda p: p.plan("--blocks", "1.5"), ("not a share", "0.79")),
    "weights in apples": (lambda p: p.plan("--weights", "4 apples"), ("not a size", "4GiB")),
    "out of reach": (lambda p: p.plan("--params", "0.01"), ("out of reach", "smallest possible", "--params 0.")),
    "unknown method": (
        lambda p: p.plan("--params", "0.8", "--method", "magic"),
        ("'magic'", "adapt-pruner, llm-pruner"),
    ),
    "unknown importance": (
        lambda p: p.plan("--params", "0.8", "--set", "importance=luck"),
        ("'luck'", "taylor", "wanda"),
    ),
    "unknown layer importance": (
        lambda p: p.plan("--params", "0.8", "--set", "layer_importance=height"),
        ("'height'", "cosine"),
    ),
    "unknown allocation": (lambda p: p.plan("--params", "0.8", "--set", "allocation=fair"), ("'fair'", "uniform")),
    "unknown unit": (
        lambda p: p.plan("--params", "0.8", "--set", "units=norms"),
        ("units takes ffn, kv, query, attention-layer",),
    ),
    "no unit": (lambda p: p.plan("--params", "0.8", "--set", "units=,"), ("units takes ffn, kv, query",)),
    "steps 0": (lambda p: p.plan("--params", "0.8", "--set", "steps=0"), ("steps", "between 1 and 10000")),
    "steps many": (
        lambda p: p.plan("--params", "0.8", "--set", "steps=many"),
        ("steps takes a whole number", "'many'"),
    ),
    "amplitude nan": (lambda p: p.plan("--params", "0.8", "--set", "amplitude=nan"), ("amplitude", "between 0 and 1")),
    "attention ratio -1": (lambda p: p.plan("--params", "0.8", "--set", "attention_ratio=-1"), ("between 0 and 10",)),
    "ffn-multiple 0": (lambda p: p.plan("--params", "0.8", "--set", "ffn_multiple=0"), ("ffn_multiple", "at least 1")),
    "protect words": (lambda p: p.plan("--params", "0.8", "--set", "protect_layers=first"), ("layer numbers", "0-2")),
    "protect superscript": (lambda p: p.plan("--params", "0.8", "--set", "protect_layers=²"), ("layer numbers", "0-2")),
    "protect backwards": (lambda p: p.plan("--params", "0.8", "--set", "protect_layers=3-1"), ("lower layer",)),
    "protect beyond": (
        lambda p: p.plan("--params", "0.8", "--set", "protect_layers=0,4"),
        ("Layer 4", "layers 0 to 3"),
    ),
    "protect beyond, drop": (
        lambda p: ["plan", p.shared.model, "--params", "0.8", "--method", "shortgpt", "--set", "protect_layers=9"],
        ("Layer 9", "layers 0 to 3"),
    ),
    "round for a toaster": (
        lambda p: p.plan("--params", "0.8", "--round-for", "toaster"),
        ("'toaster'", "gguf", "tp=2"),
    ),
    "tp=0": (lambda p: p.plan("--params", "0.8", "--round-for", "tp=0"), ("'tp=0'", "tp=N")),
    "tp of 5000 digits": (lambda p: p.plan("--params", "0.8", "--round-for", "tp=" + "1" * 5000), ("tp=N",)),
    "unknown option": (lambda p: p.plan("--params", "0.8", "--turbo"), ("No such option", "--turbo", "--help")),
    "unknown command": (lambda p: ["shrink", p.shared.model], ("shrink", "--help")),
    "unknown device": (lambda p: p.plan("--params", "0.8", "--device", "abacus"), ("'abacus'", "cpu")),
    "unknown dtype": (lambda p: p.plan("--params", "0.8", "--dtype", "int3"), ("'int3'", "bfloat16")),
    "seed -1": (lambda p: p.plan("--params", "0.8", "--set", "seed=-1"), ("Seed", "at least 0")),
    "seed beyond 64 bits": (lambda p: p.plan("--params", "0.8", "--set", f"seed={1 << 70}"), ("Seed", "2^63")),
    "batch size 0": (lambda p: p.plan("--params", "0.8", "--set", "batch_size=0"), ("Batch size", "at least 1")),
    "analyse by nothing": (lambda p: ["analyze", p.shared.model, "--layer-importance", "x"], ("'x'", "cosine")),
}

TEXTS: dict[str, Case] = {
    "missing": (lambda p: p.plan("--params", "0.8", "--calib", "nowhere.txt"), ("nowhere.txt", "check the path")),
    "a folder": (lambda p: p.plan("--params", "0.8", "--calib", p.here), ("is a folder", "text file")),
    "too short": (
        lambda p: p.plan("--params", "0.8", "--calib", p.write("short.txt", "A short text of few words.")),
        ("short.txt", "64", "more text"),
    ),
    "empty": (lambda p: p.plan("--params", "0.8", "--calib", p.write("empty.txt", "")), ("is empty",)),
    "binary": (lambda p: p.plan("--params", "0.8", "--calib", p.write("b.txt", b"a\0b" * 99)), ("binary", ".jsonl")),
    "not UTF-8": (
        lambda p: p.plan("--params", "0.8", "--calib", p.write("l.txt", b"caf\xe9 " * 99)),
        ("UTF-8", "iconv"),
    ),
    "not gzip": (lambda p: p.plan("--params", "0.8", "--calib", p.write("t.txt.gz", b"plain")), ("gzip", "again")),
    "endless device": (lambda p: p.plan("--params", "0.8", "--calib", "/dev/zero"), ("/dev/zero", "device")),
    "bad line": (
        lambda p: p.plan("--params", "0.8", "--calib", p.write("t.jsonl", '{"text": "a"}\n{"text": \n')),
        ("Line 2", "not valid JSON", "mend"),
    ),
    "number of 5000 digits": (
        lambda p: p.plan("--params", "0.8", "--calib", p.write("t.jsonl", '{"text": ' + "7" * 5000 + "}")),
        ("Line 1", "not valid JSON"),
    ),
    "no such field": (
        lambda p: p.plan(
            "--params", "0.8", "--calib", p.write("t.jsonl", '{"body": "a"}'), "--set", "calib_field=text"
        ),
        ("no field 'text'", "body"),
    ),
    "longer than the positions": (
        lambda p: p.plan("--params", "0.8", "--set", "length=257"),
        ("257", "256 positions", "at most 256"),
    ),
    "eval --generate, other tokenizer": (
        lambda p: [
            "eval",
            p.shared.pruned,
            "--baseline",
            other_tokenizer(p),
            "--text",
            p.shared.text,
            "--length",
            "16",
            "--generate",
        ],
        ("tokenizers", "differ", "--baseline"),
    ),
    "eval, tokens beyond the model": (
        lambda p: ["eval", larger_tokenizer(p), "--text", p.write("t.txt", "~}|{" * 100), "--length", "16"],
        ("tokenizer", "don't belong together"),
    ),
    "eval, missing text": (lambda p: ["eval", p.shared.model, "--text", "nowhere.txt"], ("nowhere.txt", "check")),
}


def benchmarks(place: Place, *options: object, task: str = "mmlu_anatomy", line: str = "") -> list[object]:
    """Questions that a model could be asked, unless the options or the line before them spoil it."""
    row = {"subject": "anatomy", "question": "What?", "choices": ["a", "b", "c", "d"], "answer": 1}
    place.write("mmlu_dev.jsonl", (json.dumps(row) + "\n") * 5)
    place.write("mmlu_test.jsonl", line + json.dumps(row) + "\n")
    return ["eval", place.shared.model, "--tasks", task, "--task-data", place.here, *options]


EVALUATIONS: dict[str, Case] = {
    "no such task": (lambda p: benchmarks(p, task="mmlux"), ("'mmlux'", "mmlu, truthfulqa and agieval")),
    "no task": (lambda p: benchmarks(p, task=" ,"), ("--tasks takes names", "commas")),
    "one name empty": (lambda p: benchmarks(p, task="mmlu,"), ("--tasks takes names", "commas")),
    "no folder of tasks": (lambda p: benchmarks(p, "--task-data", p.here / "no"), ("is no folder", "JSONL")),
    "no such benchmark there": (lambda p: benchmarks(p, task="agieval"), ("agieval can't be made", "no agieval/")),
    "no such subject there": (lambda p: benchmarks(p, task="mmlu_virology"), ("mmlu_virology", "no question")),
    "broken question": (lambda p: benchmarks(p, line='{"subject": \n'), ("Line 1", "not valid JSON", "mend")),
    "answer out of reach": (
        lambda p: benchmarks(p, line='{"subject": "a", "question": "?", "choices": ["a"], "answer": 1}\n'),
        ("Line 1", "choices must be"),
    ),
    "limit 0": (lambda p: benchmarks(p, "--limit", "0"), ("Limit", "at least 1")),
    "few-shot -1": (lambda p: benchmarks(p, "--few-shot", "-1"), ("Few shot", "at least 0")),
    "few-shot 6 of 5": (lambda p: benchmarks(p, "--few-shot", "6"), ("has 5 examples", "--few-shot")),
    "limit of nothing": (lambda p: ["eval", p.shared.model, "--limit", "3"], ("--limit is for benchmarks", "--tasks")),
    "tasks without a network": (
        lambda p: ["eval", p.shared.model, "--tasks", "mmlu_anatomy"],
        ("mmlu_anatomy", "Go online once", "--task-data"),
    ),
    "text too short for prompts": (
        lambda p: ["eval", p.shared.model, "--generate", "--text", p.write("t.txt", "A few words."), "--length", "16"],
        ("t.txt holds", "32 prompts of 64", "fewer"),
    ),
    "more new tokens than positions": (
        lambda p: ["eval", p.shared.model, "--generate", "--new-tokens", "200", "--length", "16"],
        ("256 positions", "ask for fewer"),
    ),
    "prompts 0": (lambda p: ["eval", p.shared.model, "--generate", "--prompts", "0"], ("Prompts", "at least 1")),
    "new tokens 2": (
        lambda p: ["eval", p.shared.model, "--generate", "--new-tokens", "2"],
        ("New tokens", "at least 4"),
    ),
}

PLACES: dict[str, Case] = {
    "folder exists": (
        lambda p: ["prune", p.shared.model, "-o", p.pruned, "--plan", p.shared.plan],
        ("already exists", "--overwrite"),
    ),
    "overwrite what is no model": (
        lambda p: p.prune("--plan", p.shared.plan, "--overwrite", "-o", p.write("precious.txt", "x").parent),
        ("holds no model", "another name"),
    ),
    "overwrite a file": (
        lambda p: p.prune("--plan", p.shared.plan, "--overwrite", "-o", p.write("precious.txt", "x")),
        ("is a file", "folder"),
    ),
    "parent is a file": (
        lambda p: p.prune("--plan", p.shared.plan, "-o", p.write("file", "x") / "below" / "new"),
        ("can't be written to", "another place"),
    ),
    "plan into a folder": (lambda p: p.plan("--params", "0.8", "-o", p.here), ("is a folder", "name of a file")),
    "plan into no folder": (
        lambda p: p.plan("--params", "0.8", "-o", p.here / "no" / "plan.json"),
        ("does not exist", "make it"),
    ),
    "plan over a device": (lambda p: p.plan("--params", "0.8", "-o", "/dev/full"), ("no regular file",)),
    "name too long": (lambda p: p.plan("--params", "0.8", "-o", p.here / ("x" * 300)), ("too long", "another place")),
    "picture of another kind": (
        lambda p: p.plan("--params", "0.8", "--picture", p.here / "widths.docx"),
        (".png, .svg or .pdf", "'widths.docx'"),
    ),
    "analysis picture of another kind": (
        lambda p: ["analyze", p.shared.model, "--picture", p.here / "layers"],
        (".png, .svg or .pdf", "'layers'"),
    ),
    "plan missing": (lambda p: p.prune("--plan", p.here / "no.json"), ("no.json", "does not exist", "check the path")),
    "plan cut short": (
        lambda p: p.prune("--plan", p.write("half.json", p.shared.plan.read_text()[:700])),
        ("not valid JSON", "Make it again"),
    ),
    "plan is another JSON": (
        lambda p: p.prune("--plan", p.write("other.json", '{"a": 1}')),
        ("not a prunekit plan", "prunekit plan MODEL"),
    ),
    "plan is a device": (lambda p: p.prune("--plan", "/dev/zero"), ("/dev/zero", "device")),
    "plan of another version": (
        lambda p: p.prune("--plan", p.edited_plan(lambda data: data.update(version=99))),
        ("version 99", "again"),
    ),
    "plan of another model": (
        lambda p: p.prune("--plan", p.shared.plan, model=other_model(p)),
        ("weights differ", "make a new plan"),
    ),
    "plan of another shape": (
        lambda p: p.prune("--plan", p.shared.plan, model=save_tiny(p.here / "other", layers=3)),
        ("another shape", "new plan"),
    ),
    "plan with unequal heads": (
        lambda p: p.prune("--plan", p.edited_plan(unequal_heads)),
        ("Layer 0", "unequal numbers of query heads"),
    ),
    "plan with edited widths": (
        lambda p: p.prune("--plan", p.edited_plan(wider_by_hand)),
        ("Layer 0", "kept units give"),
    ),
    "plan of an impossible model": (lambda p: p.prune("--plan", p.edited_plan(huge_plan)), ("no model has", "again")),
    "plan whose provenance is text": (
        lambda p: p.prune("--plan", p.edited_plan(lambda data: data.update(provenance="ab"))),
        ("damaged plan", "prunekit plan"),
    ),
    "plan and target": (
        lambda p: p.prune("--plan", p.shared.plan, "--params", "0.8"),
        ("already has its target", "leave out"),
    ),
    "layout unknown": (
        lambda p: p.prune("--plan", p.shared.plan, "--layout", "round"),
        ("per-layer or uniform", "'round'"),
    ),
    "store dtype unknown": (
        lambda p: p.prune("--plan", p.shared.plan, "--store-dtype", "int1"),
        ("'int1'", "bfloat16"),
    ),
    "shards of nonsense": (
        lambda p: p.prune("--plan", p.shared.plan, "--max-shard", "some"),
        ("--max-shard", "not a size", "4GiB"),
    ),
    "inspect a stock model": (lambda p: ["inspect", p.shared.model], ("prunekit.json", "did not write it")),
    "inspect nothing": (lambda p: ["inspect", p.here / "no"], ("no folder", "give a checkpoint")),
    "inspect a changed byte": (
        lambda p: ["inspect", changed_byte(p)],
        ("damaged: model.safetensors", "Copy it again"),
    ),
    "inspect a manifest that leaves the folder": (
        lambda p: ["inspect", manifest(p, files={"../../secret": "0" * 64})],
        ("'../../secret'", "no plain file name"),
    ),
    "inspect weights that no hash covers": (
        lambda p: ["inspect", manifest(p, files={"plan.json": "0" * 64})],
        ("doesn't list", "prune again"),
    ),
    "inspect a manifest without sense": (
        lambda p: ["inspect", manifest(p, versions=[1])],
        ("versions", "prune again"),
    ),
    "inspect a manifest that lacks a fact": (lambda p: ["inspect", manifest(p, layout=...)], ("lacks layout",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_models(name: str, command: Command, shared: Shared, tmp_path: Path) -> None:
    _case(MODELS[name], command, shared, tmp_path)


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options(name: str, command: Command, shared: Shared, tmp_path: Path) -> None:
    _case(OPTIONS[name], command, shared, tmp_path)


@pytest.mark.parametrize("name", TEXTS)
def test_bad_texts(name: str, command: Command, shared: Shared, tmp_path: Path) -> None:
    _case(TEXTS[name], command, shared, tmp_path)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_bad_evaluations(name: str, command: Command, shared: Shared, tmp_path: Path) -> None:
    _case(EVALUATIONS[name], command, shared, tmp_path)


@pytest.mark.parametrize("name", PLACES)
def test_bad_plans_and_places(name: str, command: Command, shared: Shared, tmp_path: Path) -> None:
    _case(PLACES[name], command, shared, tmp_path)


def _case(case: Case, command: Command, shared: Shared, tmp_path: Path) -> None:
    arguments, parts = case
    made = arguments(Place(tmp_path, shared))
    before = listing(shared.model.parent)
    must_refuse(command, tmp_path, made, parts)
    assert listing(shared.model.parent) == before


def test_folder_that_can_not_be_written(command: Command, shared: Shared, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("root writes anywhere")
    place = Place(tmp_path, shared)
    must_refuse(command, tmp_path, place.prune("--plan", shared.plan, "-o", locked / "new"), ("can't be written to",))
    must_refuse(command, tmp_path, place.plan("--params", "0.8", "-o", locked / "p.json"), ("can't be written to",))


def test_code_of_the_model_never_runs(command: Command, shared: Shared, tmp_path: Path) -> None:
    """Custom code beside the weights, for model, config and tokenizer: ignored or refused, never run, never copied."""
    place = Place(tmp_path, shared)
    marker = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (place.model / name).write_text(code)
    place.config(auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"})
    Place._edit(
        place.model / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    )
    done = command(*place.plan("--params", "0.8", "--json", model=place.model))
    assert done.code == 0, done.err
    assert not marker.exists()
    done = command(*place.prune("--plan", tmp_path / "new.json", model=place.model))
    assert done.code == 0 and not marker.exists(), done.err
    assert not any("evil" in file.read_text() for file in (tmp_path / "new").glob("*.json"))
    assert not list((tmp_path / "new").glob("*evil*"))
    place.config(model_type="evil")
    evil = place.plan("--params", "0.8", "--overwrite", model=place.model)
    must_refuse(command, tmp_path, evil, ("'evil'", "What works"))
    assert not marker.exists()


def test_broken_tokenizer_config_stops_a_rebuild(command: Command, shared: Shared, tmp_path: Path) -> None:
    place = Place(tmp_path, shared)
    for content, part in (("{", "not valid JSON"), ("[]", "no JSON object")):
        (place.model / "tokenizer_config.json").write_text(content)
        must_refuse(command, tmp_path, place.prune("--plan", shared.plan, model=place.model), (part,))


def test_in_processes_of_their_own(shared: Shared, tmp_path: Path) -> None:
    """What this process has loaded and patched plays no part; libraries add no line to stderr."""
    place = Place(tmp_path, shared)
    spoilt = place.weights(nan_in("model.layers.0.mlp.up_proj.weight"))
    for arguments, part in (
        (place.plan("--params", "0.8", model=spoilt), "Layer 0"),
        (place.plan("--params", "0.8", "--set", "steps=x"), "steps takes a whole number"),
    ):
        before = listing(tmp_path)
        done = run_apart(*arguments, "--json", cwd=tmp_path)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and part in done.err, done
        assert done.json == {"error": done.err.removeprefix("prunekit: ").strip()}
        assert listing(tmp_path) == before


def test_a_plan_refuses_options_it_has_decided(command: Command, shared: Shared, tmp_path: Path) -> None:
    for option in (("--method", "flap"), ("--set", "ffn_multiple=1"), ("--set", "units=ffn")):
        done = command("prune", str(shared.model), "--plan", str(shared.plan), "-o", str(tmp_path / "new"), *option)
        assert done.code == 2 and option[0] in done.err
        assert not (tmp_path / "new").exists()
