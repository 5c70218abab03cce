"""Importance scores against naive references: full gradients, plain loops, gates that are really there, layers gone."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES, family_of
from prunekit.plan import LayerKeep, Plan
from prunekit.pruning.importance import IMPORTANCE, LAYER_IMPORTANCE, fisher
from prunekit.pruning.importance.scores import LayerScores, Scores
from prunekit.pruning.importance.taylor import Taylor
from prunekit.utils.numerics.channel_moments import ChannelMoments
from tests.support.naive_scores import (
    BATCHES,
    CASES,
    GRADIENTS,
    INPUT_IDS,
    LAYERS,
    NAIVE,
    Gates,
    close,
    make,
    scored,
    sequence_losses,
)
from tests.support.tiny import one_thread, rebuilt_model

cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def _light() -> Iterator[None]:
    with one_thread():
        yield


def test_every_method_has_a_reference() -> None:
    assert set(NAIVE) | {"random"} == set(IMPORTANCE)
    assert set(LAYER_IMPORTANCE) == {"cosine", "euclidean", "manhattan", "loss"}


@cases
@pytest.mark.parametrize("method", NAIVE)
def test_scores_follow_their_formula(case: str, method: str) -> None:
    model = make(case)
    got = scored(model, method)
    want = NAIVE[method](copy.deepcopy(model).double())
    assert len(got.layers) == LAYERS
    for layer, reference in zip(got.layers, want, strict=True):
        close(layer.kv_heads, reference.kv_heads)
        close(layer.query_heads, reference.query_heads)
        close(layer.ffn, reference.ffn)


@pytest.mark.parametrize("case", ["llama-bias", "gemma2"])
def test_fisher_gates_by_finite_differences(case: str) -> None:
    """Neither autograd: the loss with one unit scaled by 1 ± ε."""
    model = make(case)
    sequence = INPUT_IDS[:1]
    got = scored(model, "fisher", input_ids=sequence).layers[1]
    double = copy.deepcopy(model).double()
    gates = Gates(double)
    epsilon = 1e-2
    for gate, values in ((gates.kv[1], got.kv_heads), (gates.query[1], got.query_heads), (gates.ffn[1], got.ffn)):
        unit = int(values.argmax())
        losses = []
        for step in (epsilon, -epsilon):
            with torch.no_grad():
                gate.view(-1)[unit] = 1 + step
                losses.append(sequence_losses(double, sequence).item())
                gate.view(-1)[unit] = 1
        slope = (losses[0] - losses[1]) / (2 * epsilon)
        assert values.flatten()[unit].item() ** 0.5 == pytest.approx(abs(slope), rel=1e-2)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
@pytest.mark.parametrize("method", ["taylor2", "fisher", "wanda", "flap"])
def test_batches_don_t_matter_where_sequences_count(method: str, batch_size: int) -> None:
    model = make()
    got, want = scored(model, method, batch_size=batch_size), scored(model, method, batch_size=3)
    for a, b in zip(got.layers, want.layers, strict=True):
        close(a.kv_heads, b.kv_heads)
        close(a.ffn, b.ffn)
    assert got.loss == pytest.approx(want.loss, rel=1e-6)
    assert got.tokens == INPUT_IDS.numel()


def test_repeated_text_gives_the_same_taylor_score() -> None:
    """An average over sequences, not a sum: twice the same text changes nothing."""
    model = make()
    for method in ("taylor", "taylor2"):
        once = scored(model, method, input_ids=INPUT_IDS[:2])
        twice = scored(model, method, input_ids=INPUT_IDS[:2].repeat(2, 1))
        close(twice.layers[0].ffn, once.layers[0].ffn)


def test_loss_is_the_mean_over_sequences() -> None:
    model = make()
    with torch.no_grad():
        want = sequence_losses(model, INPUT_IDS).mean().item()
    assert scored(model, "wanda").loss == pytest.approx(want, rel=1e-6)


def test_random_follows_the_seed_and_nothing_else() -> None:
    model, other = make(), make(seed=5)
    first, again, third = (
        scored(model, "random", seed=1),
        scored(other, "random", seed=1),
        scored(model, "random", seed=2),
    )
    for a, b, c in zip(first.layers, again.layers, third.layers, strict=True):
        assert torch.equal(a.ffn, b.ffn) and torch.equal(a.query_heads, b.query_heads)
        assert not torch.equal(a.ffn, c.ffn)
        assert torch.equal(a.kv_heads, a.query_heads.sum(1))
        assert a.ffn.min() >= 0 and a.ffn.max() < 1 and a.ffn.dtype == torch.float64
    assert not torch.equal(first.layers[0].ffn, first.layers[1].ffn)


def test_methods_without_text_need_none() -> None:
    model = make()
    for method in ("magnitude", "random"):
        got = scored(model, method, input_ids=None)
        assert got.loss is None and got.tokens == 0
    with pytest.raises(PrunekitError, match="needs calibration text"):
        scored(model, "taylor", input_ids=None)
    with pytest.raises(PrunekitError, match=r"There is no importance 'tailor'; choose one of: .*taylor"):
        scored(model, "tailor")
    with pytest.raises(PrunekitError, match="There is no layer importance 'x'"):
        scored(model, "taylor", "x")


def token_distance(method: str, before: list[float], after: list[float]) -> float:
    pairs = list(zip(before, after, strict=True))
    if method == "cosine":
        norms = [sum(v * v for v in vector) ** 0.5 for vector in (before, after)]
        return 1 - sum(a * b for a, b in pairs) / norms[0] / norms[1]
    if method == "euclidean":
        return sum((a - b) ** 2 for a, b in pairs) ** 0.5
    return sum(abs(a - b) for a, b in pairs)


@cases
@pytest.mark.parametrize("method", ["cosine", "euclidean", "manhattan"])
def test_layer_distances(case: str, method: str) -> None:
    model = make(case)
    got = scored(model, "wanda", method).layer_importance
    double = copy.deepcopy(model).double()
    sums, tokens = [0.0] * LAYERS, 0

    def look(index: int, args: Any, output: Any) -> None:
        for before, after in zip(args[0][0].tolist(), output[0].tolist(), strict=True):
            sums[index] += token_distance(method, before, after)

    for index, layer in enumerate(double.model.layers):
        layer.register_forward_hook(lambda _, args, output, i=index: look(i, args, output))
    with torch.no_grad():
        for sequence in INPUT_IDS:
            double(input_ids=sequence[None], use_cache=False)
            tokens += len(sequence)
    assert got is not None
    close(got, torch.tensor(sums, dtype=torch.float64) / tokens)


@cases
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_loss_importance_equals_dropping_the_layer(case: str, importance: str) -> None:
    model = make(case)
    shape = family_of(model.config.model_type).shape(model.config)
    # Gradient checkpointing wraps the very forward that is replaced.
    got = scored(model, importance, "loss", gradient_checkpointing=True).layer_importance
    assert got is not None
    want = []
    with torch.no_grad():
        whole = sequence_losses(model, INPUT_IDS).mean().item()
        for gone in range(LAYERS):
            keeps = tuple(LayerKeep.everything(i, s) for i, s in enumerate(shape.layers) if i != gone)
            without = rebuilt_model(model, Plan(shape, keeps))
            want.append(sequence_losses(without, INPUT_IDS).mean().item() - whole)
    # Differences of two losses near 5, each good to float32's 6e-7.
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-5)
    assert got.abs().max() > 1e-2
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def hooks(model: Any) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    own = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return own + sum(len(parameter._post_accumulate_grad_hooks or ()) for parameter in model.parameters())


@pytest.mark.parametrize("case", ["llama", "phi3", "gemma2"])
@pytest.mark.parametrize("method", GRADIENTS)
def test_checkpointing_changes_nothing(case: str, method: str, recwarn: pytest.WarningsRecorder) -> None:
    model = make(case)
    calls: list[int] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = scored(model, method, "cosine", gradient_checkpointing=False)
    single = len(calls)
    checkpointed = scored(model, method, "cosine", gradient_checkpointing=True)
    # It really was on: every layer's forward ran twice.
    assert len(calls) == 3 * single
    for a, b in zip(checkpointed.layers, plain.layers, strict=True):
        for name in ("kv_heads", "query_heads", "ffn"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-12, atol=0)
    torch.testing.assert_close(checkpointed.layer_importance, plain.layer_importance, rtol=1e-12, atol=0)
    assert checkpointed.loss == plain.loss
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning | UserWarning)]


def test_checkpointing_in_the_oldest_transformers(compat_python: dict[str, str]) -> None:
    """There a layer checkpoints its ``__call__`` with all hooks, not its forward, and is switched in another place."""
    tests = ("test_checkpointing_changes_nothing", "test_model_is_put_back", "test_neither_dropout_nor_training")
    code = (
        "import sys, pytest, transformers\n"
        "assert transformers.__version__.startswith('5.16.')\n"
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-q", "-p", "no:cacheprovider", "-k", " or ".join(tests), __file__]
    done = subprocess.run([sys.executable, "-c", code, *options], env=compat_python, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize("method", IMPORTANCE)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_model_is_put_back(method: str, checkpoint: bool) -> None:
    model = make()
    model.train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(False)
    # As in the middle of training: checkpointing on in some layers, each with its own function.
    model.model.layers[2].gradient_checkpointing = True
    model.model.layers[2]._gradient_checkpointing_func = mine = lambda function, *args, **_: function(*args)

    def state() -> Any:
        return (
            {name: module.training for name, module in model.named_modules()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            [vars(layer).get("gradient_checkpointing") for layer in model.model.layers],
            hooks(model),
        )

    before, values = state(), copy.deepcopy(model.state_dict())
    scored(model, method, "loss", gradient_checkpointing=checkpoint)
    assert state() == before and before[-1] == 0
    assert model.model.layers[2]._gradient_checkpointing_func is mine
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(model, "taylor", "cosine", gradient_checkpointing=checkpoint, on_batch=fail)
    assert state() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_of_training_are_not_scored() -> None:
    model = make()
    want = scored(model, "taylor")
    sequence_losses(model, INPUT_IDS[:1]).sum().backward()
    got = scored(model, "taylor")
    assert torch.equal(got.layers[0].ffn, want.layers[0].ffn)


@pytest.mark.parametrize("method", [*GRADIENTS, "wanda"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_neither_dropout_nor_training_mode_matters(method: str, checkpoint: bool) -> None:
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5}
    for case, fields in (("llama", {}), ("phi3", dropout)):
        want = scored(make(case), method, "cosine", gradient_checkpointing=False)
        for mode in (True, False):
            model = make(case, attention_dropout=0.5, **fields).train(mode)
            got = scored(model, method, "cosine", gradient_checkpointing=checkpoint)
            for a, b in zip(got.layers, want.layers, strict=True):
                torch.testing.assert_close(a.kv_heads, b.kv_heads, rtol=1e-12, atol=0)
                torch.testing.assert_close(a.ffn, b.ffn, rtol=1e-12, atol=0)
            assert got.loss == want.loss


@pytest.mark.parametrize(
    ("method", "passes"), [("taylor", BATCHES), ("fisher", BATCHES), ("taylor2", 5), ("wanda", BATCHES)]
)
def test_one_pass_serves_units_and_layers(method: str, passes: int) -> None:
    model = make()
    calls: list[int] = []
    beats: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    scored(model, method, "cosine", on_batch=lambda: beats.append(1))
    assert len(calls) == len(beats) == passes
    calls.clear()
    scored(model, "magnitude")
    assert not calls


@pytest.mark.parametrize("method", IMPORTANCE)
def test_layer_importance_leaves_unit_scores_alone(method: str) -> None:
    """Passes without a layer run the same hooks; what they see must not count."""
    model = make()
    want = scored(model, method)
    for layer_method in LAYER_IMPORTANCE:
        for a, b in zip(scored(model, method, layer_method).layers, want.layers, strict=True):
            assert torch.equal(a.kv_heads, b.kv_heads) and torch.equal(a.ffn, b.ffn)


def spoil(model: Any, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[7] = value


@pytest.mark.parametrize("layer_method", [None, *LAYER_IMPORTANCE])
@pytest.mark.parametrize("method", IMPORTANCE)
def test_bad_weights_are_named(method: str, layer_method: str | None) -> None:
    for value in (float("nan"), float("inf")):
        for weight in ("mlp.up_proj.weight", "input_layernorm.weight"):
            model = make()
            spoil(model, f"model.layers.1.{weight}", value)
            with pytest.raises(PrunekitError, match=f"Layer 1: {weight} holds NaN or infinite weights"):
                scored(model, method, layer_method)
            assert hooks(model) == 0 and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", IMPORTANCE)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_bad_weights_outside_the_layers_are_named(method: str, name: str) -> None:
    model = make()
    if name.endswith("embed_tokens.weight"):
        with torch.no_grad():
            model.get_parameter(name).fill_(float("nan"))
    else:
        spoil(model, name, float("nan"))
    with pytest.raises(PrunekitError, match=rf"^{name} holds NaN"):
        scored(model, method)


@pytest.mark.parametrize("method", ["taylor", "fisher", "wanda"])
def test_overflow_names_the_layer(method: str) -> None:
    model = make().half()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(PrunekitError, match=r"Layer 1: its output is not finite in torch.float16.*float32"):
        scored(model, method)


def test_scores_that_are_not_finite_name_their_layer() -> None:
    good = LayerScores(torch.ones(2).double(), torch.ones(2, 1).double(), torch.ones(3).double())
    bad = LayerScores(good.kv_heads, good.query_heads, torch.tensor([1, float("inf"), 1]).double())
    with pytest.raises(PrunekitError, match="Layer 1: the taylor scores of its FFN are not finite"):
        Scores("taylor", (good, bad))
    with pytest.raises(PrunekitError, match="Layer 1: its cosine importance is not finite"):
        Scores("taylor", (good, good), torch.tensor([0.0, float("nan")]), "cosine")


@pytest.mark.parametrize("method", IMPORTANCE)
def test_bfloat16_models_score_in_float64(method: str) -> None:
    half = make().bfloat16()
    got = scored(half, method, "cosine")
    assert got.layer_importance is not None and got.layer_importance.dtype == torch.float64
    # The same weights in float32; what bfloat16 loses is in activations and gradients, not in the sums.
    want = scored(copy.deepcopy(half).float(), method, "cosine")
    tolerance = 1e-6 if method.startswith(("magnitude", "random")) else 0.1
    for layer, reference in zip(got.layers, want.layers, strict=True):
        close(layer.kv_heads, reference.kv_heads, tolerance)
        close(layer.query_heads, reference.query_heads, tolerance)
        close(layer.ffn, reference.ffn, tolerance)


@pytest.mark.parametrize("method", ["taylor", "taylor2"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_one_weight_gradient_at_a_time(method: str, checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama-bias")
    alive: list[int] = []
    take = Taylor._take

    def spy(self: Taylor, *args: Any) -> None:
        alive.append(sum(parameter.grad is not None for parameter in model.parameters()))
        take(self, *args)

    monkeypatch.setattr(Taylor, "_take", spy)
    scored(model, method, gradient_checkpointing=checkpoint)
    assert max(alive) == 1
    # q, k, v, gate, up with biases, o and down without: 12 tensors a layer and backward pass.
    assert len(alive) == 12 * LAYERS * (5 if method == "taylor2" else BATCHES)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_fisher_makes_no_weight_gradient(checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    looked: list[int] = []
    scaled = fisher.Fisher._scaled

    def spy(self: Any, gradient: torch.Tensor) -> torch.Tensor:
        looked.append(1)
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
        return scaled(self, gradient)

    monkeypatch.setattr(fisher.Fisher, "_scaled", spy)
    scored(model, "fisher", gradient_checkpointing=checkpoint)
    assert len(looked) == 2 * LAYERS * BATCHES


def test_already_pruned_layers_score_by_their_own_widths() -> None:
    dense = make("olmo2")
    shape = FAMILIES["olmo2"].shape(dense.config)
    everything = [LayerKeep.everything(i, layer) for i, layer in enumerate(shape.layers)]
    everything[1] = LayerKeep(1, (0, 2), (0, 1, 4, 5), tuple(range(0, 96, 2)))
    model = rebuilt_model(dense, Plan(shape, tuple(everything)))
    for method in IMPORTANCE:
        got = scored(model, method, "cosine").layers[1]
        assert (got.kv_heads.shape, got.query_heads.shape, got.ffn.shape) == ((2,), (2, 2), (48,))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_moments_of_any_split(sizes: list[int], offset: float, seed: int) -> None:
    """A large mean must not eat the variance, and batches of any size give what all tokens at once give."""
    x = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) + offset
    moments = ChannelMoments(3)
    for part in x.split(sizes):
        moments.add(part)
    double = x.double()
    torch.testing.assert_close(moments.norm, double.norm(dim=0), rtol=1e-5, atol=0)
    if len(x) > 1:
        # float32 tokens of size 1000 are 6e-5 apart; so is the batch's mean from the true one.
        torch.testing.assert_close(moments.variance, double.var(0), rtol=1e-3, atol=1e-6)
