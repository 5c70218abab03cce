from __future__ import annotations

from pathlib import Path

import torch

from prunekit.kernels.runtime import text_writer as module
from prunekit.models.source import resolve
from tests.support.command import save_tiny


def test_on_a_cpu_there_is_none(tmp_path: Path) -> None:
    with module.text_writer(resolve(str(save_tiny(tmp_path / "tiny"))), "cpu") as writer:
        assert writer is None


def test_texts_go_on_from_their_starts_and_a_seed_gives_the_same(tmp_path: Path, monkeypatch) -> None:
    from prunekit.models import source as sources

    class Place(str):
        type = "cuda"

    real_pick, real_load = sources.pick_device, sources.load_model
    source = resolve(str(save_tiny(tmp_path / "tiny")))

    def load(source, device):
        with monkeypatch.context() as patch:
            patch.setattr(sources, "pick_device", real_pick)
            return real_load(source, device="cpu")

    monkeypatch.setattr(sources, "pick_device", lambda name: Place("cpu"))
    monkeypatch.setattr(sources, "load_model", load)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    starts = torch.tensor([[5], [9], [11]])
    with module.text_writer(source, "cuda") as writer:
        assert writer is not None
        first, again, other = (writer.write(starts, 12, seed) for seed in (3, 3, 4))
    assert first.shape == (3, 12) and first.dtype == torch.int64
    assert torch.equal(first[:, :1], starts)
    assert torch.equal(first, again) and not torch.equal(first, other)
