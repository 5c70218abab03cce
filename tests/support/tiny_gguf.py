"""A GGUF file small enough for every test."""

from __future__ import annotations

from pathlib import Path


def write_tiny_gguf(file: Path) -> Path:
    """A GGUF file of a two-layer Llama with a byte-level tokenizer."""
    import numpy
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    words = ["w", "1", "w1", *(f"x{number}" for number in range(27)), "<s>", "</s>"]
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([1] * 30 + [3, 3])
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(30)
    writer.add_eos_token_id(31)
    random = numpy.random.default_rng(0)
    shapes = {"token_embd": (32, 32), "output_norm": (32,), "output": (32, 32)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{norm}": (32,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.attn_{part}": (rows, 32) for part, rows in dict(q=32, k=16, v=16, output=32).items()}
        shapes |= {
            f"blk.{layer}.ffn_{part}": shape for part, shape in dict(gate=(48, 32), up=(48, 32), down=(32, 48)).items()
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
