"""Every export of a chat model: its end tokens, templates and sampling arrive, prompts of different lengths go in
together, and its README runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prunekit.errors import PrunekitError
from prunekit.export.export import export, read_export
from prunekit.export.generation import chat_templates, generation_of, put_templates, write_generation_config
from prunekit.export.registry import target
from prunekit.export.target import Job, Options
from prunekit.models.runner import Runner, TorchRunner
from prunekit.models.source import load_model, load_tokenizer, resolve
from tests.support.export_models import SAMPLING, TEMPLATE, TEMPLATES, rewrite, save_chatty
from tests.support.readme_blocks import run_blocks

PROMPTS = ("the river", "the quick brown fox jumps over the lazy dog and", "a")
NEEDS = {"onnx": "onnxruntime", "onnx-genai": "onnxruntime_genai", "gguf": "llama_cpp", "openvino": "openvino"}


@pytest.fixture(scope="session")
def chatty(tmp_path_factory):
    return resolve(str(save_chatty(tmp_path_factory.mktemp("chatty") / "chatty")))


@pytest.fixture(scope="session")
def expected(chatty):
    """PyTorch's ten likeliest tokens behind each prompt alone."""
    tokenizer, runner = load_tokenizer(chatty), TorchRunner(load_model(chatty, dtype="float32", device="cpu"))
    ids = [np.array(tokenizer(text)["input_ids"]) for text in PROMPTS]
    return ids, [runner.greedy(row[None], 10).tokens[0] for row in ids]


def in_files(folder):
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    told = json.loads((folder / "generation_config.json").read_text())
    assert {name: told[name] for name in SAMPLING} == SAMPLING
    assert chat_templates(folder) == TEMPLATES


def in_tokenizer_config(folder):
    in_files(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert {each["name"]: each["template"] for each in settings["chat_template"]} == TEMPLATES
    assert settings["padding_side"] == "left"


def in_model_json(folder):
    facts = json.loads((folder / "model.json").read_text())
    assert facts["bos_token_id"] == 0 and facts["eos_token_ids"] == [0, 2]
    assert facts["sampling"] == SAMPLING and facts["chat_templates"] == TEMPLATES


def in_genai(folder):
    import onnxruntime_genai as og

    config = json.loads((folder / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [0, 2]
    assert {name: config["search"].get(name) for name in SAMPLING} == {**SAMPLING, "min_p": None}
    in_files(folder)
    chat = json.dumps([{"role": "user", "content": "hi"}])
    made = og.Tokenizer(og.Model(str(folder))).apply_chat_template(messages=chat, add_generation_prompt=True)
    assert made == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    # Wherever the padding token stands it is masked, so it may be none that texts have: <|endoftext|> begins some.
    assert (
        json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]["\u00ff"]
        == (config["model"]["pad_token_id"])
    )


def in_gguf(folder):
    import llama_cpp
    from gguf import GGUFReader

    from prunekit.export.formats.gguf.runner import load

    file = next(folder.glob("*.gguf"))
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    assert (fields["tokenizer.ggml.eos_token_id"], fields["tokenizer.ggml.eot_token_id"]) == (0, 2)
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"] == TEMPLATES["tool_use"]
    assert fields["tokenizer.chat_templates"] == ["tool_use"]
    names = {"temp": "temperature", "penalty_repeat": "repetition_penalty", "top_k": "top_k", "min_p": "min_p"}
    for key, name in {**names, "top_p": "top_p"}.items():
        assert fields[f"general.sampling.{key}"] == pytest.approx(SAMPLING[name])
    model = load(file, vocab_only=True)
    vocab = llama_cpp.llama_model_get_vocab(model)
    assert [token for token in range(512) if llama_cpp.llama_vocab_is_eog(vocab, token)] == [0, 2]
    llama_cpp.llama_model_free(model)


# What of the settings the format has no place for, and what the README's Python prints begins with.
PLACES = {
    "hf": (in_files, ()),
    "onnx": (in_tokenizer_config, ()),
    "onnx-genai": (in_genai, ("named 'tool_use'", "min_p 0.05")),
    "openvino": (in_tokenizer_config, ("named 'tool_use'", "min_p 0.05")),
    "gguf": (in_gguf, ()),
    "torchscript": (in_model_json, ()),
    "torch-export": (in_model_json, ()),
}


@pytest.mark.parametrize("to", PLACES)
def test_export_of_a_chat_model(chatty, expected, tmp_path, to):
    pytest.importorskip(NEEDS.get(to, "torch"))
    check, left_out = PLACES[to]
    options = Options("f32" if to == "gguf" else "auto", context_length=128)
    made = export(chatty, to, tmp_path / "a folder", options)
    check(made.path)
    told = [note for note in made.written.notes if "no place for" in note]
    assert len(told) == bool(left_out) and all(each in told[0] for each in left_out)
    # The gate compared prompts of different lengths in one batch, and so do we, with others.
    together = made.parity.together
    assert together.equal + together.near_ties == together.compared and not together.wrong
    prompts, wanted = expected
    with made_runner(made.path) as runner:
        rows = runner.together(prompts, 10)
    for row, want in zip(rows, wanted, strict=True):
        until = int((row >= 0).sum())
        assert until and row[:until].tolist() == want[:until].tolist()
    # A process of its own where something is loaded by name: this one knows pruned models already.
    said = dict(run_blocks(made.path, apart=to == "hf"))
    assert sum(not printed.startswith("skipped") for printed in said.values()) >= 1


def made_runner(folder):
    opened = read_export(folder)
    return opened.target.open_exactly(folder)


def test_a_target_of_one_text_refuses_more():
    assert "one text at a time" in target("executorch").batches
    with pytest.raises(PrunekitError, match="one text at a time"):
        SimpleRunner().together([np.array([1]), np.array([2, 3])], 2)


class SimpleRunner(TorchRunner):
    together = Runner.together

    def __init__(self):
        """Nothing to load."""


def test_executorch_names_every_end(chatty):
    from prunekit.export.formats.pytorch.executorch import _facts

    facts = _facts(Job(chatty, Options(), "fp32"), 64, 64)
    assert facts["get_eos_ids"] == [0, 2] and facts["get_bos_id"] == 0


@pytest.mark.parametrize("form", ["list", "text", "files", "legacy"])
def test_templates_of_every_form(chatty, tmp_path, form):
    folder = Path(shutil.copytree(chatty.path, tmp_path / "model"))
    template = {"list": [{"name": n, "template": t} for n, t in TEMPLATES.items()], "text": TEMPLATE}.get(form)
    rewrite(folder / "tokenizer_config.json", chat_template=template)
    if form == "files":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TEMPLATES["tool_use"])
    if form == "legacy":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    found = chat_templates(folder)
    assert found == (TEMPLATES if form in ("list", "files") else {"default": TEMPLATE})
    known = load_tokenizer(resolve(str(folder))).chat_template
    assert form == "legacy" or (known if isinstance(known, dict) else {"default": known}) == found
    # Programs that refuse a list get the default one, and transformers still finds all.
    put_templates(found, folder, named=False)
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert chat_templates(folder) == found


def test_ends_come_from_every_place(tmp_path):
    folder = tmp_path
    source = SimpleNamespace(
        path=folder, config=SimpleNamespace(eos_token_id=7, bos_token_id=1), shape=SimpleNamespace(vocab_size=10)
    )
    tokens = {"<turn>": 5, "<eom>": 99}
    tokenizer = SimpleNamespace(
        eos_token_id=3, eot_token="<turn>", eom_token="<eom>", convert_tokens_to_ids=tokens.__getitem__
    )
    assert generation_of(source, None).ends == (7,) and generation_of(source, tokenizer).ends == (3, 7, 5)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 3, 40, True], "top_p": 1.0}))
    found = generation_of(source, tokenizer)
    assert found.ends == (4, 3, 5) and found.begin == 1 and found.pad is None and found.sampling == {}
    out = tmp_path / "out"
    out.mkdir()
    write_generation_config(found, folder, out)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [4, 3, 5]
    assert found.left_out({"end token 4"}).startswith(
        "This format has no place for the end token 3 and the end token 5"
    )
    (folder / "generation_config.json").write_text(json.dumps({"top_p": "much"}))
    with pytest.raises(PrunekitError, match="top_p 'much', which is no number"):
        generation_of(source, None)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(PrunekitError, match="no JSON object"):
        generation_of(source, None)


def test_gate_refuses_a_runtime_that_mixes_up_a_batch(chatty):
    from prunekit.export.parity import compare, sample

    class Mixed(TorchRunner):
        def _masked(self, ids, mask, positions):
            return super()._masked(ids, np.ones_like(mask), positions)

    job = Job(chatty, Options(), "fp32")
    parity = compare(job, Mixed(job.model), sample(job))
    assert parity.together.wrong == 2 and not parity.ok
    assert parity.failures == ("2 of 3 prompts of different lengths get other tokens in one batch than alone",)
