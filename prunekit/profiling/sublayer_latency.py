"""Measuring a latency table: every width of every kind of sub-layer, all taking turns in one run.

Weights are random, of the model's shapes: times don't depend on their values. What is timed is a stack of sub-layers of
one width, each with weights of its own, as in a model, where the next layer's are not in a cache yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.modeling import pruned_class, pruned_config
from prunekit.models.source import pick_device, pick_dtype
from prunekit.models.sublayers import Kind, Sublayers
from prunekit.plan.latency_table import LatencyTable, cut_heads
from prunekit.plan.shape import Heads, LayerShape
from prunekit.utils.machine import cpu_threads, describe_machine, synchronize
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label
from prunekit.utils.timing import Clock, Summary, check_counts, prompt_ids, turns

if TYPE_CHECKING:
    from prunekit.models.source import Source

FULL, SLIDING = "full_attention", "sliding_attention"
# Bytes of weights in a stack: more than caches hold. A prefill computes longer with each, and less must do.
_WORKING_SET = {"prefill": 64 * 2**20, "decode": 256 * 2**20}
# Vocabulary of the model that only tells masks and rotary embeddings.
_FEW = 8


@dataclass(frozen=True)
class LatencyConfig:
    """``phase`` prefill: ``batch`` prompts of ``length`` tokens. decode: one more token for each of ``batch`` sequences
    that are ``length`` tokens long. ``widths`` is how many FFN widths are measured, about."""

    batch: int = 1
    length: int = 512
    phase: str = "prefill"
    widths: int = 16
    repeats: int = 11
    warmup: int = 2
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phase not in ("prefill", "decode"):
            raise PrunekitError(f"The phase must be prefill or decode, got {self.phase!r}.")
        least = {"batch": 1, "length": 1, "widths": 2, "repeats": 1, "warmup": 0, "seed": 0}
        check_counts([(name, getattr(self, name), bound) for name, bound in least.items()], self.threads)


def measure_table(
    source: Source,
    config: LatencyConfig | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Time what every sub-layer of ``source`` could become. Its weights are not read.

    Raises PrunekitError where the model takes no sequences of that length.
    """
    config = config or LatencyConfig()
    positions = getattr(source.config, "max_position_embeddings", None)
    if positions is not None and config.length > positions:
        raise PrunekitError(
            f"A length of {config.length} is beyond the {positions} positions {model_label(source.name)} was made for; "
            "choose a smaller --length."
        )
    place, wanted = pick_device(device), pick_dtype(dtype) or source.dtype
    with cpu_threads(config.threads), torch.inference_mode():
        bench = _Bench(source, config, wanted, place)
        cases = bench.cases()
        samples: list[list[float]] = [[] for _ in cases]
        with progress("timing sub-layers", len(cases) * (config.warmup + config.repeats)) as advance:
            for turn, index in enumerate(turns(range(len(cases)), config.warmup + config.repeats)):
                seconds = _sample(cases[index], bench.input, place, clock)
                if turn >= len(cases) * config.warmup:
                    samples[index].append(seconds)
                advance(note=cases[index].name)
        machine = describe_machine(place)
        threads = torch.get_num_threads()
    attention: dict[str, dict[Heads, Summary]] = {kind: {} for kind in dict.fromkeys(bench.kinds)}
    ffn: dict[int, Summary] = {}
    for case, seconds_of in zip(cases, samples, strict=True):
        if case.kind is not None and isinstance(case.what, tuple):
            attention[case.kind][case.what] = Summary.of(seconds_of)
        elif isinstance(case.what, int):
            ffn[case.what] = Summary.of(seconds_of)
        else:
            rest = Summary.of(seconds_of)
    conditions = {**asdict(config), "threads": threads, "dtype": str(wanted).removeprefix("torch.")}
    return LatencyTable(model_label(source.name), source.shape, bench.kinds, attention, ffn, rest, conditions, machine)


def layer_kinds(config: Any) -> tuple[str, ...]:
    """The kind of attention that every layer of a transformers config has."""
    types = getattr(config, "layer_types", None)
    if types:
        return tuple(types)
    return (SLIDING if getattr(config, "sliding_window", None) else FULL,) * config.num_hidden_layers


def width_grid(dense: int, points: int) -> list[int]:
    """About ``points`` FFN widths up to ``dense``, multiples of 64 where they are wide enough."""
    unit = 64 if dense >= 256 else 1
    wanted = (round(dense * step / points / unit) * unit for step in range(1, points))
    return sorted({unit, dense, *(width for width in wanted if 0 < width < dense)})


@dataclass(frozen=True)
class _Case:
    """A stack of sub-layers of one width: ``what`` they are, and their ``steps``."""

    name: str
    what: Heads | int | None
    kind: str | None
    steps: Sequence[Callable[[torch.Tensor], Any]]


def _sample(case: _Case, hidden: torch.Tensor, device: torch.device, clock: Clock) -> float:
    """Seconds that one of the stack's sub-layers takes."""
    synchronize(device)
    begin = clock()
    for step in case.steps:
        hidden = step(hidden)
    synchronize(device)
    return (clock() - begin) / len(case.steps)


class _Pool:
    """Random numbers that weights are views of, one after the other, so that many stacks fit in memory."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device, seed: int):
        generator = torch.Generator(device).manual_seed(seed)
        self._all = torch.empty(count, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)
        self._next = 0

    def take(self, *shape: int) -> torch.Tensor:
        count = 1
        for size in shape:
            count *= size
        if self._next + count > len(self._all):
            self._next = 0
        begin, self._next = self._next, -(-(self._next + count) // 64) * 64
        return self._all[begin : begin + count].view(shape)


class _Past:
    """The KV cache of a sequence so far: grows by a token and forgets it, so that every run finds it as it was."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self._keys, self._values = keys, values

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self._keys, keys], dim=-2), torch.cat([self._values, values], dim=-2)


class _Bench:
    """The stacks of one model."""

    def __init__(self, source: Source, config: LatencyConfig, dtype: torch.dtype, device: torch.device):
        self._source, self._config, self._dtype, self._device = source, config, dtype, device
        self.kinds = layer_kinds(source.config)
        self._tokens = config.length if config.phase == "prefill" else 1
        shape = source.shape
        largest = max(shape.layer_parameters(layer) for layer in shape.layers)
        past = max(layer.num_key_value_heads for layer in shape.layers) * shape.head_dim * config.batch * config.length
        stack = _WORKING_SET[config.phase] // dtype.itemsize
        count = max(stack, 2 * largest, shape.vocab_size * shape.hidden_size, 2 * past)
        self._pool = _Pool(count + 64, dtype, device, config.seed)
        self._skeleton = self._model(range(len(self.kinds)), LayerShape(1, 1, 1), _FEW).to(device)
        self._parts = Sublayers(self._skeleton, source.family, self._tokens)
        self.input = self._pool.take(config.batch, self._tokens, shape.hidden_size)

    def cases(self) -> list[_Case]:
        """Everything to be timed; the last one is what is outside the layers."""
        made = []
        for kind in dict.fromkeys(self.kinds):
            places = [index for index, own in enumerate(self.kinds) if own == kind]
            known = self._parts.arguments(places[0], self._config.batch)
            choices = {heads for index in places for heads in cut_heads(self._source.shape.layers[index])}
            for heads in sorted(choices, reverse=True):
                kv, group = heads
                made.append(self._attention(kind, heads, LayerShape(kv * group, kv, 1), places, known))
        widest = max(layer.intermediate_size for layer in self._source.shape.layers)
        for width in width_grid(widest, self._config.widths):
            layers = self._layers("ffn", LayerShape(1, 1, width), range(len(self.kinds)))
            steps = [self._parts.residual(layer, "ffn", {}) for layer in layers]
            made.append(_Case(f"FFN of {width}", width, None, steps))
        return [*made, self._rest()]

    def _attention(
        self, kind: str, heads: Heads, shape: LayerShape, places: Sequence[int], known: dict[str, Any]
    ) -> _Case:
        steps = []
        for layer in self._layers("attention", shape, places):
            own = known if self._config.phase == "prefill" else {**known, "past_key_values": self._past(kind, heads[0])}
            steps.append(self._parts.residual(layer, "attention", own))
        return _Case(f"{heads[0] * heads[1]}/{heads[0]} heads", heads, kind, steps)

    def _past(self, kind: str, kv_heads: int) -> _Past:
        length = self._config.length
        if kind == SLIDING:
            # The token that comes sees itself and one less than the window.
            length = max(1, min(length, self._source.config.sliding_window - 1))
        shape = (self._config.batch, kv_heads, length, self._source.shape.head_dim)
        return _Past(self._pool.take(*shape), self._pool.take(*shape))

    def _rest(self) -> _Case:
        """A model without layers."""
        model, shape = self._skeleton, self._source.shape
        model.get_submodule("model").layers = nn.ModuleList()
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight = nn.Parameter(self._pool.take(shape.vocab_size, shape.hidden_size), requires_grad=False)
        ids = prompt_ids(self._config.batch, self._tokens, shape.vocab_size, self._config.seed).to(self._device)

        def run(hidden: torch.Tensor) -> Any:
            return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits

        return _Case("embedding and head", None, None, [run])

    def _layers(self, kind: Kind, shape: LayerShape, places: Sequence[int]) -> list[nn.Module]:
        """Layers of that shape with weights of their own, as many as a stack needs."""
        source = self._source.shape
        size = source.attention_parameters(shape) if kind == "attention" else source.ffn_parameters(shape)
        copies = -(-_WORKING_SET[self._config.phase] // (size * self._dtype.itemsize))
        with torch.device("meta"):
            model = self._model(places[: max(1, min(copies, len(places)))], shape, self._source.shape.vocab_size)
        layers = list(model.get_submodule("model.layers"))
        for layer in layers:
            weights = {name: self._pool.take(*tensor.shape) for name, tensor in layer.state_dict().items()}
            layer.load_state_dict(weights, assign=True)
        return layers

    def _model(self, places: Sequence[int], shape: LayerShape, vocab_size: int) -> Any:
        """A model of the layers at ``places``, all of one shape."""
        family = self._source.family
        config = pruned_config(family, self._source.config, [shape] * len(places), list(places))
        config.vocab_size, config.pad_token_id = vocab_size, None
        options = {"attn_implementation": family.attn_implementation} if family.attn_implementation else {}
        made: Any = pruned_class(family, "ForCausalLM")._from_config(config, dtype=self._dtype, **options)
        return made.eval()
