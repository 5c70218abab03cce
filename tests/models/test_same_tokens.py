"""A written folder gives the tokens of its source, for every family and every tokenizer class that its files state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.models.source import Source, load_model, load_tokenizer, resolve
from prunekit.models.tokenizer.files import copy_tokenizer
from prunekit.models.tokenizer.same_tokens import check_same_tokens, first_difference
from tests.support.tiny import MODEL_TYPES, random_plan, tiny_config, tiny_model

CLASSES = (
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GemmaTokenizer",
)
SPECIAL = "<s>"


def byte_level() -> Tokenizer:
    """Numbers in groups of three, as cl100k splits them."""
    vocab = {token: index for index, token in enumerate((SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    merges = [("1", "2"), ("12", "3"), ("123", "4")]
    vocab |= {left + right: len(vocab) + place for place, (left, right) in enumerate(merges)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\p{N}]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    return made


def blanks() -> Tokenizer:
    """A blank before every piece of text, as in the first Llama."""
    vocab = {token: index for index, token in enumerate((SPECIAL, "<unk>", *"\u2581abcdefghijklmnopqrstuvwxyz"))}
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e")]
    vocab |= {left + right: len(vocab) + place for place, (left, right) in enumerate(merges)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    return made


def source_of(folder: Path, model_type: str, made: Tokenizer, stated: str | None) -> Source:
    config = tiny_config(model_type, layers=1, vocab_size=300, max_position_embeddings=64)
    if not folder.is_dir():
        tiny_model(model_type, config=config).save_pretrained(folder)
    made.add_special_tokens([SPECIAL])
    made.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"bos_token": SPECIAL, "eos_token": SPECIAL, "unk_token": SPECIAL}
    settings |= {} if stated is None else {"tokenizer_class": stated}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return resolve(str(folder))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_tokens_of_a_pruned_model(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trying each file in a process of its own is tested elsewhere, and takes most of the time here.
    monkeypatch.setattr("prunekit.models.source.try_tokenizer", lambda folder, **_: None)
    written = None
    for make in (byte_level, blanks):
        for stated in CLASSES:
            source = source_of(tmp_path / "dense", model_type, make(), stated)
            if written is None:
                written = rebuild(source, random_plan(source.shape, seed=1), tmp_path / "pruned").path
            copy_tokenizer(source, written)
            dense, pruned = (AutoTokenizer.from_pretrained(folder) for folder in (source.path, written))
            assert first_difference(dense, pruned) is None, (stated, make)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path / "a", "llama", byte_level(), "PreTrainedTokenizerFast")
    other = source_of(tmp_path / "b", "llama", blanks(), "PreTrainedTokenizerFast")
    with pytest.raises(PrunekitError, match="other tokens than the model's own, for 'the end'"):
        check_same_tokens(load_tokenizer(source), other.path)


@pytest.mark.parametrize("own", [False, True])
def test_a_head_counts_where_the_files_hold_one(own: bool, tmp_path: Path) -> None:
    """The config says tied: a head of its own is kept all the same, a copy of the table is not."""
    folder = tmp_path / "dense"
    tiny_model("llama", layers=1, tied=True).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * (2 if own else 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = resolve(str(folder))
    assert source.shape.tie_word_embeddings is not own
    written = rebuild(source, random_plan(source.shape), tmp_path / "pruned")
    again = resolve(str(written.path))
    assert written.parameters == again.shape.parameters and again.shape.tie_word_embeddings is not own
    for each in (source, again):
        assert load_model(each, device="cpu").lm_head.weight.equal(weights["lm_head.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "score.weight",
        "embed_tokens.weight",
        "model.vision_tower.patch.weight",
    ],
)
def test_a_tensor_without_a_place_is_refused(name: str, tmp_path: Path) -> None:
    tiny_model("llama", layers=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[name] = weights["model.norm.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrunekitError, match="has no place for") as caught:
        resolve(str(tmp_path))
    assert name in str(caught.value)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert resolve(str(tmp_path)).shape.num_hidden_layers == 1
