"""What a GGUF file holds comes back as the same model: logits, tokens, and no key or tensor is left out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.formats.gguf import token_check as gguf_tokens
from prunekit.export.target import Options
from prunekit.models.gguf.config import refusal
from prunekit.models.gguf.header import read_header
from prunekit.models.gguf.pre_tokenizer import PRE_TOKENIZERS
from prunekit.models.gguf.rope import as_llama3
from prunekit.models.gguf.tokenizer import tokenizer_of
from prunekit.models.source import Source, has_tokenizer, load_model, load_tokenizer, resolve
from tests.support.export_models import byte_tokenizer, sentencepiece_tokenizer
from tests.support.tiny import tiny_config, tiny_model

gguf = pytest.importorskip("gguf")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
SPREAD = [1.0, 1.5, 2.0, 3.0]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": SPREAD,
    "short_factor": SPREAD,
    "original_max_position_embeddings": 256,
    "attention_factor": 1.25,
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tied": True, "bias": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen3", {"use_sliding_window": False, "tied": True}),
    ("qwen3", {"use_sliding_window": False, "rope_parameters": YARN}),
    ("phi3", {"sliding_window": None}),
    ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.5}),
    ("phi3", {"sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 256}),
    # With a SentencePiece vocabulary.
    ("llama", {"pieces": True}),
    ("phi3", {"sliding_window": None, "pieces": True}),
    ("gemma2", {"tied": True, "pieces": False}),
    ("gemma2", {"tied": True, "pieces": False, "query_pre_attn_scalar": 32, "sliding_window": 16, **CAPS}),
    ("gemma3_text", {"tied": True, "pieces": False, "layers": 7, "query_pre_attn_scalar": 64}),
    ("gemma3_text", {"pieces": False, "final_logit_softcapping": 5.0, "sliding_window_pattern": 3}),
    ("gemma3_text", {"tied": True, "pieces": False, "rope_parameters": GEMMA3}),
]
TEXTS = ("In 123123 it's\n\n1234", "  def f(x):\n    return x", "naïve 中文 🙂", "the end")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(autouse=True)
def _own_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(place / "cache"))
    # Whether llama.cpp cuts a thousand lines alike is what the tests of the export ask.
    monkeypatch.setattr(gguf_tokens, "_REAL_LINES", 20)


@pytest.fixture(scope="module")
def written(place: Path) -> Callable[..., tuple[Source, Path]]:
    """Makes a tiny model, and the GGUF file that it is exported to; each once."""
    made: dict[str, tuple[Source, Path]] = {}
    tokenizers = cache(lambda pieces: byte_tokenizer(300) if pieces is None else sentencepiece_tokenizer(pieces))

    def write(model_type: str, pieces: bool | None = None, layers: int = 2, **fields: Any) -> tuple[Source, Path]:
        key = f"{model_type} {pieces} {layers} {fields}"
        if key not in made:
            folder = place / str(len(made))
            tokenizer = tokenizers(pieces)
            first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
            # More embeddings than tokens, as many models have.
            size = len(tokenizer) + (0 if pieces is None else 3)
            config = tiny_config(
                model_type, layers=layers, vocab_size=size, bos_token_id=first, eos_token_id=last, **fields
            )
            tiny_model(model_type, config=config).save_pretrained(folder / "dense")
            tokenizer.save_pretrained(folder / "dense")
            source = resolve(str(folder / "dense"))
            export(source, "gguf", folder / "out", Options(dtype="f32", pad_ffn=1, context_length=256), verify=False)
            made[key] = source, next((folder / "out").glob("*.gguf"))
        return made[key]

    return write


@pytest.mark.parametrize(("model_type", "fields"), MODELS)
def test_a_model_comes_back(model_type: str, fields: dict[str, Any], written: Any) -> None:
    source, file = written(model_type, **fields)
    found = resolve(str(file))
    ids = torch.arange(1, 81).reshape(2, 40) * 3 % 300
    with torch.no_grad():
        mine, theirs = (load_model(each, dtype="float32", device="cpu")(ids).logits for each in (source, found))
    assert (mine - theirs).abs().max() <= 2e-5 * mine.abs().max()
    old, new = load_tokenizer(source), load_tokenizer(found)
    for text in (*TEXTS, f"{old.eos_token}the end", f"the{old.bos_token} end"):
        assert old(text)["input_ids"] == new(text)["input_ids"]
        if "pieces" not in fields:
            assert new.decode(new(text)["input_ids"]) == text
    assert (new.bos_token, new.eos_token) == (old.bos_token, old.eos_token)


def test_ends_templates_and_sampling_come_back(written: Any, tmp_path: Path) -> None:
    source, _ = written("llama")
    shutil.copytree(source.path, tmp_path / "dense")
    GenerationConfig(
        eos_token_id=[0, 7, 9], bos_token_id=0, do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.1
    ).save_pretrained(tmp_path / "dense")
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "dense")
    export(resolve(str(tmp_path / "dense")), "gguf", tmp_path / "out", Options(dtype="f32"), verify=False)
    file = str(next((tmp_path / "out").glob("*.gguf")))
    found = resolve(file)
    assert resolve(file).path == found.path
    assert load_tokenizer(found).chat_template == tokenizer.chat_template
    made = GenerationConfig.from_pretrained(found.path)
    assert made.eos_token_id == [0, 7, 9] and made.do_sample
    assert (made.temperature, made.top_p, made.top_k, made.repetition_penalty) == (0.7, 0.9, 50, 1.1)


def test_factors_by_llama3s_rule_come_back_as_that_rule(written: Any) -> None:
    _, file = written("llama", rope_parameters=LLAMA3)
    assert resolve(str(file)).config.rope_parameters["rope_type"] in ("llama3", "longrope")
    dimensions = 128
    waves = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    share = np.clip((8192 / waves - 1) / 3, 0, 1)
    lists = (1 / ((1 - share) / 32 + share)).tolist()
    made = as_llama3(
        {
            "rope_type": "longrope",
            "rope_theta": 500000.0,
            "long_factor": lists,
            "short_factor": lists,
            "attention_factor": 1.0,
        },
        dimensions,
    )
    assert made == {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def rewritten(file: Path, place: Path, *, key: tuple[str, Any] | None = None, tensor: str | None = None) -> Path:
    """A copy of ``file`` with one key or one tensor more, or with another value of a key; None takes the key away."""
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(place, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or (key is not None and name == key[0]):
            continue
        kind, value = field.types[0], field.contents()
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub_type=sub)
    if key is not None and key[1] is not None:
        kind = gguf.GGUFValueType.get_type(key[1])
        writer.add_key_value(*key, kind, sub_type=gguf.GGUFValueType.get_type(key[1][0]) if kind == 9 else None)
    for entry in reader.tensors:
        writer.add_tensor(entry.name, entry.data)
    if tensor is not None:
        writer.add_tensor(tensor, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"key": ("llama.logit_scale", 0.5)}, "llama.logit_scale"),
        ({"key": ("llama.attention.scale", 0.5)}, "llama.attention.scale"),
        ({"key": ("llama.attn_logit_softcapping", 30.0)}, "caps logits"),
        ({"key": ("llama.rope.scaling.yarn_ext_factor", 0.5)}, "yarn_ext_factor"),
        ({"key": ("llama.something_new", 1.0)}, "llama.something_new"),
        ({"tensor": "blk.0.attn_q_norm.weight"}, "blk.0.attn_q_norm.weight"),
        ({"tensor": "blk.0.attn_sinks.weight"}, "blk.0.attn_sinks.weight"),
        ({"tensor": "rope_factors_long.weight"}, "rope_factors_long.weight"),
        ({"key": ("llama.attention.scale", 1e-30)}, "llama.attention.scale"),
        ({"key": ("llama.rope.freq_base", float("nan"))}, "llama.rope.freq_base"),
        ({"key": ("llama.attention.sliding_window", "wide")}, "llama.attention.sliding_window"),
        ({"key": ("llama.block_count", 2**31 - 1)}, "2,147,483,647 layers"),
        ({"key": ("llama.attention.layer_norm_rms_epsilon", -1.0)}, "llama.attention.layer_norm_rms_epsilon"),
        (
            {"key": ("gemma3.attention.sliding_window_pattern", [0.5] * 7), "of": "gemma3_text"},
            "sliding_window_pattern",
        ),
        ({"key": ("tokenizer.ggml.model", "t5")}, "tokenizer.ggml.model"),
        ({"key": ("tokenizer.ggml.pre", "somebodys")}, "tokenizer.ggml.pre says 'somebodys'"),
        ({"key": ("tokenizer.ggml.pre", None)}, "tokenizer.ggml.pre says nothing"),
        ({"key": ("tokenizer.ggml.merges", None)}, "tokenizer.ggml.merges"),
        ({"key": ("tokenizer.ggml.merges", ["a zz"])}, "'a zz'"),
        ({"key": ("tokenizer.ggml.tokens", ["a", "b", "a"])}, "'a' twice"),
        ({"key": ("tokenizer.ggml.tokens", ["x" * 40000])}, "longer than those of any model"),
        ({"key": ("tokenizer.ggml.eos_token_id", 300)}, "tokenizer.ggml.eos_token_id"),
        ({"key": ("tokenizer.ggml.add_space_prefix", True)}, "tokenizer.ggml.add_space_prefix"),
        ({"key": ("tokenizer.ggml.remove_extra_whitespaces", True)}, "tokenizer.ggml.remove_extra_whitespaces"),
        ({"key": ("tokenizer.ggml.something_new", 1)}, "tokenizer.ggml.something_new"),
        ({"key": ("tokenizer.chat_template.../../x", "")}, "tokenizer.chat_template.../../x"),
        ({"key": ("gemma3.attn_logit_softcapping", 30.0), "of": "gemma3_text"}, "gemma3.attn_logit_softcapping"),
        ({"key": ("tokenizer.ggml.scores", None), "of": "gemma3_text"}, "tokenizer.ggml.scores"),
        ({"key": ("tokenizer.ggml.pre", "somebodys"), "of": "gemma3_text"}, "somebodys"),
    ],
)
def test_what_is_not_known_is_refused_by_name(change: dict[str, Any], part: str, written: Any, tmp_path: Path) -> None:
    change = dict(change)
    kind = change.pop("of", "llama")
    _, file = written(kind, **({} if kind == "llama" else {"tied": True, "pieces": False, "layers": 7}))
    with pytest.raises(PrunekitError, match=re.escape(part)):
        resolve(str(rewritten(file, tmp_path / "changed.gguf", **change)))
    # What is refused is the change, not how it was made.
    assert resolve(str(rewritten(file, tmp_path / "same.gguf"))).shape.hidden_size == 64


def test_a_file_is_read_alone(written: Any, tmp_path: Path) -> None:
    source, file = written("llama")
    beside = tmp_path / "beside"
    beside.mkdir()
    shutil.copy(file, beside / "a.gguf")
    byte_tokenizer(280).save_pretrained(beside)
    (beside / "config.json").write_text('{"model_type": "qwen2", "hidden_size": 8}')
    (beside / "chat_template.jinja").write_text("{{ 'stranger' }}")
    (beside / "generation_config.json").write_text('{"eos_token_id": 77}')
    found = resolve(str(beside / "a.gguf"))
    assert found.family.name == "Llama" and found.config.vocab_size == 300
    new = load_tokenizer(found)
    assert new.get_vocab() == load_tokenizer(source).get_vocab() and new.chat_template is None
    generation = found.path / "generation_config.json"
    assert not generation.is_file() or "77" not in generation.read_text()


def vocabulary_file(place: Path, model: str, tokens: list[str], types: list[int], **keys: Any) -> Path:
    """A GGUF file with a vocabulary and nothing else that counts."""
    writer = gguf.GGUFWriter(place, "llama")
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in keys.items():
        if name == "name":
            writer.add_name(value)
        elif isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
        else:
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
            add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def check_like_llama_cpp(file: Path, texts: tuple[str, ...]) -> Any:
    """The tokenizer in ``file``, which cuts ``texts`` as llama.cpp does."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from prunekit.export.formats.gguf.runner import load, token_ids

    header = read_header(file)
    made = tokenizer_of(header, len(header.fields["tokenizer.ggml.tokens"]), lambda what: refusal(header, what))
    model = load(file, vocab_only=True)
    for text in texts:
        assert made(text)["input_ids"] == token_ids(model, text, True), (file.name, text)
    llama_cpp.llama_model_free(model)
    return made


def test_every_known_pre_tokenizer_cuts_as_llama_cpp_does(tmp_path: Path) -> None:
    model = json.loads(byte_tokenizer(600).backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    texts = (*gguf_tokens._HARD_TEXTS, "a<|endoftext|> b", "x$y`z^~|+<=>", "ЁлкаÉcole 𝐀𝐁", "，。！中文abc")
    for name, rule in PRE_TOKENIZERS.items():
        file = vocabulary_file(
            tmp_path / f"{name}.gguf",
            "gpt2",
            tokens,
            [3] + [1] * (len(tokens) - 1),
            merges=merges,
            pre=name,
            bos_token_id=0,
            eos_token_id=0,
        )
        composed = tuple(text for text in texts if not rule.composes or "e\u0301" not in text)
        made = check_like_llama_cpp(file, composed)
        assert made.decode(made(texts[0], add_special_tokens=False)["input_ids"]) == texts[0]


@pytest.mark.parametrize(
    ("keys", "more"),
    [
        ({}, {}),
        ({"add_space_prefix": False}, {}),
        ({"add_space_prefix": True, "add_bos_token": False, "add_eos_token": True}, {}),
        ({"add_space_prefix": False, "add_bos_token": False}, {"  ": 4, "    ": 4, "\n\n\n": 4, "<|user|>": 3}),
        ({"bos_token_id": 2, "eos_token_id": 1, "padding_token_id": 0xFFFFFFFF}, {"[tool]": 4}),
        ({"name": "Phi-3 mini"}, {"<|user|>": 3, "<|end|>": 3, "<|endoftext|>": 3}),
    ],
)
def test_sentencepiece_vocabularies_cut_as_llama_cpp_does(
    keys: dict[str, Any], more: dict[str, int], tmp_path: Path
) -> None:
    vocab = sentencepiece_tokenizer(True).get_vocab()
    tokens = [*sorted(vocab, key=vocab.__getitem__), *more]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(vocab) - 259), *more.values()]
    scores = [float(-index) for index in range(len(tokens))]
    file = vocabulary_file(tmp_path / "pieces.gguf", "llama", tokens, types, scores=scores, pre="default", **keys)
    special = ("<s>the end</s> and <unk> x", *(f"a {each}  the{each}\n end {each}" for each in more))
    made = check_like_llama_cpp(file, (*gguf_tokens._HARD_TEXTS, "", "trailing   ", "\n\n\n", *special))
    for text in gguf_tokens._HARD_TEXTS:
        assert made.decode(made(text, add_special_tokens=False)["input_ids"]) == text
    assert made.bos_token_id == keys.get("bos_token_id", 1) and made.eos_token_id == keys.get("eos_token_id", 2)
    assert made.pad_token is None and made.unk_token == "<unk>"


def test_a_file_without_a_vocabulary_has_no_tokenizer(written: Any, tmp_path: Path) -> None:
    _, file = written("llama")
    found = resolve(str(rewritten(file, tmp_path / "none.gguf", key=("tokenizer.ggml.model", "none"))))
    assert not has_tokenizer(found) and found.shape.vocab_size == 300
