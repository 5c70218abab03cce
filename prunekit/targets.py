"""Targets: how small the model must become, said in one of four ways and met as a number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from prunekit.errors import PrunekitError
from prunekit.shape import ModelShape

_COUNT = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][0-9]{1,3})?)\s*([A-Za-z]*)")


def parse_size(text: str, option: str) -> int:
    """``"4GiB"`` → bytes. Raises PrunekitError, naming ``option``, where it is no size."""
    match = _NUMBER.fullmatch(text.strip())
    if not match or match[2].upper() not in _BYTES or not 0 < float(match[1]) < 1e12:
        raise PrunekitError(f"{option} {text} is not a size; write a number and a unit, such as 4GiB or 800MB.")
    return int(float(match[1]) * _BYTES[match[2].upper()])


@dataclass(frozen=True)
class Target:
    """At most ``value`` of: a share of all parameters, a number of them, a share of the decoder blocks', bytes."""

    kind: Literal["share", "parameters", "blocks", "weights"]
    value: float
    text: str

    def budget(self, dense: ModelShape, bytes_per_parameter: float) -> int:
        """The most parameters that the pruned model may have. Raises PrunekitError where nothing would be pruned."""
        if self.kind == "share":
            budget = self.value * dense.parameters
        elif self.kind == "parameters":
            budget = self.value
        elif self.kind == "blocks":
            budget = self.value * dense.block_parameters + dense.embedding_parameters
        else:
            budget = self.value / bytes_per_parameter
        if budget >= dense.parameters:
            raise PrunekitError(
                f"The model has {dense.parameters:,} parameters ({dense.weight_bytes(bytes_per_parameter):,} bytes), "
                f"so {self.text} leaves nothing to prune; ask for less."
            )
        # A hair of tolerance: 0.8 · n must not lose a parameter to binary fractions.
        return int(budget + 1e-6)


def parse_target(params: str | None, blocks: str | None, weights: str | None) -> Target:
    """The one target that is given. Raises PrunekitError where none or several are, or one makes no sense."""
    given = [(name, text) for name, text in (("params", params), ("blocks", blocks), ("weights", weights)) if text]
    if len(given) != 1:
        raise PrunekitError(
            "Say exactly one target: --params 0.8 (share of all parameters), --params 1.0B (a number of them), "
            f"--blocks 0.79 (share of the decoder blocks) or --weights 4GiB; got {len(given)}."
        )
    name, text = given[0]
    said = f"--{name} {text}"
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise PrunekitError(f"{said} is not a target; write a share like 0.8, a count like 1.0B or a size like 4GiB.")
    number, unit = float(match[1]), match[2].upper()
    if name == "weights":
        return Target("weights", parse_size(text, "--weights"), said)
    if unit == "" and number < 1:
        if number <= 0:
            raise PrunekitError(f"{said} must keep something: a share lies between 0 and 1.")
        return Target("share" if name == "params" else "blocks", number, said)
    if name == "blocks":
        raise PrunekitError(f"{said} is not a share; write a number between 0 and 1, such as 0.79.")
    if unit not in _COUNT or number * _COUNT[unit] < 2:
        raise PrunekitError(f"{said} is neither a share below 1 nor a count such as 350M or 1.0B.")
    return Target("parameters", number * _COUNT[unit], said)
