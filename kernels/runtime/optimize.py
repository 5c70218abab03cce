"""The same model with fast paths in: pack its weights, replace its FFNs, say what runs where."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.kernels.modules.packed import PackedLinear, PackedMLP, hooked
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS, planned_gpu, why_not_triton
from prunekit.kernels.runtime.decoder import Decoder
from prunekit.kernels.runtime.engine import MAX_BATCH, decoder_of
from prunekit.kernels.runtime.pack_layer import check_layer, read_block
from prunekit.kernels.runtime.seal import Seal
from prunekit.models.families import Family, family_of
from prunekit.utils.numerics.finite import check_weight, first_not_finite
from prunekit.utils.progress import progress

Weights = Literal["keep", "int8", "int4"]


@dataclass(frozen=True)
class OpReport:
    """Who computes an op for that many ``rows`` (sequences of a decode step, or ``prompt``): triton, torch or library.

    ``reason`` says why it is not Triton; ``fallback`` is true where a kernel exists that can't run here.
    """

    op: str
    rows: str
    provider: str
    reason: str | None = None
    fallback: bool = False


@dataclass(frozen=True)
class Report:
    """What :func:`optimize` made of a model. ``extra_bytes`` is what the layout adds (pads, and biases and norms in
    float32) to ``weight_bytes``, the bytes that the model's own weights take; ``ops`` those of a decode
    step and of a prompt."""

    weights: str
    weight_bytes: int
    extra_bytes: int
    ops: tuple[OpReport, ...]

    @property
    def extra_share(self) -> float:
        """``extra_bytes`` / ``weight_bytes``."""
        return self.extra_bytes / self.weight_bytes

    @property
    def fallbacks(self) -> tuple[OpReport, ...]:
        """The ops that a kernel was written for which can't run here."""
        return tuple(op for op in self.ops if op.fallback)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {**asdict(self), "extra_share": self.extra_share}


def optimize(model: Any, *, weights: Weights = "keep") -> Any:
    """Make ``model`` fast in place and return it: a transformers causal LM of a supported family, dense or pruned.

    Weights are packed layer by layer (:mod:`prunekit.kernels.ops.utils.layout`), so memory grows by the padding and,
    meanwhile, by one layer. The model's own forward and ``generate`` go on working, through the packed FFNs; for the
    fast decode call :func:`prunekit.kernels.generate`. ``weights`` "int8" and "int4" round the weights of the layers
    (not the embedding or the head). Move the model to its device and dtype first, and merge adapters. What is changed
    in place afterwards counts; what is added, replaced or moved counts in the model's own forward or is refused there,
    and is refused by :func:`prunekit.kernels.generate`. An optimised model can't be trained. Where Triton or the GPU
    can't, PyTorch computes: :func:`report` says what. Raises PrunekitError where the model can't be optimised, which
    leaves it as it was; only where memory runs out while weights are rounded, load the model again.

    >>> model = optimize(AutoModelForCausalLM.from_pretrained("smaller").cuda())  # doctest: +SKIP
    """
    if weights not in ("keep", "int8", "int4"):
        raise PrunekitError(f"weights must be keep, int8 or int4, got {weights!r}.")
    if getattr(model, "prunekit_decoder", None) is not None:
        raise PrunekitError("This model is already optimised; restore() it first, or load it again.")
    keep = weights == "keep"
    family = _check(model)
    family.shape(model.config).check_whole_layers(
        "the decode runtime takes no such layers; run it with transformers' own generate (bench: --runtime torch)"
    )
    _check_embedding(model.model.embed_tokens)
    for layer in model.model.layers:
        check_layer(layer, model.config)
    if name := first_not_finite(model.named_parameters()):
        check_weight(name, model.get_parameter(name))
    rotary = model.model.rotary_emb
    blocks = []
    try:
        with torch.no_grad(), progress("Packing weights", len(model.model.layers)) as go:
            for layer in model.model.layers:
                blocks.append(read_block(layer, family, model.config, weights, hasattr(rotary, "layer_types")))
                go()
    except BaseException:
        if keep:
            _unpack(model)
        raise
    model.eval()
    model.prunekit_decoder = decoder = Decoder(
        embed=model.model.embed_tokens,
        rotary=rotary,
        blocks=blocks,
        final_norm=(model.model.norm.weight.detach().float() + family.norm_offset).contiguous(),
        head=PackedLinear(model.lm_head.weight, model.lm_head.bias),
        final_softcap=float(getattr(model.config, "final_logit_softcapping", None) or 0.0),
    )
    model.prunekit_weights = weights
    model.prunekit_seal = Seal.of(model, family, decoder, weights)
    model.save_pretrained = partial(_refuse_to_save, weights)
    if not keep:
        # They hold no layers any more.
        model.state_dict = model.load_state_dict = model.save_pretrained
    return model


def restore(model: Any) -> Any:
    """Undo :func:`optimize` in place: weights as the checkpoint has them, the family's own FFNs. Returns ``model``.

    Raises PrunekitError for int8 and int4, whose rounding can't be undone.
    """
    decoder_of(model)
    if model.prunekit_weights != "keep":
        raise PrunekitError(f"{model.prunekit_weights} weights were rounded for good; load the model again.")
    _unpack(model)
    for name in ("prunekit_decoder", "prunekit_weights", "prunekit_seal", "prunekit_runtimes", "save_pretrained"):
        model.__dict__.pop(name, None)
    return model


def _unpack(model: Any) -> None:
    """Give layers whose weights were kept, packed or only begun, their own tensors and FFNs back, with whatever has
    been put into them since."""
    for owner in [*model.modules()]:
        held = [name for name in ("packed_qkv", "packed_o") if name in owner._modules]
        for name in held:
            delattr(owner, name)
        parts = [owner] if held else []
        for name, child in [*owner.named_children()]:
            if isinstance(child, PackedMLP) and child.original is not None:
                setattr(owner, name, child.original)
                for own, module in child.named_children():
                    child.original.add_module(own, module)
                parts.append(child.original)
        for linear in (module for part in parts for module in part.modules() if isinstance(module, nn.Linear)):
            weight = linear.weight.data
            # A fused gate_up_proj was given a gap between its halves.
            weight = weight.flatten(0, 1) if weight.dim() == 3 else weight
            linear.weight.data = weight.clone(memory_format=torch.contiguous_format)


def report(model: Any) -> Report:
    """What an optimised model takes, and who computes what."""
    decoder = decoder_of(model)
    total, pads = _held_bytes(model, decoder), sum(block.ffn.extra_bytes for block in decoder.blocks)
    if model.prunekit_weights == "keep":
        own = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    else:
        own = total - pads
    return Report(model.prunekit_weights, own, total - own, _ops(decoder))


def _held_bytes(model: Any, decoder: Decoder) -> int:
    """Bytes of everything that holds weights; memory that tensors share counts once."""
    tensors = [*model.parameters(), decoder.final_norm]
    for block in decoder.blocks:
        tensors += [value for value in vars(block).values() if isinstance(value, torch.Tensor)]
        tensors += [tensor for part in (block.qkv, block.o, block.ffn) for tensor in part.buffers()]
    kept = {}
    for tensor in tensors:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
    return sum(kept.values())


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors with memory that a tensor consists of: a library's quantised tensors hold several."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _ops(decoder: Decoder) -> tuple[OpReport, ...]:
    blocks = decoder.blocks
    one, many = (why_not_triton(decoder.device, decoder.dtype, dot=dot) for dot in (False, True))
    fused = [block.fuses_qkv for block in blocks]
    int8 = getattr(blocks[0].ffn, "gate_up_scale", None) is not None
    made: list[OpReport] = []

    def add(op: str, rows: str, why_not: str | None) -> None:
        made.append(OpReport(op, rows, "torch" if why_not else "triton", why_not, bool(why_not)))

    def add_product(op: str) -> None:
        add(op, "1", one)
        add(op, f"2-{MAX_DECODE_ROWS}", many)
        rows = f"{MAX_DECODE_ROWS + 1}-{MAX_BATCH}"
        if op != "qkv_rope" and int8 and many is None:
            add(op, rows, None)
        else:
            made.append(OpReport(op, rows, "torch", "many rows take plain GEMMs"))

    if any(fused):
        add_product("qkv_rope")
    if not all(fused):
        add("rope_cache", f"1-{MAX_BATCH}", one)
    add("attention_decode", f"1-{MAX_BATCH}", many)
    add_product("linear_decode")
    if isinstance(blocks[0].ffn, PackedMLP):
        add_product("mlp_decode")
    else:
        reason = "torchao or gemlite multiplies with the layers' 4-bit weights"
        made.append(OpReport("products of layers", f"1-{MAX_BATCH}", "library", reason))
    for op in ("rms_norm", "gated_act", "rope_cache"):
        add(op, "prompt", one)
    made.append(OpReport("GEMMs", "prompt", "torch", "padded cuBLAS"))
    made.append(OpReport("attention", "prompt", "torch", "PyTorch's fused kernels"))
    return tuple(made)


def _check(model: Any) -> Family:
    """The family of a model that can be packed; raises PrunekitError where it can't."""
    family = family_of(getattr(getattr(model, "config", None), "model_type", "nothing"))
    if not hasattr(model, "lm_head") or not hasattr(getattr(model, "model", None), "layers"):
        raise PrunekitError(f"A {family.name} causal LM was expected, got a {type(model).__name__}.")
    weights = [layer_weight for layer_weight in model.parameters() if layer_weight.dim() > 1]
    devices, dtypes = {weight.device for weight in weights}, {weight.dtype for weight in weights}
    if len(devices) != 1 or (next(iter(devices)).type == "meta" and planned_gpu() is None):
        raise PrunekitError("The model must lie on one device as a whole; load it without device_map or offloading.")
    if len(dtypes) != 1 or next(iter(dtypes)) not in (torch.float32, torch.float16, torch.bfloat16):
        raise PrunekitError(
            "All weights must be in one of float32, float16 and bfloat16; load the model with one of them as dtype."
        )
    return family


def _check_embedding(embed: Any) -> None:
    """Raises PrunekitError where an embedding does more than to read rows of its table, and maybe scale them."""
    known = type(embed) is nn.Embedding or (isinstance(embed, nn.Embedding) and hasattr(embed, "embed_scale"))
    if not known or embed.max_norm is not None or hooked(embed):
        raise PrunekitError(
            f"embed_tokens is a {type(embed).__name__} that does more than to read rows of a table, and decoding would "
            "leave that out: merge adapters and remove hooks before optimize()."
        )


def _refuse_to_save(weights: Weights, *args: Any, **kwargs: Any) -> None:
    if weights != "keep":
        raise PrunekitError(f"An {weights} model lives in memory only; save the model that it was rounded from.")
    raise PrunekitError("An optimised model is laid out for running; call prunekit.kernels.restore(model) first.")
