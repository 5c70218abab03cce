"""Which widths a layer may have: multiples that the target hardware or format wants, and floors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from prunekit.errors import PrunekitError
from prunekit.plan.knobs import knob
from prunekit.plan.shape import LayerShape, ModelShape


@dataclass(frozen=True)
class Rounding:
    """A width is allowed if it is a multiple, at or above its floor, or the layer's own width before pruning.

    ``ffn_multiple`` 1 allows irregular widths. ``head_multiple`` and ``kv_multiple`` do so for query and KV heads.
    """

    ffn_multiple: int = 64
    min_ffn: int = 1
    head_multiple: int = 1
    kv_multiple: int = 1
    min_kv_heads: int = 1
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("ffn_multiple", "min_ffn", "head_multiple", "kv_multiple", "min_kv_heads", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise PrunekitError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def check(self, dense: ModelShape) -> None:
        """Raises PrunekitError where a layer that stays as it is couldn't be split over ``tensor_parallel`` devices,
        and where no FFN is as wide as the floor."""
        widest = max(layer.intermediate_size for layer in dense.layers)
        if self.min_ffn > widest:
            raise PrunekitError(
                f"min_ffn {self.min_ffn} is more than any FFN of the model has ({widest} channels), so none could be "
                "pruned; give a smaller number, or leave ffn out of units."
            )
        ways = self.tensor_parallel
        for index, layer in enumerate(dense.layers):
            for what, width in (
                ("query heads", layer.num_attention_heads),
                ("KV heads", layer.num_key_value_heads),
                ("FFN channels", layer.intermediate_size),
            ):
                if width % ways:
                    raise PrunekitError(
                        f"Layer {index} has {width} {what}, which can't be split {ways} ways, so --round-for tp={ways} "
                        "can't be kept; choose a number that divides the model's own widths."
                    )

    def ffn_floor(self, dense: int) -> int:
        """The smallest FFN width allowed in a layer of width ``dense``."""
        lowest = math.ceil(self.min_ffn / self.ffn_multiple) * self.ffn_multiple
        return min(lowest, dense)

    def ffn_down(self, width: float, dense: int) -> int:
        """The largest allowed FFN width at or below ``width`` (the floor where there is none)."""
        if width >= dense:
            return dense
        return max(int(width) // self.ffn_multiple * self.ffn_multiple, self.ffn_floor(dense))

    def ffn_up(self, width: float, dense: int) -> int:
        """The smallest allowed FFN width at or above ``width``."""
        up = math.ceil(width / self.ffn_multiple) * self.ffn_multiple
        return max(up, self.ffn_floor(dense)) if up < dense else dense

    def attention_choices(self, dense: LayerShape, units: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
        """The (KV heads, query heads a group) a layer may have, in falling order of heads. ``units`` says what may be
        pruned: "kv" removes groups, "query" removes the same number of query heads from every group,
        "attention-layer" allows none at all."""
        kv_counts = range(dense.num_key_value_heads, 0, -1) if "kv" in units else [dense.num_key_value_heads]
        group_sizes = range(dense.group_size, 0, -1) if "query" in units else [dense.group_size]
        choices = [(kv, group) for kv in kv_counts for group in group_sizes]
        if "attention-layer" in units:
            choices.append((0, 0))
        whole = (dense.num_key_value_heads, dense.group_size)
        return tuple(heads for heads in choices if heads == whole or self._fits(*heads))

    def _fits(self, kv: int, group: int) -> bool:
        enough = kv == 0 or kv >= self.min_kv_heads
        return enough and kv % self.kv_multiple == 0 and kv * group % self.head_multiple == 0

    def floor(self, dense: ModelShape, units: tuple[str, ...], protected: frozenset[int]) -> ModelShape:
        """The smallest shape allowed."""
        layers = []
        for index, layer in enumerate(dense.layers):
            if index in protected:
                layers.append(layer)
                continue
            kv, group = min(
                self.attention_choices(layer, units),
                key=lambda choice: dense.attention_parameters(LayerShape(choice[0] * choice[1], choice[0], 1)),
            )
            ffn = self.ffn_floor(layer.intermediate_size) if "ffn" in units else layer.intermediate_size
            layers.append(LayerShape(kv * group, kv, 0 if "ffn-layer" in units else ffn))
        return dense.with_layers(layers)


def rounding_preset(name: str, head_dim: int) -> Rounding:
    """Widths for a deployment target: ``gpu``, ``gguf`` or ``tp=N``. Raises PrunekitError for anything else.

    ``gpu``: FFN multiples of 128 (16-bit tensor-core tiles, 128-byte rows, int4 groups of 128). ``gguf``: rows of 256,
    the block of llama.cpp's K-quants, for FFN channels and for query heads times head_dim. ``tp=N``: every width
    divides by N, FFN shards by 64 too. A layer that keeps its dense width keeps it whatever the multiple; only for tp=N
    must that width divide as well (:meth:`Rounding.check`).
    """
    if name == "gpu":
        return Rounding(ffn_multiple=128)
    if name == "gguf":
        return Rounding(ffn_multiple=256, head_multiple=256 // math.gcd(256, head_dim))
    if name.startswith("tp="):
        count = name.removeprefix("tp=")
        if count.isdecimal() and len(count) <= 4 and 1 <= int(count) <= 1024:
            ways = int(count)
            return Rounding(ffn_multiple=64 * ways, head_multiple=ways, kv_multiple=ways, tensor_parallel=ways)
    raise PrunekitError(f"There is no rounding preset {name!r}; choose gpu, gguf or tp=N, such as tp=2.")


@dataclass(frozen=True)
class RoundingConfig:
    """What is asked of widths, before the model is known: a preset, and multiples by hand on top of it."""

    round_for: str | None = knob(None, "preset of multiples: gpu, gguf or tp=N")
    ffn_multiple: int | None = knob(None, "FFN widths are multiples of this (64); 1 allows irregular ones")
    min_ffn: int | None = knob(None, "no FFN becomes narrower than this (1)")
    head_multiple: int | None = knob(None, "numbers of query heads are multiples of this (1)")
    kv_multiple: int | None = knob(None, "numbers of KV heads are multiples of this (1)")

    def __post_init__(self) -> None:
        self.rounding(64)

    def rounding(self, head_dim: int) -> Rounding:
        """The widths allowed in a model with that ``head_dim``."""
        base = rounding_preset(self.round_for, head_dim) if self.round_for else Rounding()
        given = {name: value for name, value in asdict(self).items() if name != "round_for" and value is not None}
        return replace(base, **given)
