from __future__ import annotations

import re
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

import prunekit.export.formats.gguf.target as gguf_target
from prunekit.data.sources import builtin_documents
from prunekit.errors import PrunekitError
from prunekit.export.export import export, read_export
from prunekit.export.formats.gguf import architectures as gguf_architectures
from prunekit.export.formats.gguf import quantize as gguf_quantize
from prunekit.export.formats.gguf import vocab as gguf_vocab
from prunekit.export.formats.gguf import write as gguf_write
from prunekit.export.target import Job, Options
from prunekit.models.families import FAMILIES
from prunekit.models.gguf import header as gguf_header
from prunekit.models.gguf import tensors as gguf_tensors
from prunekit.models.source import load_model, resolve
from prunekit.plan import LayerKeep, Plan
from tests.support.export_models import (
    VOCAB,
    byte_tokenizer,
    dense_config,
    save_uneven,
    sentencepiece_tokenizer,
    special_tokenizer,
)
from tests.support.tiny import one_thread, rebuilt_model, tiny_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # llama.cpp's threads wait for each other in loops, which takes seconds where another process has one of the cores.
    with one_thread():
        yield


def fields_of(folder):
    reader = gguf.GGUFReader(next(folder.glob("*.gguf")))
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}


def exported(source, out, **options):
    made = export(source, "gguf", out, Options(**{"pad_ffn": 1, **options}))
    assert made.parity is not None and made.parity.ok
    return made


def calmed(source, folder):
    """A copy of a checkpoint with smaller queries. Random weights make attention so sharp that the 8 bits to which
    llama.cpp rounds activations change which token wins; trained models are not like that."""
    shutil.copytree(source.path, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("self_attn.q_proj.weight"):
            tensor *= 0.2
        elif name.endswith("self_attn.qkv_proj.weight"):
            tensor[: len(tensor) // 2] *= 0.2
    save_file(tensors, file, metadata={"format": "pt"})
    return resolve(str(folder))


@pytest.fixture(scope="module")
def calm(uneven, tmp_path_factory):
    return calmed(uneven("llama"), tmp_path_factory.mktemp("calm") / "pruned")


@pytest.mark.parametrize(
    ("model_type", "fields", "architecture"),
    [
        ("llama", {"bias": True}, "deci"),
        ("mistral", {"tied": True}, "deci"),
        ("qwen2", {}, "deci"),
        ("qwen2", {"tied": True}, "deci"),
        ("qwen3", {"tied": True}, "openelm"),
        ("phi3", {}, "deci"),
    ],
)
def test_layers_keep_their_widths(uneven, tmp_path, model_type, fields, architecture):
    made = exported(uneven(model_type, **fields), tmp_path / "out", dtype="f32")
    assert made.written.facts["architecture"] == architecture
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    assert made.parity.logits.rms_relative < 2e-5
    keys = fields_of(tmp_path / "out")
    assert keys[f"{architecture}.attention.head_count"] == [8, 6, 2]
    assert keys[f"{architecture}.attention.head_count_kv"] == [4, 3, 1]
    assert keys[f"{architecture}.feed_forward_length"] == [501, 512, 77]
    assert made.written.notes == ()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("qwen3", {}),
        ("gemma2", {"tied": True, "sliding_window": 64, "query_pre_attn_scalar": 50}),
        (
            "gemma3_text",
            {"tied": True, "sliding_window": 64, "sliding_window_pattern": 2, "query_pre_attn_scalar": 50},
        ),
        ("phi3", {"partial_rotary_factor": 0.5}),
        ("olmo2", {}),
        ("smollm3", {"no_rope_layer_interval": 4, "num_hidden_layers": 4}),
    ],
)
def test_other_families_are_padded_to_the_widest_layer(tmp_path, model_type, fields):
    renamed = {{"tied": "tie_word_embeddings"}.get(name, name): value for name, value in fields.items()}
    source = resolve(str(save_uneven(tmp_path / "pruned", model_type, **renamed)))
    made = exported(source, tmp_path / "out", dtype="f32")
    assert made.written.facts["uniform_twin"]
    assert "more parameters" in made.written.notes[0]
    # The quantised weights come back in the checkpoint's own widths, or comparing them would fail.
    rounded = exported(calmed(source, tmp_path / "calm"), tmp_path / "q8", dtype="q8_0")
    assert rounded.parity.weights[0] > 1e-4


def save_dense(folder, model_type, heads=None, **fields):
    """Layers that are all alike; with ``heads`` narrower than the dense model's."""
    dense = tiny_model(model_type, config=dense_config(model_type, **fields))
    if heads:
        shape = FAMILIES[model_type].shape(dense.config)
        layers = [
            LayerKeep(index, tuple(range(heads // 2)), tuple(range(heads)), tuple(range(77))) for index in range(4)
        ]
        dense = rebuilt_model(dense, Plan(shape, tuple(layers)))
    dense.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return resolve(str(folder))


@pytest.mark.parametrize(("model_type", "fields"), [("olmo2", {}), ("phi3", {"partial_rotary_factor": 0.5})])
def test_square_architectures_get_all_heads_of_the_dense_model(tmp_path, model_type, fields):
    source = calmed(save_dense(tmp_path / "in", model_type, heads=6, **fields), tmp_path / "calm")
    made = exported(source, tmp_path / "out", dtype="q8_0")
    assert made.written.facts["uniform_twin"] and made.written.facts["architecture"] == model_type
    keys = fields_of(tmp_path / "out")
    assert (keys[f"{model_type}.attention.head_count"], keys[f"{model_type}.feed_forward_length"]) == (8, 77)


def test_every_number_format(calm, tmp_path):
    errors = {}
    for dtype in ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k"):
        made = exported(calm, tmp_path / dtype, dtype=dtype)
        if dtype not in ("f16", "bf16"):
            errors[dtype] = made.parity.weights[0]
            assert made.written.facts["fallback_bytes"] > 0
            assert "--pad-ffn" in " ".join(made.written.notes)
        else:
            assert made.written.notes == ()
    assert errors["q8_0"] < errors["q6_k"] < errors["q5_k_m"] < errors["q4_k_m"] < errors["q3_k_m"] < errors["q2_k"]


def test_fallbacks_are_measured_against_what_the_quantiser_wished(calm, tmp_path):
    """q4_k_m wishes for q6_k in some layers: the quantiser's own words, the file, and arithmetic must agree."""
    made = exported(calm, tmp_path / "out", dtype="q4_k_m")
    header = gguf_header.read_header(next((tmp_path / "out").glob("*.gguf")))
    wished = {"blk.0.ffn_down.weight": "Q4_K", "blk.2.ffn_down.weight": "Q6_K"}
    found = {each.name: each for each in gguf_quantize.fallbacks(header.tensors.values(), "q4_k_m", wished)}
    for name, kind in wished.items():
        rows, width = header.tensors[name].shape
        assert (found[name].stored, found[name].wished) == ("F16", kind)
        assert found[name].extra_bytes == rows * width * 2 - round(
            rows * width * {"Q6_K": 210, "Q4_K": 144}[kind] / 256
        )
    assert made.written.facts["fallback_bytes"] == sum(each.extra_bytes for each in found.values())


def test_checkpoint_in_shards_without_its_prefix(tmp_path):
    """Tensors are found in whatever file holds them, under the names of a decoder that was saved without its head."""
    source = save_dense(tmp_path / "in", "qwen2", tie_word_embeddings=True)
    whole = exported(source, tmp_path / "whole", dtype="f32")
    model = load_model(source)
    model.model.save_pretrained(tmp_path / "in", max_shard_size="1MB")
    (tmp_path / "in" / "model.safetensors").unlink(missing_ok=True)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 3
    sharded = exported(resolve(str(tmp_path / "in")), tmp_path / "sharded", dtype="f32")
    assert whole.parity.logits == sharded.parity.logits


def test_padding_ffns_saves_what_the_note_says(uneven, tmp_path):
    source = calmed(uneven("qwen2"), tmp_path / "in")
    plain = exported(source, tmp_path / "plain", dtype="q4_k_m")
    note = next(note for note in plain.written.notes if "ffn_down" in note)
    multiple, saved = re.search(r"`--pad-ffn (\d+)`.* (\S+) MiB smaller", note).groups()
    padded = exported(source, tmp_path / "padded", dtype="q4_k_m", pad_ffn=int(multiple))
    sizes = [next(made.path.glob("*.gguf")).stat().st_size for made in (plain, padded)]
    assert abs((sizes[0] - sizes[1]) / 2**20 - float(saved)) < 0.02
    down = gguf_header.read_header(next((tmp_path / "plain").glob("*.gguf"))).tensors["blk.0.ffn_down.weight"]
    assert (down.kind, down.shape) == ("F16", (256, 501))


def test_ffns_are_padded_to_whole_blocks_by_default(uneven, tmp_path):
    """llama.cpp takes rows of other lengths by a slow path: f16 prefill was slower pruned than dense."""
    source = calmed(uneven("qwen2"), tmp_path / "in")
    made = exported(source, tmp_path / "out", dtype="q8_0", pad_ffn=None)
    assert fields_of(tmp_path / "out")["deci.feed_forward_length"] == [512, 512, 96]
    assert any("multiples of 32 (2.8% more)" in note for note in made.written.notes)
    assert made.written.facts["fallback_bytes"] == 0
    asked = exported(source, tmp_path / "asked", dtype="q8_0", pad_ffn=32)
    assert asked.written.notes == () and asked.file_bytes < made.file_bytes + 2**10


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [
        (
            "llama",
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("mistral", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("qwen3", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0}),
    ],
)
def test_scaled_rotary_embeddings(uneven, tmp_path, model_type, scaling):
    source = resolve(
        str(
            save_uneven(
                tmp_path / "in",
                model_type,
                tie_word_embeddings=True,
                rope_parameters={"rope_theta": 5e5, **scaling},
            )
        )
    )
    assert exported(source, tmp_path / "out", dtype="f32").parity.logits.rms_relative < 2e-5


def test_longrope_holds_for_its_short_range(tmp_path):
    factors = [1 + place / 9 for place in range(16)]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": factors,
        "long_factor": [2 * factor for factor in factors],
        "original_max_position_embeddings": 128,
    }
    fields = {"original_max_position_embeddings": 128, "max_position_embeddings": 256, "rope_parameters": rope}
    source = resolve(str(save_uneven(tmp_path / "in", "phi3", **fields)))
    with pytest.raises(PrunekitError, match="--context-length 128"):
        export(source, "gguf", tmp_path / "out")
    exported(source, tmp_path / "out", dtype="f32", context_length=128)
    assert fields_of(tmp_path / "out")["deci.context_length"] == 128


def test_window_is_taken_up_to_its_length(tmp_path):
    source = resolve(str(save_uneven(tmp_path / "in", "mistral", sliding_window=64)))
    with pytest.raises(PrunekitError, match="--context-length 64"):
        export(source, "gguf", tmp_path / "out")
    made = exported(source, tmp_path / "out", dtype="f32", context_length=64)
    assert fields_of(tmp_path / "out")["deci.context_length"] == 64
    assert "window" in made.written.notes[0]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_equal_layers_use_the_stock_architecture(tmp_path, model_type):
    made = exported(save_dense(tmp_path / "in", model_type), tmp_path / "out", dtype="f32")
    stock = {"mistral": "llama"}.get(model_type, model_type)
    assert made.written.facts["architecture"] == stock
    assert not made.written.facts["uniform_twin"]
    assert fields_of(tmp_path / "out")[f"{stock}.attention.head_count"] == 8


def test_equal_but_narrow_qwen2_layers_go_to_deci(tmp_path):
    """llama.cpp's qwen2 has a square q_proj."""
    source = save_dense(tmp_path / "in", "qwen2", heads=6)
    assert source.shape.is_uniform
    assert exported(source, tmp_path / "out", dtype="f32").written.facts["architecture"] == "deci"


def regex_tokenizer(regex, ignore_merges, normalizer=None, behavior="isolated", invert=False):
    core = Tokenizer(BPE(ignore_merges=ignore_merges))
    if normalizer:
        core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior=behavior, invert=invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB - 2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([*builtin_documents("calibration")[:20], "0123456789 " * 50], trainer)
    return special_tokenizer(core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.mark.parametrize(
    ("tokenizer", "kind", "pre"),
    [
        (lambda: regex_tokenizer(LLAMA3, True), "gpt2", "llama-bpe"),
        (lambda: regex_tokenizer(LLAMA3, False), "gpt2", "smaug-bpe"),
        (lambda: regex_tokenizer(QWEN2, False, normalizers.NFC()), "gpt2", "qwen2"),
        (lambda: regex_tokenizer(QWEN2, False, behavior="removed", invert=True), "gpt2", "qwen2"),
        (lambda: sentencepiece_tokenizer(True), "llama", "default"),
        (lambda: sentencepiece_tokenizer(False), "llama", "default"),
        (lambda: sentencepiece_tokenizer("metaspace"), "llama", "default"),
    ],
)
def test_tokenizers_cut_alike(tmp_path, tokenizer, kind, pre):
    source = resolve(str(save_uneven(tmp_path / "in", "llama", tokenizer=tokenizer())))
    made = exported(source, tmp_path / "out")
    facts = made.written.facts
    assert (facts["tokenizer"], facts["pre_tokenizer"]) == (kind, pre)
    assert facts["texts_tokenised_alike"] >= 1000


def test_special_tokens_that_swallow_blanks_are_told_of(tmp_path):
    tokenizer = byte_tokenizer(VOCAB - 1)
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|user|>", rstrip=True, special=True)]})
    source = resolve(str(save_uneven(tmp_path / "in", "llama", tokenizer=tokenizer)))
    assert "special tokens" in exported(source, tmp_path / "out").written.notes[0]


def test_wrong_pre_tokenizer_is_caught(uneven, tmp_path, monkeypatch):
    monkeypatch.setitem(gguf_vocab._PRE, ("gpt2-regex",), (None, "falcon"))
    with pytest.raises(PrunekitError, match="cuts text into other tokens"):
        export(uneven("llama"), "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_unknown_pre_tokenizer_is_refused(tmp_path):
    tokenizer = regex_tokenizer(r"\p{L}+|[^\p{L}]", False)
    source = resolve(str(save_uneven(tmp_path / "in", "llama", tokenizer=tokenizer)))
    with pytest.raises(PrunekitError, match=r"no name known to prunekit.*onnx"):
        export(source, "gguf", tmp_path / "out")


def test_no_tokenizer_is_written_as_none(tmp_path):
    folder = save_uneven(tmp_path / "in", "llama")
    for file in folder.glob("*token*.json"):
        file.unlink()
    made = exported(resolve(str(folder)), tmp_path / "out", dtype="f32")
    assert "token ids only" in made.written.notes[0]


@pytest.mark.parametrize("what", ["pairs", "base", "weight", "quantised"])
def test_wrong_files_are_caught(calm, tmp_path, monkeypatch, what):
    dtype, message = "f32", "logits differ"
    if what == "pairs":
        monkeypatch.setattr(gguf_tensors, "_pairs", lambda tensor, heads: tensor)
    elif what == "base":
        real = gguf_write.rotation_of
        monkeypatch.setattr(gguf_write, "rotation_of", lambda source: replace(real(source), base=20000.0))
    else:
        if what == "quantised":
            dtype, message = "q4_k_m", "layers.2.mlp.up_proj.weight is off by 1 of a row"
        encode = gguf_write._encode

        def damaged(name, tensor, kind):
            if name == "blk.2.ffn_up.weight":
                tensor = tensor.clone()
                tensor[5] = 0
            return encode(name, tensor, kind)

        monkeypatch.setattr(gguf_write, "_encode", damaged)
    with pytest.raises(PrunekitError, match=f"does not compute what PyTorch computes.*{message}"):
        export(calm, "gguf", tmp_path / "out", Options(dtype=dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("qwen3", {"bias": True}, "biases.*onnx"),
        ("llama", {"hidden_act": "gelu"}, "activation gelu.*onnx"),
        ("gemma2", {"tie_word_embeddings": False, "sliding_window": 64}, "no output head of its own.*onnx"),
        (
            "gemma2",
            {"tie_word_embeddings": True, "attn_logit_softcapping": None, "sliding_window": 64},
            "always caps logits.*onnx",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 30.0, "sliding_window": 64}, "no cap of attention logits.*onnx"),
        ("smollm3", {"no_rope_layer_interval": 2}, "every fourth layer.*onnx"),
        ("olmo2", {"tie_word_embeddings": True}, "no tied output head.*onnx"),
    ],
)
def test_what_llama_cpp_lacks_is_refused(tmp_path, model_type, fields, message):
    source = resolve(str(save_uneven(tmp_path / "in", model_type, **fields)))
    with pytest.raises(PrunekitError, match=message):
        export(source, "gguf", tmp_path / "out")


def test_only_the_quantiser_makes_k_quants(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(
        gguf_target.Requirement, "version", property(lambda self: "1" if self.package == "gguf" else None)
    )
    with pytest.raises(PrunekitError, match="own quantiser makes q4_k_m"):
        export(uneven("llama"), "gguf", tmp_path / "out", Options(dtype="q4_k_m"), verify=False)
    made = export(uneven("llama"), "gguf", tmp_path / "out", Options(dtype="q8_0"), verify=False)
    assert "texts_tokenised_alike" not in made.written.facts


@pytest.mark.parametrize(
    "value, dtype, says",
    [
        (1e5, "f16", r"blk\.1\.ffn_up\.weight holds numbers too large for float16"),
        (1e7, "q8_0", r"blk\.1\.ffn_up\.weight holds numbers too large for q8_0"),
        (float(np.finfo(np.float32).max), "bf16", r"blk\.1\.ffn_up\.weight holds numbers too large for bf16"),
        (float("nan"), "q8_0", r"Layer 1: mlp\.up_proj\.weight holds NaN"),
    ],
)
def test_weights_that_a_type_can_not_hold_are_refused(value, dtype, says, tmp_path):
    dense = tiny_model("llama", config=dense_config("llama"))
    dense.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    dense.save_pretrained(tmp_path / "in")
    byte_tokenizer().save_pretrained(tmp_path / "in")
    with pytest.raises(PrunekitError, match=says):
        export(resolve(str(tmp_path / "in")), "gguf", tmp_path / "out", Options(dtype=dtype), verify=False)
    assert not (tmp_path / "out").exists()


def test_runner(uneven, tmp_path):
    """llama.cpp's defaults, as users run it; long texts in several batches; a path with blanks and Unicode."""
    out = tmp_path / "a b é 文"
    export(uneven("llama"), "gguf", out, Options(dtype="f32"))
    opened = read_export(out)
    ids = np.random.default_rng(0).integers(0, VOCAB, 100)
    with opened.open(threads=1) as runner, opened.target.open_exactly(out) as exact:
        assert (runner.kv_element_bytes, exact.kv_element_bytes) == (2, 4)
        whole = exact.logits(ids)
        assert whole.shape == (100, VOCAB) and whole.dtype == np.float32
        exact._n_batch = 16
        assert np.abs(exact.logits(ids) - whole).max() < 1e-3 * whole.std()
        assert np.abs(exact.start(ids[None])[0] - whole[-1]).max() < 1e-3 * whole.std()
        assert np.abs(exact.start(ids[None, :60])[0] - whole[59]).max() < 1e-3 * whole.std()
        assert np.abs(exact.step(ids[60:61])[0] - whole[60]).max() < 1e-3 * whole.std()
        assert np.abs(runner.logits(ids) - whole).max() < 0.2 * whole.std()
        with pytest.raises(PrunekitError, match="larger --context-length"):
            exact.logits(np.zeros(opened.context_length + 1, dtype=np.int64))


def test_damaged_files_are_refused_in_one_sentence(uneven, tmp_path, capfd):
    out = tmp_path / "out"
    export(uneven("llama"), "gguf", out, Options(dtype="f32"))
    capfd.readouterr()
    # What the process wrote itself is not held against its hashes, so the header is all there is.
    opened, file = read_export(out, own=True), next(out.glob("*.gguf"))
    content = file.read_bytes()

    def refused(changed, message):
        file.write_bytes(changed)
        with pytest.raises(PrunekitError, match=message):
            opened.open()

    refused(content[: len(content) // 2], "does not lie in the file")
    refused(content[:1000], "cut short")
    refused(content[:12], "not a GGUF file")
    refused(b"GGML" + content[4:], "not a GGUF file")

    def patched(key, value):
        """The number behind a key (and its four bytes of type) replaced."""
        at = content.index(key) + len(key) + 4
        return content[:at] + value.to_bytes(4, "little") + content[at + 4 :]

    # llama.cpp ends the process over each of these.
    refused(patched(b"deci.block_count", 600), "600 layers")
    refused(patched(b"deci.rope.dimension_count", 48), "rotates more than a head")
    refused(patched(b"deci.attention.key_length", 0), "head sizes")
    refused(content.replace(b"general.architecture", b"general.architectuer"), "architecture 'None'")
    # Left to llama.cpp, which says so.
    refused(
        content.replace(b"blk.2.ffn_up.weight", b"blk.2.ffn_ap.weight"), "llama.cpp can't load.*blk.2.ffn_up.weight"
    )
    file.unlink()
    with pytest.raises(PrunekitError, match=r"0 \.gguf files"):
        opened.open()
    assert capfd.readouterr() == ("", "")


def test_double_token_is_refused_before_llama_cpp_aborts(uneven, tmp_path):
    export(uneven("llama"), "gguf", tmp_path / "out", Options(dtype="f32"))
    file = next((tmp_path / "out").glob("*.gguf"))
    header = gguf_header.read_header(file)
    header.fields["tokenizer.ggml.tokens"][7] = header.fields["tokenizer.ggml.tokens"][8]
    with pytest.raises(PrunekitError, match="token is there twice"):
        gguf_header.check_header(header)


def test_large_tensors_are_converted_in_parts(monkeypatch):
    import torch

    tensor = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    kinds = [gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0")]
    whole = [gguf_write._encode("x", tensor, kind) for kind in kinds]
    monkeypatch.setattr(gguf_write, "_CHUNK", 200)
    for kind, expected in zip(kinds, whole, strict=True):
        assert gguf_write._encode("x", tensor, kind).tobytes() == expected.tobytes()


def test_twin_parts_round_trip(uneven):
    """Every tensor is split back into what it was made of."""
    import torch

    for model_type, fields in (("qwen3", {"tied": True}), ("llama", {"bias": True})):
        source = uneven(model_type, **fields)
        made = gguf_architectures.architecture_of(source, 64)
        tensors = gguf_write._Tensors(source, made)
        for entry in gguf_tensors.entries(source.family, made):
            parts = tensors.parts(entry)
            for back, part in zip(entry.split(entry.make(parts)), parts, strict=True):
                assert torch.equal(back, part)


def test_pruned_smollm2(pruned_smollm2, tmp_path):
    made = exported(pruned_smollm2, tmp_path / "out", dtype="q8_0")
    assert made.written.facts["pre_tokenizer"] == "smollm"
    assert made.written.facts["texts_tokenised_alike"] >= 1000
    assert made.written.facts["architecture"] == "deci"
    assert made.written.decode_bytes < made.file_bytes
    assert abs(np.log(made.parity.perplexity_runtime / made.parity.perplexity_reference)) < 0.02
    keys = fields_of(tmp_path / "out")
    assert len(keys["deci.feed_forward_length"]) == 30
    assert keys["general.base_model.0.name"] == "smollm2-135m"
    assert keys["prunekit.version"] == version("prunekit")


def test_all_layers_go_to_the_device_that_is_asked_for(uneven, tmp_path, monkeypatch):
    """What llama.cpp is asked for; a build without CUDA then takes the CPU, which is why it is refused before."""
    import llama_cpp

    from prunekit.export.formats.gguf.runner import LlamaCppRunner

    export(uneven("llama"), "gguf", tmp_path / "out", Options(dtype="f32"), verify=False)
    asked = []
    load, init = llama_cpp.llama_model_load_from_file, llama_cpp.llama_init_from_model

    def loading(name, params):
        asked.append((params.n_gpu_layers, params.split_mode, params.main_gpu))
        params.main_gpu = min(params.main_gpu, 0)
        return load(name, params)

    def starting(model, params):
        asked.append((bool(params.offload_kqv), bool(params.op_offload)))
        return init(model, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", loading)
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", starting)
    for device, exact in (("cpu", False), ("cpu", True), ("cuda:1", True)):
        LlamaCppRunner(tmp_path / "out", 1, exact=exact, device=device).close()
    one = llama_cpp.LLAMA_SPLIT_MODE_NONE
    assert asked == [(0, one, -1), (False, False), (0, one, -1), (False, False), (-1, one, 1), (True, True)]


def test_a_file_for_a_gpu_tells_how_to_use_it(uneven):
    text = gguf_target.Gguf().usage(Job(uneven("llama"), Options(), "f16", device="cuda:0"))
    assert "-fa on -ngl 99" in text and "n_gpu_layers=-1" in text
