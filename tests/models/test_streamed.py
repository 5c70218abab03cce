"""A model that is never whole in memory computes what it computes in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.models.runner import TorchRunner
from prunekit.models.source import Source, load_model, resolve
from prunekit.models.stored.reading import Replaced, StoredWeights
from prunekit.models.stored.streamed import StreamedModel
from prunekit.plan import LayerKeep, Plan, whole_plan
from tests.support.command import save_tiny
from tests.support.tiny import MODEL_TYPES, VOCAB, random_plan, tiny_config, tiny_model

# Longer than the windows that some families attend to.
SEQUENCES = tuple(np.random.default_rng(0).integers(0, VOCAB, length) for length in (21, 5, 1))


def _check(source: Source, dtype: torch.dtype | None = torch.float32) -> None:
    made = StreamedModel(source, dtype).logits(SEQUENCES)
    model = load_model(source, dtype="auto" if dtype is None else str(dtype).removeprefix("torch."), device="cpu")
    for logits, sequence in zip(made, SEQUENCES, strict=True):
        expected = TorchRunner(model).logits(sequence)
        assert logits.shape == expected.shape and logits.dtype == np.float32
        # Sums of other lengths are rounded elsewhere.
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_of_every_family(model_type: str, tied: bool, tmp_path: Path) -> None:
    tiny_model(model_type, config=tiny_config(model_type, tied=tied)).save_pretrained(tmp_path / "m")
    source = resolve(str(tmp_path / "m"))
    rebuild(source, random_plan(source.shape, drop=(1,)), tmp_path / "pruned")
    _check(resolve(str(tmp_path / "pruned")))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_dense_models_with_every_bias(model_type: str, tmp_path: Path) -> None:
    tiny_model(model_type, config=tiny_config(model_type, bias=True)).save_pretrained(tmp_path / "m")
    _check(resolve(str(tmp_path / "m")))


def test_layers_without_attention_or_ffn(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m")))
    whole = whole_plan(source.shape).layers
    kept = (whole[0], LayerKeep(1, (), (), whole[1].ffn), LayerKeep(2, whole[2].kv_heads, whole[2].query_heads, ()))
    rebuild(source, Plan(source.shape, (*kept, *whole[3:])), tmp_path / "bare")
    _check(resolve(str(tmp_path / "bare")))


def test_weights_are_computed_as_they_are_stored(tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "m")
    source = resolve(str(tmp_path / "m"))
    made = StreamedModel(source).logits(SEQUENCES[:1])[0]
    expected = TorchRunner(model.eval()).logits(SEQUENCES[0])
    # Numbers of bfloat16 all of them, as near to each other as sums in another order are.
    assert np.array_equal(made, torch.from_numpy(made).bfloat16().float().numpy())
    assert np.abs(made - expected).max() < 0.05 * np.abs(expected).max()


def test_one_layer_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(str(save_tiny(tmp_path / "m", layers=6)))
    streamed = StreamedModel(source, torch.float32)
    held = []

    def count() -> None:
        held.append(sum(each.numel() for each in streamed.model.parameters() if each.device.type != "meta"))

    for layer in streamed.model.model.layers:
        layer.register_forward_hook(lambda *given: count())
        layer.get_submodule("mlp").register_forward_hook(lambda *given: count())
    steps: list[int] = []
    streamed.logits(SEQUENCES, lambda: steps.append(1))
    layer = source.shape.block_parameters // 6
    # Inside a layer that layer and the last norm, behind it the last norm.
    assert held == [layer + 64, 64] * 6 and len(steps) == 6


def test_other_weights_in_the_place_of_its_own(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m", tie_word_embeddings=False)))
    state = load_file(source.path / "model.safetensors")
    others = {name: tensor.float() * 0.9 for name, tensor in state.items() if "norm" not in name}
    made = StreamedModel(source, torch.float32, Replaced(StoredWeights(source), others)).logits(SEQUENCES[:1])[0]
    model = load_model(source, dtype="float32", device="cpu")
    model.load_state_dict({**{name: each.float() for name, each in state.items()}, **others})
    assert np.allclose(made, TorchRunner(model).logits(SEQUENCES[0]), atol=1e-5)


def test_weights_that_are_computed_when_they_are_asked_for_are_asked_for_once(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m", tie_word_embeddings=False)))
    state = {name: each.float() for name, each in load_file(source.path / "model.safetensors").items()}

    asked: list[str] = []

    class Computed(Mapping[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return state[name]

        def __iter__(self) -> Iterator[str]:
            return iter(state)

        def __len__(self) -> int:
            return len(state)

    StreamedModel(source, torch.float32, Replaced(StoredWeights(source), Computed())).logits(SEQUENCES)
    assert sorted(asked) == sorted(state)


def _spoil(folder: Path, name: str, value: float) -> None:
    state = load_file(folder / "model.safetensors")
    state[name].view(-1)[3] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    _spoil(folder, "model.layers.2.mlp.down_proj.weight", float("nan"))
    with pytest.raises(PrunekitError, match=r"Layer 2: mlp\.down_proj\.weight holds NaN"):
        StreamedModel(resolve(str(folder))).logits(SEQUENCES)
    _spoil(folder, "model.layers.2.mlp.down_proj.weight", 3e38)
    _spoil(folder, "model.layers.1.mlp.down_proj.weight", 3e38)
    with pytest.raises(PrunekitError, match=r"Layer \d: its outputs are not finite"):
        StreamedModel(resolve(str(folder))).logits(SEQUENCES)


def test_a_file_that_got_shorter_is_told(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m")))
    weights = StoredWeights(source)
    file = source.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(PrunekitError, match="got shorter"):
        [weights.read(name) for name in weights.names()]


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    source = resolve(str(save_tiny(tmp_path / "m")))
    weights: Any = StoredWeights(source)
    name = "model.embed_tokens.weight"
    whole = weights.read(name)
    assert torch.equal(whole, load_file(source.path / "model.safetensors")[name])
    assert torch.equal(weights.rows(name, 5, 9), whole[5:9]) and torch.equal(weights.rows(name, 120, 999), whole[120:])
    replaced = Replaced(weights, {name: whole + 1})
    assert torch.equal(replaced.rows(name, 5, 9), whole[5:9] + 1)
    assert torch.equal(replaced.read("model.norm.weight"), weights.read("model.norm.weight"))
