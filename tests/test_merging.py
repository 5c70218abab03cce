"""KV heads that become their mean: the layer computed by hand, which ones are merged, what that costs, end to end."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command, write_text
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_model, zeroed_model
from tiny_session import logits, nothing, tiny_session
from tiny_text import tiny_tokenizer
from transformers import AutoModelForCausalLM

from prunekit.allocation import Problem, allocation
from prunekit.allocation.measure import measured
from prunekit.allocation.optimal import attention_options
from prunekit.allocation.search import _Grid
from prunekit.curves import HeadChoice, LayerCurves, layer_curves
from prunekit.errors import PrunekitError
from prunekit.families import FAMILIES
from prunekit.levels import Levels
from prunekit.merging import InPlace, head_distances, partition, partitions
from prunekit.output_fisher import output_fisher
from prunekit.plan import LayerKeep, Plan, whole_plan
from prunekit.refit import refit
from prunekit.rounding import Rounding
from prunekit.shape import LayerShape, ModelShape, merged_heads
from prunekit.slicing import LayerSlicer
from prunekit.sublayers import Sublayers

MERGEABLE = tuple(name for name in MODEL_TYPES if not FAMILIES[name].wide_norms)
families = pytest.mark.parametrize("model_type", MERGEABLE)
CROSSED = ((0, 2), (1, 3))
TWINS = ("ffn", "kv", "query", "kv-merge")


@pytest.fixture(autouse=True)
def _light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def _ids(sequences: int = 16, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _merged_plan(model: Any, *groups: tuple[tuple[int, ...], ...]) -> Plan:
    """Nothing is cut; layer i has ``groups[i]`` merged."""
    plan = whole_plan(FAMILIES[model.config.model_type].shape(model.config))
    layers = [
        LayerKeep(keep.index, keep.kv_heads, keep.query_heads, keep.ffn, merged)
        for keep, merged in itertools.zip_longest(plan.layers, groups, fillvalue=())
    ]
    return Plan(plan.source, tuple(layers))


def _key_value_rows(model: Any, layer: Any) -> Iterator[tuple[torch.Tensor, int]]:
    """Every tensor with rows of KV heads, and where they start."""
    head_dim = model.model.layers[0].self_attn.head_dim
    attention = layer.self_attn
    if hasattr(attention, "qkv_proj"):
        for start in (8 * head_dim, 12 * head_dim):
            yield attention.qkv_proj.weight, start
        return
    for projection in (attention.k_proj, attention.v_proj):
        yield projection.weight, 0
        if projection.bias is not None:
            yield projection.bias, 0


def _twins(model_type: str, **fields: Any) -> Any:
    """A model whose KV heads 2 and 3 are copies of 0 and 1."""
    model = tiny_model(model_type, **fields)
    head_dim = model.model.layers[0].self_attn.head_dim
    with torch.no_grad():
        for layer in model.model.layers:
            for tensor, start in _key_value_rows(model, layer):
                tensor[start + 2 * head_dim : start + 4 * head_dim] = tensor[start : start + 2 * head_dim].clone()
    return model


@families
@pytest.mark.parametrize("bias", [False, True])
def test_a_merged_layer_is_the_one_computed_by_hand(model_type: str, bias: bool) -> None:
    """Written out head by head, in the dense model's own shape."""
    model = tiny_model(model_type, bias=bias)
    head_dim = model.model.layers[0].self_attn.head_dim
    plan = _merged_plan(model, CROSSED, ((0, 1, 2, 3),), (), ((0, 3), (1, 2)))
    by_hand = copy.deepcopy(model)
    for keep in plan.layers:
        for tensor, start in _key_value_rows(model, by_hand.model.layers[keep.index]):
            old = tensor.detach().clone()
            for group in keep.merged:
                for row in range(head_dim):
                    mean = sum(old[start + kv * head_dim + row] for kv in group) / len(group)
                    for kv in group:
                        tensor.data[start + kv * head_dim + row] = mean
    rebuilt = rebuilt_model(model, plan)
    assert [layer.num_key_value_heads for layer in plan.shape.layers] == [2, 1, 4, 2]
    assert sum(p.numel() for p in rebuilt.parameters()) == plan.shape.parameters
    ids = _ids(3)
    want = logits(by_hand, ids)
    assert (want - logits(model, ids)).abs().max() > 0.1 * want.abs().max()
    for made in (rebuilt, zeroed_model(model, plan)):
        assert (logits(made, ids) - want).abs().max() <= 1e-5 * want.abs().max()
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        tokens = by_hand.generate(ids, **options)
        assert torch.equal(rebuilt.generate(ids, **options), tokens)
        assert torch.equal(rebuilt.generate(ids, use_cache=False, **options), tokens)


@families
def test_merging_and_cutting_at_once(model_type: str) -> None:
    """KV head 3 has no query head left and still is part of the mean; FFN channels and a layer go too."""
    model = tiny_model(model_type)
    shape = FAMILIES[model_type].shape(model.config)
    other = random_plan(shape, drop=(2,)).layers
    plan = Plan(shape, (LayerKeep(0, (0, 1, 2, 3), (0, 1, 2, 4), (3, 5, 60), ((0, 3), (1, 2))), *other[1:]))
    assert plan.shape.layers[0] == LayerShape(4, 2, 3)
    ids = _ids(2)
    want = logits(zeroed_model(model, plan), ids)
    assert (logits(rebuilt_model(model, plan), ids) - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_norm_over_all_heads_is_refused() -> None:
    model = tiny_model("olmo2")
    with pytest.raises(PrunekitError, match="OLMo-2 normalises the keys of all heads together"):
        rebuilt_model(model, _merged_plan(model, CROSSED))


LAYER = LayerShape(8, 4, 96)
ALL = (tuple(range(4)), tuple(range(8)), (0,))


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (LayerKeep(0, *ALL, ((0, 1),)), "share out"),
        (LayerKeep(0, *ALL, ((0, 1), (1, 2, 3))), "share out"),
        (LayerKeep(0, *ALL, ((1, 0), (2, 3))), "share out"),
        (LayerKeep(0, *ALL, ((2, 3), (0, 1))), "share out"),
        (LayerKeep(0, *ALL, ((0, 1), (2, 3), ())), "share out"),
        (LayerKeep(0, *ALL, ((0, 1, 2), (3,))), "unequal"),
    ],
)
def test_groups_that_do_not_fit(keep: LayerKeep, said: str) -> None:
    with pytest.raises(PrunekitError, match=said):
        keep.check(LAYER)


@st.composite
def _merges(draw: st.DrawFn) -> tuple[LayerShape, LayerKeep]:
    size, count, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    order = draw(st.permutations(range(size * count)))
    merged = tuple(sorted(tuple(sorted(order[at : at + size])) for at in range(0, size * count, size)))
    dense = LayerShape(size * count * group, size * count, 4)
    kept = draw(st.integers(1, size * group))
    query: list[int] = []
    for members in merged:
        own = [kv * group + head for kv in members for head in range(group)]
        query += draw(st.permutations(own))[:kept]
    return dense, LayerKeep(0, tuple(range(size * count)), tuple(sorted(query)), (0, 2), merged)


@settings(max_examples=60, deadline=None)
@given(_merges())
def test_any_merge_is_written_and_cut_as_it_says(case: tuple[LayerShape, LayerKeep]) -> None:
    dense, keep = case
    shape = ModelShape(8, 2, 10, False, (dense,))
    plan = Plan(shape, (keep,))
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert keep.shape.num_key_value_heads == len(keep.merged)
    slicer = LayerSlicer(FAMILIES["llama"], shape, keep)
    key = torch.randn(dense.num_key_value_heads * 2, 8, dtype=torch.float64)
    cut = slicer("self_attn.k_proj.weight", key)
    heads = key.view(-1, 2, 8)
    for place, group in enumerate(keep.merged):
        torch.testing.assert_close(cut.view(-1, 2, 8)[place], heads[list(group)].mean(0))
    query = torch.arange(dense.num_attention_heads).repeat_interleave(2).float()[:, None].expand(-1, 8)
    order = slicer("self_attn.q_proj.weight", query)[::2, 0].int().tolist()
    assert sorted(order) == list(keep.query_heads)
    # Every query head is served by the mean that its own KV head is part of.
    for place, head in enumerate(order):
        assert head // dense.group_size in keep.merged[place // keep.shape.group_size]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([(4, 2), (6, 2), (6, 3), (8, 4)]), st.integers(0, 10_000))
def test_partition_is_one_that_no_exchange_makes_better(case: tuple[int, int], seed: int) -> None:
    count, size = case
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    far = torch.cdist(points, points).square()
    made = partition(far, size)
    assert sorted(head for group in made for head in group) == list(range(count))
    assert {len(group) for group in made} == {size}

    def total(groups: Any) -> float:
        return sum(far[a, b].item() for group in groups for a, b in itertools.combinations(group, 2))

    neighbours = [tuple(range(start, start + size)) for start in range(0, count, size)]
    assert total(made) <= total(neighbours) + 1e-9
    if count == 4:
        every = [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))]
        assert total(made) == pytest.approx(min(map(total, every)))


def test_choices_never_collide_with_cuts() -> None:
    assert merged_heads(LayerShape(32, 8, 1)) == ((4, 8), (2, 16), (1, 32))
    assert merged_heads(LayerShape(9, 3, 1), query=True) == tuple((1, size) for size in range(9, 3, -1))
    assert merged_heads(LayerShape(9, 1, 1)) == ()
    rounding = Rounding(kv_multiple=2)
    dense = LayerShape(32, 8, 1)
    made = rounding.attention_choices(dense, ("ffn", "kv", "query", "kv-merge"))
    assert len(set(made)) == len(made) and {kv for kv, group in made if group > 4} == {4, 2}
    assert {group for kv, group in rounding.attention_choices(dense, ("kv-merge",))} == {4, 8, 16}


@families
def test_heads_that_compute_the_same_are_found(model_type: str) -> None:
    model = _twins(model_type, bias=True)
    family = FAMILIES[model_type]
    parts = Sublayers(model, family, 24)
    with torch.no_grad():
        stream = [parts.embed(batch) for batch in _ids(4).split(2)]
        distances = head_distances(parts, family.shape(model.config), 0, stream)
    assert distances[0, 2].item() == pytest.approx(0, abs=1e-5) and distances[0, 1] > 0.1
    assert partitions(distances) == (CROSSED, ((0, 1, 2, 3),))


def _curves(model: Any, ids: torch.Tensor) -> list[Any]:
    family = FAMILIES[model.config.model_type]
    fisher = output_fisher(model, family, ids, advance=nothing)
    made = layer_curves(
        model, family, family.shape(model.config), ids, fisher, merge=True, widths=lambda dense: (), advance=nothing
    )
    return [(*each, fisher) for each in made]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "phi3"])
def test_the_price_is_the_error_of_the_best_projection(model_type: str) -> None:
    model = tiny_model(model_type)
    before = copy.deepcopy(model.state_dict())
    ids = _ids(24)
    family = FAMILIES[model_type]
    curves, solved, fisher = _curves(model, ids)[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {heads for heads, choice in curves.heads.items() if choice.merged} == {
        (2, 4),
        (2, 3),
        *((1, n) for n in range(3, 9)),
    }
    assert curves.heads[2, 4].loss < curves.heads[2, 3].loss
    choice = curves.heads[2, 4]
    parts = Sublayers(model, family, 24)
    layer = parts.layers[0]
    place = InPlace(layer, family, family.shape(model.config), 0)
    with torch.no_grad():
        hidden = parts.embed(ids)
        normed = parts.normed(layer, "attention", hidden)
        z, output = parts.run(layer, 0, "attention", normed)
        place.set(choice.merged)
        merged, _ = parts.run(layer, 0, "attention", normed)
        place.set(())
        weight = (hidden + parts.added(layer, "attention", output)).float().square().mean(-1).reciprocal().flatten()
        old = parts.projection(layer, "attention").weight
        error = z.flatten(0, 1) @ old.T - merged.flatten(0, 1) @ solved[2, 4].T
        metric = fisher[0, "attention"]
        expected = ((error @ metric) * error).sum(1).mul(weight).mean().item() / 2
    # The rest is the ridge's penalty.
    assert expected < choice.loss < 1.1 * expected


def test_twins_are_merged_for_nothing_and_cuts_are_not_taken() -> None:
    model = _twins("llama")
    problem = Problem(
        int(0.97 * FAMILIES["llama"].shape(model.config).parameters),
        Rounding(ffn_multiple=96),
        units=("kv", "kv-merge"),
    )
    session = tiny_session(model, _ids(), merge=True)
    levels = session.levels(nothing)
    for curve in levels.curves:
        assert curve.heads[2, 4].loss < 1e-6 < curve.heads[3, 2].loss and curve.heads[2, 4].merged == CROSSED
    fitness = session.fitness(levels)
    whole = tuple(((4, 2), 96) for _ in range(4))
    assert fitness.measure((((2, 4), 96), *whole[1:])) < 1e-3
    assert fitness.measure((((1, 8), 96), *whole[1:])) > 1e-2
    fitness.close()
    for name in ("optimal", "search"):
        made = allocation(name)(session, problem, nothing)
        assert {keep.merged for keep in made.keeps} <= {(), CROSSED} and any(keep.merged for keep in made.keeps)
        assert all(len(keep.kv_heads) == 4 for keep in made.keeps)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma2"])
def test_a_stitched_merge_is_measured_as_it_would_be_by_itself(model_type: str) -> None:
    model = tiny_model(model_type)
    dense = copy.deepcopy(model)
    session = tiny_session(model, _ids(), merge=True)
    levels = session.levels(nothing)
    fitness = session.fitness(levels)
    whole = tuple(((4, 2), 96) for _ in range(4))
    candidate = (whole[0], ((2, 4), 96), ((1, 7), 48), whole[3])
    alone = fitness.measure(candidate)
    assert fitness.measure(whole) == pytest.approx(0, abs=1e-5)
    assert fitness.measure(candidate) == pytest.approx(alone, rel=1e-4)
    fitness.close()
    stitched = zeroed_model(dense, _merged_plan(dense, (), levels.curves[1].heads[2, 4].merged, ((0, 1, 2, 3),)))
    for index, module, kind, what in (
        (1, "self_attn.o_proj", "attention", (2, 4)),
        (2, "self_attn.o_proj", "attention", (1, 7)),
        (2, "mlp.down_proj", "ffn", 48),
    ):
        stitched.model.layers[index].get_submodule(module).weight.data = levels.projection(index, kind, what)
    first, second = (logits(each, _ids()).log_softmax(-1) for each in (dense, stitched))
    assert alone == pytest.approx((first.exp() * (first - second)).sum(-1).mean().item(), rel=1e-3)
    assert torch.equal(logits(model, _ids()), logits(dense, _ids()))


def test_each_way_to_merge_is_brought_to_the_scale_that_is_measured() -> None:
    model = tiny_model("llama")
    session = tiny_session(model, _ids(), merge=True)
    levels = session.levels(nothing)
    fitness = session.fitness(levels)
    steps: list[int] = []
    made = measured(session.source, levels, fitness, lambda *args, **kwargs: steps.append(1)).curves
    # Two sub-layers, and two ways to merge four heads.
    assert len(steps) == 4 * (2 + 2)
    whole = [((4, 2), 96)] * 4
    for index in range(4):
        before, after = levels.curves[index].heads, made[index].heads
        for heads in ((2, 4), (1, 8)):
            alone = fitness.measure(tuple((heads, 96) if place == index else each for place, each in enumerate(whole)))
            factor = alone / before[heads].loss
            if 0.05 < factor < 20:
                assert after[heads].loss == pytest.approx(alone, rel=1e-3)
                same = [each for each in before if before[each].merged == before[heads].merged]
                assert len(same) > 1 and all(
                    after[each].loss == pytest.approx(factor * before[each].loss, rel=1e-3) for each in same
                )
    fitness.close()


def test_a_merge_that_a_cut_beats_is_no_option() -> None:
    shape = FAMILIES["llama"].shape(tiny_model("llama").config)
    (curve, _, _), *_ = _curves(tiny_model("llama"), _ids())
    problem = Problem(10**9, Rounding(), units=TWINS)
    cheap, dear = dict(curve.heads), dict(curve.heads)
    cheap[2, 4] = HeadChoice((0, 1, 2, 3), tuple(range(8)), 0.0, CROSSED)
    dear[2, 4] = HeadChoice((0, 1, 2, 3), tuple(range(8)), 1e9, CROSSED)
    assert (2, 4) in attention_options(shape, problem, 0, LayerCurves(curve.ffn, cheap))
    assert (2, 4) not in attention_options(shape, problem, 0, LayerCurves(curve.ffn, dear))
    # Cutting query heads takes fewer parameters and less loss, but leaves more KV heads: an option, no search's step.
    some = dict(curve.heads)
    some[2, 4] = HeadChoice((0, 1, 2, 3), tuple(range(8)), curve.heads[4, 1].loss + 1e-6, CROSSED)
    for kv in (1, 2):
        for group in (1, 2):
            some[kv, group] = replace(some[kv, group], loss=some[2, 4].loss + 1)
    made = LayerCurves(curve.ffn, some)
    assert shape.attention_parameters(LayerShape(4, 4, 1)) <= shape.attention_parameters(LayerShape(8, 2, 1))
    assert (2, 4) in attention_options(shape, problem, 0, made)
    levels = Levels(Path("nowhere"), (made,) * 4, ((48,),) * 4)
    ladder = _Grid(shape, problem, levels)._heads[0]
    assert (2, 4) not in ladder and (4, 1) in ladder and ladder[-1] == (4, 2)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3"])
def test_refit_solves_o_proj_on_what_merged_heads_give(model_type: str) -> None:
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    plan = _merged_plan(model, CROSSED, (), ((0, 1, 2, 3),))
    ids, other = _ids(48), _ids(8, seed=1)
    pruned = rebuilt_model(model, plan)
    made = refit(copy.deepcopy(model), family, plan.source, plan.layers, ids)
    bare = logits(pruned, other)
    state = pruned.state_dict()
    for name, weight in made.weights.items():
        state[name].copy_(weight)
    dense = logits(model, other).log_softmax(-1)
    losses = [(dense.exp() * (dense - each.log_softmax(-1))).sum(-1).mean() for each in (logits(pruned, other), bare)]
    assert losses[0] < 0.9 * losses[1]
    untouched = made.weights["model.layers.0.self_attn.o_proj.weight"]
    assert not torch.equal(untouched, model.model.layers[0].self_attn.o_proj.weight)


SHORT = ("--sequences", "24", "--length", "16", "--batch-size", "8", "--ffn-multiple", "1", "--device", "cpu")


def test_from_the_command_line(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "twins"
    model = _twins("llama")
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    text = write_text(tmp_path / "text.txt", 12_000)
    # Twins merge without loss, which bfloat16 products would hide.
    exact = ("--calib", text, "--dtype", "float32", *SHORT)
    arguments = (folder, "--params", "0.93", "--method", "prunekit", "--prune", "kv,kv-merge", *exact)
    ended = command("prune", *arguments, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended
    plan = Plan.load(tmp_path / "out" / "plan.json")
    stated = json.loads((tmp_path / "out" / "plan.json").read_text())["layers"]
    merged = [keep.index for keep in plan.layers if keep.merged]
    assert merged and stated[merged[0]]["keep"]["merged"] == ["0,2", "1,3"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert FAMILIES["llama"].shape(loaded.config) == plan.shape
    assert plan.shape.kv_bytes_per_token() < plan.source.kv_bytes_per_token()
    ids = _ids(4)
    want = logits(model, ids)
    assert (logits(loaded, ids) - want).abs().max() <= 1e-2 * want.abs().max()

    refused = command("plan", *arguments, "--allocate", "adapt", "-o", tmp_path / "plan.json")
    assert refused.code == 2 and "--allocate optimal or search" in " ".join(refused.err.split())
    refused = command("plan", folder, "--params", "0.9", "--prune", "heads", "-o", tmp_path / "plan.json")
    assert refused.code == 2 and "kv-merge" in refused.err
