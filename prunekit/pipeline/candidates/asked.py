"""What is asked of candidates: their sizes, and the format that will ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.plan.goals import Target
from prunekit.utils.names import nearest, printable

if TYPE_CHECKING:
    from prunekit.export.target import Target as Runtime

Sizes = str | float | int | Sequence[str | float | int] | None
# Each is planned, solved and evaluated by itself.
_MOST = 64


@dataclass(frozen=True)
class Size:
    """One size: ``name`` is what it is called in tables and file names, ``goals`` are as
    :func:`prunekit.pipeline.read_goals` takes them."""

    name: str
    goals: Mapping[str, Any]
    target: Target


def read_sizes(params: Sizes, blocks: Sizes, kv_cache: str | None = None) -> tuple[Size, ...]:
    """The sizes that ``params`` or ``blocks`` list ("0.9,0.8", or values one by one), in the order in which they were
    said; ``kv_cache`` is a goal of all of them. Raises PrunekitError where there is none, one makes no sense, or one is
    there twice."""
    from prunekit.pipeline import read_goals

    if (params is None) == (blocks is None):
        raise PrunekitError(
            "Say the sizes to compare, as shares of all parameters (--params 0.9,0.8,0.7) or of the decoder blocks "
            "(--blocks 0.9,0.8,0.7), one of the two."
        )
    option, listed = ("params", params) if blocks is None else ("blocks", blocks)
    made: dict[tuple[float, bool], Size] = {}
    for text in _texts(option, listed):
        goals = {option: text, **({} if kv_cache is None else {"kv_cache": kv_cache})}
        target = read_goals(goals)
        goal = target.goals[0]
        if (goal.value, goal.is_share) in made:
            raise PrunekitError(
                f"--{option} names {text} twice (as {made[goal.value, goal.is_share].name}); say it once."
            )
        name = f"{goal.value:g}" if goal.is_share else "".join(text.upper().split())
        if name in {each.name for each in made.values()}:
            raise PrunekitError(f"--{option} names two sizes that are both {name} when rounded; leave one out.")
        made[goal.value, goal.is_share] = Size(name, goals, target)
    return tuple(made.values())


def _texts(option: str, listed: Sizes) -> list[str]:
    assert listed is not None
    values = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, Sequence) else [listed]
    texts = [str(value).strip() for value in values]
    if not all(texts) or not texts:
        raise PrunekitError(
            f"--{option} has an empty place; write the sizes with commas between them, such as 0.9,0.8."
        )
    if len(texts) > _MOST:
        raise PrunekitError(f"--{option} names {len(texts)} sizes, and {_MOST} are compared at most; name fewer.")
    return texts


@dataclass(frozen=True)
class Format:
    """What will ship: a target of `prunekit export` and one of its precisions."""

    target: Runtime
    dtype: str

    @property
    def text(self) -> str:
        return f"{self.target.name}:{self.dtype}"

    @property
    def rounds(self) -> bool:
        """Whether weights have fewer than 16 bits, so that quality is another one than that of the checkpoint."""
        from prunekit.export.parity import tolerance_of

        return tolerance_of(self.dtype).weight is not None


def read_format(text: str) -> Format:
    """``"gguf:q4_k_m"``; without a precision, the target's first. Raises PrunekitError where there is no such thing."""
    from prunekit.export.registry import TARGET_NAMES, target

    name, _, dtype = text.strip().partition(":")
    if name not in TARGET_NAMES:
        raise PrunekitError(
            f"There is no format {printable(text)!r}{nearest(name, TARGET_NAMES)}; write a target of `prunekit export "
            "--list` and a precision, such as gguf:q4_k_m."
        )
    found = target(name)
    return Format(found, found.dtype(dtype or "auto"))
