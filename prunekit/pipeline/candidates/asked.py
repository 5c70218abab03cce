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
    from prunekit.plan.latency_table import LatencyTable

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


# In front of the names of sizes that are no shares of parameters.
_NAMED = {"params": "", "blocks": "", "latency": "latency-", "kv_cache": "kv-cache-"}


def read_sizes(asked: Mapping[str, Sizes], table: LatencyTable | None = None) -> tuple[Size, ...]:
    """The sizes that ``asked`` lists by params, blocks, latency or kv_cache ("0.9,0.8", or values one by one), in the
    order in which they were said. What others say is one goal of all sizes; ``table`` predicts latencies. Raises
    PrunekitError where nothing is said, several options list sizes, one makes no sense, or one is there twice."""
    from prunekit.pipeline import read_goals

    texts = {option: _texts(_dashed(option), listed) for option, listed in asked.items() if listed is not None}
    check_options(texts)
    lists = [option for option, values in texts.items() if len(values) > 1]
    if len(lists) > 1:
        named = " and ".join(f"--{_dashed(option)} {len(texts[option])}" for option in lists)
        raise PrunekitError(
            f"One option lists the sizes to compare, and here several do ({named} values); give each other one a "
            "single value."
        )
    option = lists[0] if lists else next(each for each in _NAMED if each in texts)
    shared = {each: values[0] for each, values in texts.items() if each != option}
    table_of = {} if "latency" not in texts else {"latency_table": table}
    made: dict[tuple[float, bool], Size] = {}
    for text in texts[option]:
        goals = {option: text, **shared, **table_of}
        target = read_goals(goals)
        goal = next(each for each in target.goals if each.option == _dashed(option))
        if (goal.value, goal.is_share) in made:
            raise PrunekitError(
                f"--{_dashed(option)} names {text} twice (as {made[goal.value, goal.is_share].name}); say it once."
            )
        name = _NAMED[option] + (f"{goal.value:g}" if goal.is_share else _spelled(option, text))
        if name in {each.name for each in made.values()}:
            raise PrunekitError(
                f"--{_dashed(option)} names two sizes that are both {name} when rounded; leave one out."
            )
        made[goal.value, goal.is_share] = Size(name, goals, target)
    return tuple(made.values())


def check_options(asked: Mapping[str, object]) -> None:
    """Raises PrunekitError where ``asked`` names no sizes, or parameters in two ways."""
    if not any(asked.get(option) is not None for option in _NAMED):
        raise PrunekitError(
            "Say the sizes to compare: shares of all parameters (--params 0.9,0.8,0.7), of the decoder blocks "
            "(--blocks 0.9,0.8,0.7), of the KV cache (--kv-cache 0.8,0.6), or of the predicted latency (--latency "
            "0.9,0.8 with --latency-table)."
        )
    if asked.get("params") is not None and asked.get("blocks") is not None:
        raise PrunekitError("--params and --blocks both count parameters; give one of the two.")


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def _spelled(option: str, text: str) -> str:
    """A number with its unit, as a part of file names."""
    joined = "".join(text.split())
    return joined.lower() if option == "latency" else joined.upper()


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
