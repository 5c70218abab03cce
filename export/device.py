"""On which device an export's runtime computes, decided and checked before anything is written or read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.target import CPU, Target
from prunekit.models.source import pick_device

# The kinds of device that a target may name.
KINDS = (CPU, "cuda")


def kind_of(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def place(target: Target, wanted: str, only: Collection[str] | None = None, what: str = "") -> str:
    """The device, such as ``cpu`` or ``cuda:0``, on which ``target``'s runtime runs where a user said ``wanted``.

    ``auto`` is where the runtime itself insists (vLLM), else the CPU; of an export ``what`` that runs ``only`` on some
    kinds of device, the first of them. Raises PrunekitError where the runtime has no such device, the machine has none,
    or the installed package was built without it.
    """
    allowed = target.devices if only is None else only
    if wanted == "auto":
        wanted = target.own_device() or (CPU if CPU in allowed else next(iter(allowed)))
    kind = kind_of(wanted)
    if kind not in target.devices and kind in (*KINDS, "mps"):
        why = f" ({target.only_cpu})" if target.only_cpu else ""
        raise PrunekitError(
            f"{target.name} is run on {' or '.join(target.devices)} only, not on {kind}{why}; {_instead(kind)}."
        )
    device = pick_device(wanted)
    if only is not None and kind not in only:
        raise PrunekitError(
            f"{what} was made for {' and '.join(only)} and does not run on {kind}; export the model again with "
            f"--device {kind}."
        )
    missing = target.missing(target.runs_with) if kind != CPU and target.unverified is None else ()
    if missing:
        raise PrunekitError(
            f"Running {target.name} on {kind} needs {missing[0].package}; run `{missing[0].how(kind)}`."
        )
    target.check_device(kind)
    if target.first_gpu_only and device.index:
        raise PrunekitError(
            f"{target.name} takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES={device.index} and say --device "
            "cuda."
        )
    return CPU if kind == CPU else f"{kind}:{device.index or 0}"


def _instead(kind: str) -> str:
    from prunekit.export.registry import TARGET_NAMES, target

    able = [name for name in TARGET_NAMES if kind in target(name).devices]
    return f"leave --device out, or for {kind} take {', '.join(able)}" if able else "leave --device out"


def device_facts(device: str) -> dict[str, Any]:
    """What is written about a device: its kind, and of a GPU its name and compute capability ("9.0")."""
    kind = kind_of(device)
    if kind != "cuda":
        return {"kind": kind}
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return {"kind": kind, "name": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}


def devices_here(target: Target) -> dict[str, str | None]:
    """For each kind of device that ``target`` can use: None where it can be used here, else why not."""
    found: dict[str, str | None] = {}
    missing = target.missing(target.runs_with)
    for kind in target.devices:
        if missing:
            found[kind] = f"{missing[0].package} is not installed."
            continue
        try:
            place(target, kind)
        except PrunekitError as error:
            found[kind] = str(error)
        else:
            found[kind] = None
    return found
