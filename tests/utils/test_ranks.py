"""Several processes of one launch: they share, sum and wait, and end together with one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.utils.process import rank_group, ranks
from tests.support.command import ROOT, Ended
from tests.support.ranks import run_ranks


def answers(work: Callable[[], object], size: int = 3) -> list[object]:
    """What ``work`` gives on each rank."""

    def run() -> None:
        with ranks.joined("cpu"):
            print(json.dumps(work()))

    ended = run_ranks(size, run)
    assert [each.code for each in ended] == [0] * size, ended
    return [each.json for each in ended]


def failures(work: Callable[[], object], size: int = 2) -> list[Ended]:
    """How ranks end where ``work`` fails on some, as a command does."""

    def run() -> None:
        try:
            ranks.join("cpu")
            work()
            ranks.leave()
        except PrunekitError as error:
            said = str(error)
            ranks.fail(said, lambda: print(said, flush=True))
            os._exit(2)

    return run_ranks(size, run)


def told(ended: list[Ended]) -> str:
    return "".join(each.out for each in ended)


def test_one_process_does_nothing() -> None:
    import torch.distributed as dist

    tensor = torch.ones(2)
    with ranks.joined():
        assert not dist.is_initialized()
        assert (ranks.rank(), ranks.size(), ranks.is_first()) == (0, 1, True)
        ranks.sum_over_ranks(tensor)
        assert ranks.shared(tensor) is tensor
        assert ranks.from_first(lambda: tensor) is tensor
        assert ranks.in_order([1, 2], 2) == [1, 2]
        assert ranks.gathered(tensor, 0) == [tensor]
        assert ranks.share_of([1, 2]) == [1, 2]
        assert list(ranks.rounds([1, 2])) == [[1], [2]]
        assert ranks.any_rank(True) and not ranks.any_rank(False)
        ranks.barrier()
    assert tensor.tolist() == [1, 1]


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys; sys.argv[0] = 'prunekit'; import prunekit.utils.process.ranks; print('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert made.stdout == "False\n"


def test_sums_are_the_same_on_all_ranks() -> None:
    def work() -> object:
        generator = torch.Generator().manual_seed(ranks.rank())
        small, count = torch.rand(5, 2, generator=generator).T, torch.tensor(ranks.rank())
        large = torch.rand(1 << 19, dtype=torch.float64, generator=generator)
        onto = torch.full((3,), float(ranks.rank() + 1))
        ranks.sum_over_ranks(small, count, large)
        ranks.sum_over_ranks(onto, onto=1)
        return small.tolist(), count.item(), large.sum().item(), onto.tolist() if ranks.rank() == 1 else None

    made = answers(work)
    assert made[0][:3] == made[1][:3] == made[2][:3]  # type: ignore[index]
    drawn = [torch.Generator().manual_seed(rank) for rank in range(3)]
    expected = sum(torch.rand(5, 2, generator=generator).T for generator in drawn)
    assert torch.tensor(made[0][0]).allclose(expected)  # type: ignore[index, arg-type]
    assert made[0][1] == 3  # type: ignore[index]
    assert made[1][3] == [6, 6, 6]  # type: ignore[index]


def test_values_and_tensors_are_shared() -> None:
    def work() -> object:
        value: dict[Any, Any] = {
            "a": [1, (2.5, None)],
            3: torch.arange(6, dtype=torch.bfloat16).view(2, 3).T,
            "b": torch.tensor(True),
        }
        with ranks.joined("cpu"):
            made = ranks.shared(value if ranks.rank() == 1 else {}, by=1)
        assert made[3].dtype == torch.bfloat16 and made["b"].dtype == torch.bool
        text = ranks.from_first(lambda: f"rank {ranks.rank()}")
        return made["a"], made[3].tolist(), made["b"].item(), text

    expected = [[1, [2.5, None]], [[0, 3], [1, 4], [2, 5]], True, "rank 0"]
    assert answers(work) == [expected] * 3


def test_items_are_dealt_out_and_come_back_in_order() -> None:
    def work() -> object:
        items = [f"item {number}" for number in range(5)]
        mine = [item.upper() for item in ranks.share_of(items)]
        made = ranks.in_order(mine, len(items))
        together = ranks.gathered(torch.tensor([ranks.rank()]), 2)
        return made, [*ranks.share_of(5)], ranks.any_rank(ranks.rank() == 1), [each.item() for each in together]

    made = answers(work)
    whole = [f"ITEM {number}" for number in range(5)]
    assert made == [[whole, [0, 3], True, []], [whole, [1, 4], True, []], [whole, [2], True, [0, 1, 2]]]


def test_the_others_wait_for_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which they hear a sign of life now and then."""
    monkeypatch.setattr(rank_group, "_SILENCE", 0.6)
    monkeypatch.setattr(rank_group, "_BEAT", 0.1)
    monkeypatch.setattr(rank_group, "_LOOK", 0.1)
    assert answers(lambda: ranks.from_first(lambda: time.sleep(1.5)), 2) == [None, None]


def test_an_error_on_all_ranks_is_told_once() -> None:
    def work() -> None:
        raise PrunekitError("There is no such method.")

    ended = failures(work, 3)
    assert [each.code for each in ended] == [2, 2, 2]
    assert ended[0].out == told(ended) == "There is no such method.\n"


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_ends_all(failing: int) -> None:
    def work() -> None:
        if ranks.rank() == failing:
            raise PrunekitError(f"Rank {failing} can't go on.")
        ranks.barrier()

    ended = failures(work)
    assert [each.code for each in ended] == [2, 2]
    assert ended[0].out == told(ended) == f"Rank {failing} can't go on.\n"


def test_an_error_in_what_the_first_does_alone_is_raised_on_all() -> None:
    def fail() -> None:
        raise PrunekitError("The folder is taken.")

    def work() -> None:
        with pytest.raises(PrunekitError, match="taken"):
            ranks.from_first(fail)
        ranks.barrier()

    assert [each.code for each in failures(work)] == [0, 0]


def test_a_rank_that_is_killed_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "_NOTICE", 0.2)

    def work() -> None:
        if ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.barrier()

    begun = time.monotonic()
    ended = failures(work)
    assert [each.code for each in ended] == [2, -signal.SIGKILL]
    assert told(ended).startswith("Another of the 2 processes has ended and left no word;")
    assert time.monotonic() - begun < 30


def test_a_rank_that_is_silent_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "_SILENCE", 1.0)
    monkeypatch.setattr(rank_group, "_BEAT", 0.1)
    monkeypatch.setattr(rank_group, "_LOOK", 0.1)
    monkeypatch.setattr(rank_group, "_NOTICE", 0.2)

    def work() -> None:
        pid = ranks.shared(os.getpid(), by=1)
        if ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            ranks.barrier()
        finally:
            os.kill(pid, signal.SIGKILL)

    ended = failures(work)
    assert ended[0].code == 2
    assert "Process 1 of 2 has given no sign of life" in ended[0].out


def test_too_few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_group, "_MEET", timedelta(seconds=1))

    def work() -> None:
        if os.environ["RANK"] == "0":
            with pytest.raises(PrunekitError, match="Only 1 of 2 processes came"):
                ranks.join("cpu")

    assert [each.code for each in run_ranks(2, work)] == [0, 0]


@pytest.mark.parametrize(
    ("name", "value", "said"), [("RANK", "2", "ranks count from 0"), ("WORLD_SIZE", "two", "no number")]
)
def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    settings = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, each in {**settings, name: value}.items():
        monkeypatch.setenv(key, each)
    with pytest.raises(PrunekitError, match=said):
        ranks.join("cpu")
