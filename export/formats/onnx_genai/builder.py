"""onnxruntime-genai's model builder, taught layers that differ and given the weights that are loaded already."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.formats.onnx_genai.check import CLASSES
from prunekit.export.formats.onnx_genai.families import (
    apart_moments,
    layer_kinds,
    own_fields,
    rotary_tables,
    rotates,
    table_kinds,
    taken_apart,
)
from prunekit.export.formats.onnx_genai.quantize import Blocks, input_moments, quantise, weight_name
from prunekit.export.target import Job, runtime_errors

MODEL = "model.onnx"
# The same graph with the logits of all positions, for scoring texts. Both read the weights of one file.
SCORER = "all_logits.onnx"
DATA = "model.onnx.data"
# Sequences and their length, of the built-in text's calibration part.
_CALIBRATION = (8, 256)


def sliding_windows(job: Job) -> list[int | None]:
    """Each layer's window where it is narrower than the context, else None."""
    config = job.source.config
    window = getattr(config, "sliding_window", None)
    count = job.source.shape.num_hidden_layers
    # Mistral's config has a window only, and all layers keep to it.
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    return [
        window if window and window < job.context_length and kind == "sliding_attention" else None for kind in types
    ]


def build(job: Job, folder: Path) -> int:
    """Write model.onnx (logits of the last position), all_logits.onnx (of every position) and the weights of both,
    model.onnx.data. Returns the bytes of weights that a decode step reads: all but an untied embedding and the rotary
    tables, of which it reads one row."""
    import onnx_ir

    with runtime_errors(f"onnxruntime-genai's model builder can't build {job.source.name}"):
        # The builder reports by print, and there is nobody to read it.
        with contextlib.redirect_stdout(io.StringIO()):
            made = _builder(job)
            made.make_model("")
        made.model.graph.sort()
        made.stamp_build_metadata(made.model)
        weights = {value.name: value.const_value.nbytes for value in made.model.graph.initializers.values()}
        onnx_ir.save(made.model, folder / SCORER, external_data=DATA, size_threshold_bytes=0)
        model = onnx_ir.load(folder / SCORER)
        _keep_last(model, made.table is not None)
        onnx_ir.save(model, folder / MODEL)
    lookup = sum(size for name, size in weights.items() if name.startswith(("model.embed_tokens.", "cos_", "sin_")))
    if job.source.shape.tie_word_embeddings and made.table is None:
        lookup -= weights["model.embed_tokens.weight"]
    return sum(weights.values()) - lookup


def _keep_last(model: Any, quantised: bool) -> None:
    """Have the head see one position of each prompt only, the last that is no padding: generating needs no other, and
    for a prompt the head is a good part of the work. onnxruntime-genai has to know the number of logits beforehand,
    hence a graph of its own. It pads shorter prompts on the right, and its mask has 0 there."""
    import onnx_ir

    (head,) = (
        node for node in model.graph if node.name == ("/lm_head/MatMulNBits" if quantised else "/lm_head/MatMul")
    )
    hidden, ids = head.inputs[0], model.graph.inputs[0]
    (lengths,) = (
        node.outputs[0]
        for node in model.graph
        if node.op_type == "ReduceSum" and node.inputs[0].name == "attention_mask"
    )
    kinds = onnx_ir.DataType

    def constant(name: str, values: list[int]) -> Any:
        value = onnx_ir.Value(
            name=f"/lm_head/{name}",
            type=onnx_ir.TensorType(kinds.INT64),
            shape=onnx_ir.Shape([len(values)]),
            const_value=onnx_ir.tensor(values, dtype=kinds.INT64, name=f"/lm_head/{name}"),
        )
        model.graph.register_initializer(value)
        return value

    def add(op: str, inputs: list[Any], name: str, shape: list[Any], kind: Any, **attributes: Any) -> Any:
        node = onnx_ir.node(op, inputs, attributes, name=f"/lm_head/{name}")
        made = node.outputs[0]
        made.name, made.type, made.shape = f"/lm_head/{name}/output_0", kind, onnx_ir.Shape(shape)
        model.graph.insert_before(head, node)
        return made

    batch, number = hidden.shape[0], onnx_ir.TensorType(kinds.INT64)
    # The length of what was given, counted where the ids are: a Shape is on the CPU, and a graph that copies from there
    # can't be captured as a CUDA graph.
    same = add("Equal", [ids, ids], "Same", list(ids.shape), onnx_ir.TensorType(kinds.BOOL))
    ones = add("Cast", [same], "Ones", list(ids.shape), number, to=kinds.INT64)
    given = add("ReduceSum", [ones, constant("axis", [1])], "Length", [batch], number, keepdims=0)
    # The mask counts the tokens in the cache too; a prompt has no more than were given.
    real = add("Min", [lengths, given], "Real", [batch], number)
    last = add("Sub", [real, constant("one", [1])], "Last", [batch], number)
    places = add("Reshape", [last, constant("row", [-1, 1, 1])], "Places", [batch, 1, 1], number)
    kept = add("GatherND", [hidden, places], "GatherND", [batch, 1, hidden.shape[2]], hidden.type, batch_dims=1)
    head.replace_input_with(0, kept)
    (logits,) = (value for value in model.graph.outputs if value.name == "logits")
    logits.shape = onnx_ir.Shape([logits.shape[0], 1, logits.shape[2]])


def _placeholder(job: Job) -> SimpleNamespace:
    """The fields the builder reads of a config, those of a layer as if all were the first. It is no transformers
    config, names no folder and no hub repository: there is nothing it could load code from."""
    shape = job.source.shape
    first = shape.layers[0]
    config = job.source.config
    windows = sliding_windows(job)
    return SimpleNamespace(
        architectures=[job.source.family.causal_lm_class],
        _name_or_path="",
        max_position_embeddings=job.context_length,
        hidden_size=shape.hidden_size,
        intermediate_size=first.intermediate_size,
        num_attention_heads=first.num_attention_heads,
        num_key_value_heads=first.num_key_value_heads,
        head_dim=shape.head_dim,
        num_hidden_layers=shape.num_hidden_layers,
        vocab_size=shape.vocab_size,
        hidden_act=getattr(config, "hidden_activation", None) or config.hidden_act,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default"},
        layer_types=["sliding_attention" if window else "full_attention" for window in windows],
        sliding_window=next((window for window in windows if window), None),
        **own_fields(job),
    )


def _moments(job: Job) -> dict[str, Any]:
    """What the layers' inputs are like on text, by the names of the weights that they meet; nothing where there is no
    tokenizer, and so no text."""
    from prunekit.data.calibration import CalibrationConfig, load_calibration

    try:
        tokenizer = job.tokenizer
    except PrunekitError:
        return {}
    length = min(_CALIBRATION[1], job.context_length)
    text = load_calibration(CalibrationConfig(sequences=_CALIBRATION[0], length=length), tokenizer)
    return apart_moments(
        {f"{name}.weight": values for name, values in input_moments(job.model, text.input_ids).items()}
    )


@contextlib.contextmanager
def _its_own_imports() -> Iterator[None]:
    """The builder imports its neighbours by bare names such as ``quantization`` and leaves their folder on sys.path:
    a module of that name that is loaded already must not be taken for it, nor the other way round later."""
    path, others = list(sys.path), sys.modules.pop("quantization", None)
    try:
        yield
    finally:
        sys.path[:] = path
        sys.modules.pop("quantization", None)
        if others is not None:
            sys.modules["quantization"] = others


def _builder(job: Job) -> Any:
    """An instance of the family's builder class that builds ``job``'s layers from ``job.model``."""
    import importlib

    import onnx_ir
    import torch

    module, name = CLASSES[job.source.family.model_type]
    with _its_own_imports():
        base: Any = getattr(importlib.import_module(f"onnxruntime_genai.models.builders.{module}"), name)
    shape, bits = job.source.shape, {"int4": 4, "int8": 8}.get(job.dtype)
    moments = _moments(job) if bits == 4 else {}
    types = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int4": "INT4", "int8": "INT8"}
    io_dtype = onnx_dtype = getattr(onnx_ir.DataType, types[job.dtype])
    if bits:
        # Fused attention has no kernel for float32 on CUDA.
        io_dtype = onnx_ir.DataType.FLOAT16 if job.on_gpu else onnx_ir.DataType.FLOAT

    class Builder(base):
        # Weights that are quantised already: the head's, which a tied embedding shares.
        table: Blocks | None = None

        def load_weights(self, input_path: str) -> Any:
            return job.model

        def is_gqa_supported(self) -> bool:
            # The builder's list lacks float16 on the CPU, for which ONNX Runtime does have a kernel.
            return True

        def make_rope_init(self, config: Any) -> None:
            """Left to make_rotary_embedding_caches_from_scratch: not every class of the builder scales as asked."""

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
            # Gemma 3's class asks twice, and names its second table before.
            kind = table_kinds(job)[hasattr(self, "cos_cache_local_name")]
            return rotary_tables(job, job.context_length, kind)

        def make_rotary_embedding_caches(self, **names: Any) -> Any:
            if table_kinds(job)[0] and not names:
                # By the layer's type: the builder goes by its window, which a short context has none of.
                own = "local" if layer_kinds(job)[self.layer_id] == "sliding_attention" else "global"
                names = {f"{kind}_cache_name": f"{kind}_cache_{own}" for kind in ("cos", "sin")}
            return super().make_rotary_embedding_caches(**names)

        def make_attention(self, layer_id: int, *given: Any, **known: Any) -> None:
            before = {name: self.attention_attrs[name] for name in ("rope", "use_rope_in_attn")}
            if not rotates(job, layer_id):
                self.attention_attrs.update(dict.fromkeys(before, False))
            super().make_attention(layer_id, *given, **known)
            self.attention_attrs.update(before)

        def make_embedding(self, embedding: Any) -> None:
            if self.embed_attrs["scale"] != 1:
                # The builder rounds the square root to two places.
                self.embed_attrs["scale"] = self.hidden_size**0.5
            super().make_embedding(embedding)

        def make_layer(self, layer_id: int, layer: Any) -> None:
            own = shape.layers[layer_id]
            self.num_attn_heads, self.num_kv_heads = own.num_attention_heads, own.num_key_value_heads
            self.intermediate_size = own.intermediate_size
            self.q_size, self.kv_size = self.num_attn_heads * self.head_size, self.num_kv_heads * self.head_size
            super().make_layer(layer_id, taken_apart(layer, own, self.head_size))

        def make_key_value_cache_shape(self, layer_id: int, shape_: list[Any]) -> list[Any]:
            own = super().make_key_value_cache_shape(layer_id, shape_)
            return [own[0], shape.layers[layer_id].num_key_value_heads, own[2], self.head_size]

        def has_lm_head(self, module: Any) -> bool:
            # The builder's test takes any projection to as many channels as there are tokens.
            return module is job.model.lm_head

        def make_embedding_lookup(self, embedding: Any, basename: str, lm_head: Any) -> str:
            if bits:
                self.table = quantise(job.model.lm_head.weight if shape.tie_word_embeddings else embedding, 8)
                return self.make_quantised_lookup(basename)
            self.tied_unquantized_embeddings = False
            return super().make_embedding_lookup(embedding, basename, lm_head)

        def make_quantised_lookup(self, basename: str) -> str:
            if not shape.tie_word_embeddings:
                for kind, name in zip(("qweight", "scales", "qzeros"), self.lookup_names(), strict=True):
                    to = self.io_dtype if kind == "scales" else None
                    self.make_initializer(getattr(self.table, kind), name, to=to)
            self.tied_quantized_embeddings = True
            return super().make_embedding_lookup(None, basename, self.table)

        def lookup_names(self) -> tuple[str, str, str]:
            place = "lm_head.MatMulNBits" if shape.tie_word_embeddings else "model.embed_tokens"
            return f"{place}.qweight", f"{place}.scales", f"{place}.qzeros"

        def make_tied_quantized_embedding_input_names(self) -> tuple[int, str, str, str]:
            return 8, *self.lookup_names()

        def make_matmul(self, matmul: Any, basename: str, root_input: str, **options: Any) -> str:
            is_head = basename == "/lm_head/MatMul"
            if bits:
                if is_head and shape.tie_word_embeddings:
                    matmul = self.table
                else:
                    # Few weights that everything after hangs on: at 4 bits they cost more than they save.
                    wide = is_head or basename.endswith("/v_proj/MatMul")
                    matmul = quantise(matmul.weight, 8 if wide else bits, moments.get(weight_name(basename)))
            elif is_head and shape.tie_word_embeddings:
                return self.make_tied_head(basename, root_input, options.get("logits", False))
            return super().make_matmul(matmul, basename, root_input, **options)

        def make_tied_head(self, name: str, root_input: str, last: bool) -> str:
            """The head as a product with the embedding table where it lies, so that it is stored once."""
            output = "logits" if last else f"{name}/output_0"
            self.make_node(
                "FusedMatMul",
                inputs=[root_input, "model.embed_tokens.weight"],
                outputs=[output],
                name=name,
                domain="com.microsoft",
                transB=1,
            )
            self.make_value(output, self.io_dtype, shape=self.make_hidden_state_shape(last_dim=self.vocab_size))
            return name

    # The graph is the same for every device, so that the CPU proves what a GPU is given.
    # One product of queries, keys and values would have one number of bits.
    options = {"accuracy_level": 4, "windowed_kv_cache": False, "fuse_qkv": bits != 4}
    return Builder(_placeholder(job), io_dtype, onnx_dtype, "cpu", "", options)
