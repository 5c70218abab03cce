"""The trainings that are compared: each differs from `kd` in one thing, and some in what they begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prunekit.data.mixture import parse_mix
from prunekit.errors import PrunekitError
from prunekit.plan.knobs import parse_value, split_setting
from prunekit.plan.training import TextConfig, TrainingConfig, training_knobs, training_of

GIVEN = "given"


@dataclass(frozen=True)
class Variant:
    """``settings`` are those of `prunekit recover --set`; ``text`` is half (of one's own and of what the dense model
    writes), own or self; ``arm`` says what is trained: the given checkpoint, or what one of :data:`ARMS` makes."""

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    text: str = "half"
    arm: str = GIVEN


@dataclass(frozen=True)
class Arm:
    """A pruned model from the dense one: ``prune`` is what `prunekit prune` is told beside model, size, text and
    output. Where it ``trains`` too, nothing is trained afterwards. ``needs`` are options of the command that a version
    of prunekit may lack."""

    prune: tuple[str, ...]
    trains: bool = False
    needs: tuple[str, ...] = ()


# One cut and several begin alike, with as little pruning as goes: what is asked is what turns of training bring.
QUICK = ("--effort", "quick")
ARMS: Mapping[str, Arm] = {
    "adapt-pruner": Arm(("--method", "adapt-pruner")),
    "adapt-accel": Arm(("--method", "adapt-accel", "--recover"), trains=True, needs=("--recover",)),
    "one-cut": Arm((*QUICK, "--recover", "--stages", "1"), trains=True, needs=("--recover", "--stages")),
    "interleaved": Arm((*QUICK, "--recover", "--stages", "3"), trains=True, needs=("--recover", "--stages")),
}


def configured(variant: Variant) -> tuple[TrainingConfig, TextConfig]:
    """The training that ``variant`` asks for. Raises PrunekitError where a setting makes no sense."""
    known = training_knobs()
    read = {name: parse_value(known[name], each) if name in known else each for name, each in variant.settings.items()}
    return training_of(None, None, read)


def _with(name: str, **settings: object) -> Variant:
    return Variant(name, {key: str(value) for key, value in settings.items()})


GROUPS: Mapping[str, tuple[Variant, ...]] = {
    "loss": (_with("kd"), _with("ce", ce_share=1), _with("mix-0.2", ce_share=0.2)),
    "weights": (
        _with("all", train="all"),
        _with("lora-8", lora=8, learning_rate=1e-3),
        _with("lora-32", lora=32, learning_rate=1e-3),
    ),
    "rate": tuple(
        _with(f"rate-{rate:g}-batch-{batch}", learning_rate=rate, batch_tokens=batch)
        for batch in (1024, 2048, 4096)
        for rate in (5e-5, 1e-4, 2e-4, 4e-4)
        # That one is kd.
        if (rate, batch) != (1e-4, 2048)
    ),
    "text": (Variant("text-own", text="own"), Variant("text-self", text="self")),
    "documents": (_with("separate", documents="separate"),),
    "length": (_with("length-256", text_length=256),),
    "teacher": (
        _with("online", teacher="online"),
        _with("sampled-12", teacher="sampled", samples=12),
        _with("sampled-50", teacher="sampled", samples=50),
    ),
    "arms": (
        Variant("adapt-pruner", arm="adapt-pruner"),
        # Its own batches of 131,072 tokens would be two steps.
        Variant("adapt-accel", {"batch_tokens": "2048"}, arm="adapt-accel"),
        Variant("one-cut", arm="one-cut"),
        Variant("without-refit", {"refit": "false", "rescale": "false"}, arm="one-cut"),
        Variant("interleaved", arm="interleaved"),
        Variant("fresh-moments", {"moments": "fresh"}, arm="interleaved"),
    ),
}
ALL = {variant.name: variant for group in GROUPS.values() for variant in group}


def chosen(words: Iterable[str]) -> tuple[Variant, ...]:
    """The variants that ``words`` name, or whole groups of them, each once. "kd+learning_rate=2e-4" is kd with that
    setting. Raises PrunekitError where there is no such variant, or what is no setting."""
    found: dict[str, Variant] = {}
    for word in words:
        name, *settings = word.split("+")
        if name not in ALL and (name not in GROUPS or settings):
            raise PrunekitError(
                f"There is no variant {name!r}; there are {', '.join(ALL)}, and groups {', '.join(GROUPS)}."
            )
        for variant in (ALL[name],) if name in ALL else GROUPS[name]:
            more = dict(map(split_setting, settings))
            found.setdefault(word if settings else variant.name, _changed(variant, word, more))
    return tuple(found.values())


def _changed(variant: Variant, word: str, more: Mapping[str, str]) -> Variant:
    return replace(variant, name=word, settings={**variant.settings, **more}) if more else variant


def mix(kind: str, own: Sequence[str]) -> str:
    """The text of a variant: ``own`` are texts that are to be taken alike."""
    if kind == "self":
        return "self"
    parts = parse_mix(",".join(own)) if len(own) > 1 else ((own[0], 1.0),)
    share = 1.0 if kind == "own" else 0.5
    told = [f"{name}:{share * part:.6g}" for name, part in parts]
    return ",".join([*told, *(["self:0.5"] if kind == "half" else [])])
