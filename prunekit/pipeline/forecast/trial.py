"""How fast this machine is at the parts of a run: each is done once, with one layer of random weights.

The layer is as wide as the model's, and everything else as small as it can be, so that a model of any size is told of
in seconds, before its weights are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from prunekit.models.head import Head, hidden_states
from prunekit.models.modeling import pruned_class, pruned_config
from prunekit.models.sublayers import sequences_at_a_time
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.curves.loss_curves import cut_width, ffn_curve
from prunekit.pruning.importance.base import BACKWARD
from prunekit.utils.machine import synchronize
from prunekit.utils.numerics.bf16 import fast_products, has_fast_products
from prunekit.utils.numerics.categorical import sampled
from prunekit.utils.numerics.frozen import frozen
from prunekit.utils.numerics.least_squares import Elimination, Moments
from prunekit.utils.quiet import quiet

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.pruning.importance.base import Needs

# Operations of one measurement, numbers in the embeddings of the trial's model, the widest matrix that is eliminated
# here (wider ones are told from it), and how many steps of sampling are made.
_OPERATIONS, _EMBEDDED, _WIDEST, _SAMPLED = 1e10, 1 << 24, 1536, 4
_FEWEST_TOKENS = 16


@dataclass(frozen=True)
class Rates:
    """Seconds for a unit of work: ``forward`` and ``backward`` through one layer, of a token; the ``head`` from hidden
    states to probabilities, and that with its gradient (``head_back``), of a token and an entry of the vocabulary;
    ``scoring`` and ``scoring_head`` are the like of units' scores, there and back;
    ``decode`` of one layer, ``decode_head`` of an entry, for one more token of each of the sequences sampled together;
    ``moments`` of a token and an entry of a matrix; ``elimination`` of one of n² (n + d).
    """

    forward: float
    backward: float
    head: float
    head_back: float
    decode: float
    decode_head: float
    moments: float
    elimination: float
    scoring: float = 0.0
    scoring_head: float = 0.0


def measure(
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device,
    length: int,
    together: int,
    needs: Needs | None = None,
) -> Rates:
    """The rates of the model ``source`` in ``dtype`` on ``device`` for sequences of ``length`` tokens, of which so many
    are sampled ``together`` (0: none), and units are scored by what ``needs`` says (None: they are not)."""
    shape = source.shape
    fast = dtype == torch.float32 and has_fast_products(device)
    model = _one_layer(source, dtype, device)
    layer = _typical(shape)
    operations = 2 * shape.layer_parameters(layer)
    most = sequences_at_a_time(1 << 10, length, device) * length
    tokens = int(min(most, max(_FEWEST_TOKENS, _OPERATIONS / operations)))
    rows = max(1, tokens // length)
    ids = _ids(model, rows, min(length, tokens))
    count = ids.numel()
    hidden = torch.empty(0)

    def forward() -> None:
        nonlocal hidden
        with torch.no_grad(), fast_products(device, fast):
            hidden = hidden_states(model, ids)

    def back() -> None:
        handle = model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))
        try:
            with frozen(model), torch.enable_grad(), fast_products(device, fast):
                made = hidden_states(model, ids)
            made.backward(torch.ones_like(made))
        finally:
            handle.remove()

    once = _timed(forward, device)
    both = _timed(back, device)
    head, head_back = _head(model, hidden.flatten(0, 1), fast, device)
    scoring = scoring_head = 0.0
    if needs is not None:
        scoring = _timed(lambda: _score(model, ids, needs), device) / count
        scoring_head = _head(model, hidden.flatten(0, 1), False, device)[needs in BACKWARD]
    decode, decode_head = _decoding(model, together, length, device) if together else (0.0, 0.0)
    width = min(_WIDEST, layer.intermediate_size)
    return Rates(
        once / count,
        max(0.0, both - once) / count,
        head,
        head_back,
        decode,
        decode_head,
        _moments(width, count, fast, device),
        _elimination(width, min(_WIDEST, shape.hidden_size), device),
        scoring,
        scoring_head,
    )


def _score(model: Any, ids: torch.Tensor, needs: Needs) -> None:
    """What units are scored by: in the model's own dtype, and each weight's gradient is let go once it is there."""
    if needs not in BACKWARD:
        with torch.no_grad():
            hidden_states(model, ids)
        return
    handles = [model.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))]
    asked = model.base_model.layers.parameters() if needs == "weight_gradients" else ()
    weights = [weight for weight in asked if weight.ndim > 1]
    try:
        with frozen(model), torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
                handles.append(weight.register_post_accumulate_grad_hook(_summed))
            made = hidden_states(model, ids)
            made.backward(torch.ones_like(made))
    finally:
        for handle in handles:
            handle.remove()


def _summed(weight: torch.Tensor) -> None:
    gradient, weight.grad = weight.grad, None
    assert gradient is not None
    (weight.detach() * gradient).abs_().sum(0)


def _typical(shape: ModelShape) -> LayerShape:
    """The largest layer."""
    return max(shape.layers, key=shape.layer_parameters)


def _one_layer(source: Source, dtype: torch.dtype, device: torch.device) -> Any:
    shape, family = source.shape, source.family
    layer = _typical(shape)
    config = pruned_config(family, source.config, [layer], [shape.layers.index(layer)])
    config.vocab_size, config.pad_token_id = max(64, min(shape.vocab_size, _EMBEDDED // shape.hidden_size)), None
    options = {"attn_implementation": family.attn_implementation} if family.attn_implementation else {}
    with quiet():
        made: Any = pruned_class(family, "ForCausalLM")._from_config(config, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02, generator=generator)
            elif name.endswith("bias"):
                weight.zero_()
    return made.eval().to(device)


def _ids(model: Any, rows: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second time: the first one prepares."""
    work()
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def _head(model: Any, hidden: torch.Tensor, fast: bool, device: torch.device) -> tuple[float, float]:
    head = Head(model, fast)
    vocabulary = model.config.vocab_size
    count = max(1, min(len(hidden), head.rows, int(_OPERATIONS / (4 * vocabulary * hidden.shape[1]))))
    some = hidden[:count].detach()
    generator = torch.Generator(device=device).manual_seed(0)

    def once() -> None:
        with torch.no_grad():
            head(some).logsumexp(-1)

    def back() -> None:
        logits, pull_back = head.traced(some)
        sampled(logits, generator)
        pull_back(logits.softmax(-1))

    with frozen(model):
        return tuple(_timed(each, device) / (count * vocabulary) for each in (once, back))  # type: ignore[return-value]


def _decoding(model: Any, together: int, length: int, device: torch.device) -> tuple[float, float]:
    """Seconds that a layer, and an entry of the vocabulary, take for one more token of all sequences."""
    from transformers.cache_utils import DynamicCache

    kind = torch.bfloat16 if has_fast_products(device) else model.dtype
    model = model.to(kind)
    ids = _ids(model, together, 1).to(device)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(0)

    def layer() -> None:
        nonlocal hidden
        cache = DynamicCache()
        for place in range(_SAMPLED):
            mask = torch.ones(together, 1, 1, place + 1, dtype=torch.bool, device=device)
            hidden = model.base_model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True
            ).last_hidden_state

    def head() -> None:
        logits = model.get_output_embeddings()(hidden[:, -1]).float()
        sampled(logits, generator, torch.float64)

    with torch.inference_mode():
        layers = _timed(layer, device) / _SAMPLED
        return layers, _timed(head, device) / model.config.vocab_size


def _moments(width: int, tokens: int, fast: bool, device: torch.device) -> float:
    values = torch.randn(max(1, min(tokens, int(_OPERATIONS / (4 * width * width)))), width, device=device)
    made = Moments(width, 0, device, fast)
    return _timed(lambda: made.add(values, values[:, :0]), device) / (len(values) * width * width)


def _elimination(width: int, outputs: int, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, width, generator=generator).mul_(0.02).to(device)
    values = torch.randn(width, width, generator=generator).to(device)
    moments = Moments(width, 0, device)
    moments.add(values, values[:, :0])
    moments.yz = weight.double() @ moments.zz
    metric = torch.eye(outputs, device=device)
    began = time.perf_counter()
    layer = LayerShape(1, 1, width)
    ffn_curve(Elimination(moments, weight, 1e-3, metric=metric), cut_width(layer))
    synchronize(device)
    return (time.perf_counter() - began) / (width**2 * (width + outputs))
