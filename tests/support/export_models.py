"""Tiny checkpoints whose layers all differ and whose widths are odd, with a tokenizer that covers all bytes."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from prunekit.data.sources import builtin_documents
from prunekit.models.families import FAMILIES
from prunekit.plan import LayerKeep, Plan
from tests.support.tiny import rebuilt_model, tiny_config, tiny_model

FAMILIES_TESTED = ("llama", "mistral", "qwen2", "qwen3")
HEADS = (8, 6, 2)
KV_HEADS = (4, 3, 1)
FFN = (501, 512, 77)
VOCAB = 512


def byte_tokenizer(vocab: int = VOCAB) -> Any:
    """A byte-level BPE of ``vocab`` entries, trained on the built-in text. <|endoftext|> is entry 0."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(builtin_documents("calibration")[:40], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def special_tokenizer(core: Any, **names: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


def sentencepiece_tokenizer(prefix: bool | str) -> Any:
    """Byte tokens, then characters, then pieces by falling score, and every pair that makes a piece, as converted
    SentencePiece models have them."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        builtin_documents("calibration")[:20], BpeTrainer(vocab_size=VOCAB - 259, show_progress=False)
    )
    learnt = sorted(core.get_vocab().items(), key=lambda item: item[1])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in learnt)]
    vocab = {piece: index for index, piece in enumerate(pieces[:VOCAB])}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[259:VOCAB]
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    core = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blanks = normalizers.Replace(" ", "▁")
    if prefix == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    else:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks]) if prefix else blanks
    return special_tokenizer(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def uneven_plan(shape: Any) -> Plan:
    """Layer i keeps HEADS[i] query heads, KV_HEADS[i] KV heads and FFN[i] channels, the last of each; further layers
    begin again."""
    layers = []
    widths = cycle(zip(HEADS, KV_HEADS, FFN, strict=True))
    for index, (dense, (heads, kv, ffn)) in enumerate(zip(shape.layers, widths, strict=False)):
        layers.append(
            LayerKeep(
                index,
                tuple(range(dense.num_key_value_heads - kv, dense.num_key_value_heads)),
                tuple(range(dense.num_attention_heads - heads, dense.num_attention_heads)),
                tuple(range(dense.intermediate_size - ffn, dense.intermediate_size)),
            )
        )
    return Plan(shape, tuple(layers))


def dense_config(model_type: str, **fields: Any) -> Any:
    """Hidden 256, head_dim 32, 8 query and 4 KV heads, FFN 512, full attention unless ``fields`` say otherwise."""
    own: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "intermediate_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    if model_type != "qwen2":
        own["head_dim"] = 32
    if model_type == "llama":
        own.pop("sliding_window"), own.pop("use_sliding_window")
    return tiny_config(model_type, **{**own, **fields})


def save_uneven(folder: Path, model_type: str, *, tokenizer: Any = None, seed: int = 0, **fields: Any) -> Path:
    """A pruned checkpoint of that family in ``folder``: a layer for each width, unless ``fields`` say otherwise."""
    config = dense_config(model_type, **{"num_hidden_layers": len(HEADS), **fields})
    dense = tiny_model(model_type, config=config, seed=seed)
    rebuilt_model(dense, uneven_plan(FAMILIES[model_type].shape(dense.config))).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"default": TEMPLATE, "tool_use": "TOOLS " + TEMPLATE}
SAMPLING = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
}


def save_chatty(folder: Path) -> Path:
    """A pruned Llama of two layers with all that chat models have: two tokens that end texts (0 and 2), a list of named
    chat templates, sampling settings."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(builtin_documents("calibration")[:40], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=special[0], eos_token=special[0], additional_special_tokens=special[1:]
    )
    tokenizer.save_pretrained(folder)
    dense = tiny_model("llama", config=dense_config("llama", num_hidden_layers=2))
    shape = FAMILIES["llama"].shape(dense.config)
    kept = [
        LayerKeep(0, (0, 1, 2, 3), tuple(range(8)), tuple(range(101))),
        LayerKeep(1, (1, 3), (2, 3, 6, 7), tuple(range(77))),
    ]
    rebuilt_model(dense, Plan(shape, tuple(kept))).save_pretrained(folder)
    rewrite(folder / "tokenizer_config.json", chat_template=[{"name": n, "template": t} for n, t in TEMPLATES.items()])
    rewrite(folder / "generation_config.json", eos_token_id=[0, 2], **SAMPLING)
    return folder


def rewrite(file: Path, **fields: Any) -> None:
    """Set fields of a JSON object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}), encoding="utf-8")
