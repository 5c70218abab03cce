"""Writing that fails or is stopped half way, through the real command line: nothing half-written is left behind."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from prunekit.checkpoint import rebuild as checkpoint
from prunekit.errors import PrunekitError
from prunekit.utils.files import exchange
from prunekit.utils.files.atomic import rewrite_bytes
from tests.support.command import Command, listing, start
from tests.support.spoiled import Place, Shared, make_shared, must_refuse

pytestmark = pytest.mark.usefixtures("single_threaded")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return make_shared(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device"),
        OSError(errno.ENOSPC, "No space left"),
    ],
)
def test_full_disk_while_writing(
    error: Exception, command: Command, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard finds no room; what was written of both goes."""
    calls = []

    def fill(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        calls.append(file)
        if len(calls) % 2:
            save_file(tensors, file, metadata=metadata)
            return
        Path(file).write_bytes(b"half a shard")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fill)
    place = Place(tmp_path, shared)
    arguments = place.prune("--plan", shared.plan, "--max-shard", "60KB", "-o", tmp_path / "deep" / "new")
    must_refuse(command, tmp_path, arguments, ("No space left", "Free some space", "nothing was left behind"))
    assert len(calls) == 4 and calls[0].parent != tmp_path


def test_full_disk_keeps_what_was_to_be_replaced(
    command: Command, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, shared)
    pruned = place.pruned
    arguments = place.prune("--plan", shared.plan, "--overwrite", "-o", pruned)

    real = exchange.rename_with

    def refuse(new: Path, old: Path, flags: int) -> bool:
        # The last step: the new folder and the old one change names.
        if old == pruned:
            raise OSError(errno.EIO, "Input/output error")
        return real(new, old, flags)

    monkeypatch.setattr(exchange, "rename_with", refuse)
    must_refuse(command, tmp_path, arguments, ("Input/output error",))
    monkeypatch.undo()
    assert (pruned / "prunekit.json").read_bytes() == (shared.pruned / "prunekit.json").read_bytes()


def test_full_disk_keeps_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.json"
    file.write_text("old")

    def refuse(old: Any, new: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PrunekitError, match="No space left"):
        rewrite_bytes(file, b"new")
    assert listing(tmp_path) == {"plan.json": 3} and file.read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory(
    error: Exception, command: Command, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    must_refuse(
        command, tmp_path, Place(tmp_path, shared).prune("--plan", shared.plan), ("Not enough memory", "bfloat16")
    )


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_interrupt_while_writing(
    flags: tuple[str, ...], command: Command, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half a shard")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupt)
    done = command(*Place(tmp_path, shared).prune("--plan", shared.plan, "-o", tmp_path / "deep" / "new", *flags))
    assert done.code == 130
    assert done.err.splitlines() == ["prunekit: stopped; nothing half-written was left behind."]
    assert listing(tmp_path) == {}


_SLOW = """
import time, pathlib
from prunekit.checkpoint import rebuild as checkpoint
real = checkpoint.save_file
def slow(tensors, file, metadata):
    real(tensors, file, metadata=metadata)
    if str(file).endswith("shard-1.safetensors"):
        print("writing", flush=True)
        time.sleep(60)
checkpoint.save_file = slow
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_while_writing(number: int, shared: Shared, tmp_path: Path) -> None:
    """Ctrl-C and a polite end clean up; after SIGKILL nothing looks like a model, and the name is free."""
    process = start(*Place(tmp_path, shared).prune("--plan", shared.plan, "--max-shard", "60KB"), code=_SLOW)
    assert process.stdout.readline() == "writing\n"
    begun = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - begun < 20
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        # The tokenizer and the weights come first: without config.json, manifest and weights under their own name, no
        # tool takes the remains for a model.
        names = {Path(name).name for name in listing(tmp_path)}
        assert not names & {"config.json", "prunekit.json", "plan.json", "model.safetensors"}
        assert not [name for name in names if name.endswith(".index.json")]
    else:
        assert process.returncode == 128 + number
        assert len(err.splitlines()) == 1 and "nothing half-written" in err
        assert listing(tmp_path) == {}


def test_a_bug_keeps_its_traceback(
    command: Command, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what a user can put right is worded: anything else must stay loud, and still leave nothing behind."""

    def bug(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint, "save_file", bug)
    with pytest.raises(ZeroDivisionError):
        command(*Place(tmp_path, shared).prune("--plan", shared.plan))
    assert listing(tmp_path) == {}
