"""What happens to a model after optimize(): it counts, or one sentence says that it does not."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from prunekit.errors import PrunekitError
from prunekit.kernels import Runtime, generate, optimize, restore
from prunekit.models.families import FAMILIES
from tests.support.tiny import one_thread, random_plan, rebuilt_model, tiny_model

PROMPT = [5, 9, 2, 7, 7, 31, 4, 88, 12, 3]
IDS = torch.tensor([PROMPT])
NEW = 6


@pytest.fixture(autouse=True)
def single_thread() -> Any:
    with one_thread():
        yield


def make(model_type: str = "llama", **fields: Any) -> Any:
    model = tiny_model(model_type, layers=2, **fields)
    return rebuilt_model(model, random_plan(FAMILIES[model_type].shape(model.config), seed=3))


def greedy(model: Any) -> list[int]:
    made = model.generate(IDS, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return made[0, len(PROMPT) :].tolist()


class Adapter(nn.Module):
    """What adapter libraries put in a module's place."""

    def __init__(self, base: nn.Module, scale: float = 0.5):
        super().__init__()
        self.base_layer = base
        self.scale = scale

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.base_layer(*args, **kwargs)
        return (out[0] * self.scale, *out[1:]) if isinstance(out, tuple) else out * self.scale


def replaced(path: str, by: Callable[[Any], Any] = Adapter) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        holder = model.get_submodule(owner)
        holder._modules[name] = by(holder._modules[name])

    return change


def edited(path: str, change: Callable[[torch.Tensor], Any]) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        change(model.get_parameter(path))

    return edit


def swapped(path: str) -> Callable[[Any], None]:
    def swap(model: Any) -> None:
        parameter = model.get_parameter(path)
        parameter.data = parameter.data * 0.5

    return swap


def assigned(path: str) -> Callable[[Any], None]:
    def assign(model: Any) -> None:
        owner, _, name = path.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, name, nn.Parameter(getattr(module, name).detach() * 0.5))

    return assign


def hooked(path: str) -> Callable[[Any], None]:
    def hook(model: Any) -> None:
        module = model.get_submodule(path)
        module.register_forward_hook(
            lambda module, args, output: (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5
        )

    return hook


def prehooked(path: str) -> Callable[[Any], None]:
    def hook(model: Any) -> None:
        model.get_submodule(path).register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))

    return hook


def parametrised(path: str) -> Callable[[Any], None]:
    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0.5

    def change(model: Any) -> None:
        parametrize.register_parametrization(model.get_submodule(path), "weight", Half())

    return change


def masked(path: str) -> Callable[[Any], None]:
    return lambda model: prune.l1_unstructured(model.get_submodule(path), "weight", 0.5)


def forward_of(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 0.5

    return change


def fewer_layers(model: Any) -> None:
    del model.model.layers[1]
    model.config.num_hidden_layers = 1


def more_layers(model: Any) -> None:
    again = copy.copy(model.model.layers[0])
    model.model.layers.append(again)


def loaded(assign: bool) -> Callable[[Any], None]:
    def load(model: Any) -> None:
        state = {name: tensor * 0.9 for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return load


FFN, ATTENTION = "model.layers.1.mlp", "model.layers.0.self_attn"
ADDED: dict[str, Callable[[Any], Any]] = {
    **{f"adapter on {name}": replaced(f"{ATTENTION}.{name}") for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{f"adapter on {name}": replaced(f"{FFN}.{name}") for name in ("gate_proj", "up_proj", "down_proj")},
    **{
        f"adapter on {name}": replaced(name) for name in ("lm_head", "model.embed_tokens", "model.norm", FFN, ATTENTION)
    },
    "adapter on a norm": replaced("model.layers.0.input_layernorm"),
    "adapter on a layer": replaced("model.layers.0"),
    "adapter on the decoder's rotary embedding": replaced("model.rotary_emb"),
    **{f"hook on {name}": hooked(name) for name in (f"{FFN}.up_proj", f"{ATTENTION}.q_proj", FFN, "lm_head")},
    "hook on the embedding": hooked("model.embed_tokens"),
    "pre-hook on an FFN's projection": prehooked(f"{FFN}.down_proj"),
    "pre-hook on attention's projection": prehooked(f"{ATTENTION}.o_proj"),
    **{f"parametrised {name}": parametrised(name) for name in (f"{FFN}.gate_proj", f"{ATTENTION}.v_proj")},
    **{f"masked {name}": masked(name) for name in (f"{FFN}.up_proj", f"{ATTENTION}.k_proj")},
    **{f"other data in {name}": swapped(f"{name}.weight") for name in (f"{FFN}.up_proj", f"{ATTENTION}.q_proj")},
    "other data in the head": swapped("lm_head.weight"),
    "other data in a norm": swapped("model.norm.weight"),
    **{f"new parameter in {name}": assigned(f"{name}.weight") for name in (f"{FFN}.down_proj", f"{ATTENTION}.o_proj")},
    "new parameter in a norm": assigned("model.layers.0.post_attention_layernorm.weight"),
    "another forward of an FFN's projection": forward_of(f"{FFN}.gate_proj"),
    "another forward of attention's projection": forward_of(f"{ATTENTION}.q_proj"),
    "fewer layers": fewer_layers,
    "loaded by assignment": loaded(True),
    "a larger vocabulary": lambda model: model.resize_token_embeddings(300, mean_resizing=False),
    "frequencies": lambda model: model.model.rotary_emb.original_inv_freq.mul_(0.5),
    "rope parameters": lambda model: model.config.rope_parameters.update(rope_theta=5.0),
    "scaling": lambda model: setattr(model.model.layers[1].self_attn, "scaling", 0.01),
}


@pytest.mark.parametrize("name", ADDED)
def test_what_is_put_in_counts_or_is_refused(name: str) -> None:
    """The model's own forward gives what it would give unpacked, or refuses; decoding refuses."""
    plain, packed = make(tied=False), optimize(make(tied=False))
    with torch.no_grad():
        before = plain(IDS).logits
        assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain)]
        for model in (plain, packed):
            torch.manual_seed(0)
            ADDED[name](model)
        wanted = plain(IDS).logits
        try:
            made = packed(IDS).logits
        except PrunekitError as error:
            assert "after optimize()" in str(error) and "restore" in str(error)
        else:
            torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)
        changed = before.shape != wanted.shape or not torch.allclose(before, wanted, atol=1e-3)
        assert changed or name in ("frequencies", "rope parameters")
        with pytest.raises(PrunekitError, match=r"after optimize\(\).*restore"):
            generate(packed, [PROMPT], max_new_tokens=NEW)


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    **{
        f"{how} in {name}": edited(name, change)
        for name in (
            f"{FFN}.gate_proj.weight",
            f"{FFN}.up_proj.weight",
            f"{FFN}.down_proj.weight",
            f"{FFN}.down_proj.bias",
            f"{FFN}.gate_proj.bias",
            f"{ATTENTION}.q_proj.weight",
            f"{ATTENTION}.k_proj.bias",
            f"{ATTENTION}.o_proj.weight",
            f"{ATTENTION}.o_proj.bias",
            "model.layers.0.input_layernorm.weight",
            "model.norm.weight",
            "model.embed_tokens.weight",
            "lm_head.weight",
        )
        for how, change in (
            ("copy_", lambda weight: weight.copy_(weight * 0.5)),
            ("data.mul_", lambda weight: weight.data.mul_(0.5)),
        )
    },
    "a state dict": loaded(False),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_changes_in_place_count(name: str) -> None:
    plain, packed = make(bias=True), optimize(make(bias=True))
    with torch.no_grad():
        before = plain(IDS).logits
        generate(packed, [PROMPT], max_new_tokens=NEW)
        for model in (plain, packed):
            IN_PLACE[name](model)
        wanted = plain(IDS).logits
        assert not torch.allclose(before, wanted, atol=1e-4)
        torch.testing.assert_close(packed(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        runtime = Runtime(packed, 1, 32)
        torch.testing.assert_close(runtime.prefill(IDS), wanted[:, -1], atol=2e-5, rtol=1e-4)
        assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain)]


def test_an_optimizer_step_counts() -> None:
    plain, packed = make(), optimize(make())
    for model in (plain, packed):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    with torch.no_grad():
        assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain)]


MOVED: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to dtype": lambda model: model.to(torch.float16),
    "float": lambda model: model.float(),
    "cpu": lambda model: model.cpu(),
}


@pytest.mark.parametrize("model_type", ("llama", "phi3", "gemma2"))
@pytest.mark.parametrize("name", MOVED)
def test_moving_counts_in_the_models_own_forward(name: str, model_type: str) -> None:
    """Gates and their packed memory go together; decoding refuses what it would not follow."""
    plain, packed = MOVED[name](make(model_type)), MOVED[name](optimize(make(model_type)))
    bytes_ = sum(each.nbytes for each in plain.parameters())
    with torch.no_grad():
        wanted, made = plain(IDS).logits, packed(IDS).logits
        assert made.dtype == wanted.dtype
        error = (made.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < {torch.bfloat16: 0.05, torch.float16: 0.01}.get(wanted.dtype, 1e-5)
        if name in ("float", "cpu"):
            assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain)]
        else:
            with pytest.raises(PrunekitError, match=r"after optimize\(\).*restore"):
                generate(packed, [PROMPT], max_new_tokens=NEW)
            ffn = packed.model.layers[0].mlp
            for weight in (each for each in ffn.parameters() if each.dim() > 1):
                assert weight.untyped_storage().data_ptr() in (
                    ffn.gate_up.untyped_storage().data_ptr(),
                    ffn.down.untyped_storage().data_ptr(),
                )
        again = optimize(restore(packed)) if name != "double" else restore(packed)
        assert sum(each.nbytes for each in again.parameters()) == bytes_


@pytest.mark.parametrize("weights", ("int8",))
def test_rounded_models_move_and_refuse(weights: Any) -> None:
    packed = optimize(make(bias=True), weights=weights)
    with torch.no_grad():
        wanted = packed(IDS).logits
        made = packed.half()(IDS).logits
        assert (made.float() - wanted).norm() / wanted.norm() < 0.01, "scales stay in float32"
    with pytest.raises(PrunekitError, match=r"after optimize\(\).*[Ll]oad the model again"):
        generate(packed, [PROMPT])
    for refused in (packed.state_dict, lambda: packed.load_state_dict({})):
        with pytest.raises(PrunekitError, match="lives in memory only"):
            refused()


def test_copies_are_refused_and_pickled_models_run() -> None:
    packed = optimize(make())
    copied = copy.deepcopy(packed)
    with torch.no_grad():
        wanted = packed(IDS).logits
        with pytest.raises(PrunekitError, match=r"after optimize\(\)"):
            copied(IDS)
        with pytest.raises(PrunekitError, match="copy of"):
            generate(copied, [PROMPT])
        torch.testing.assert_close(restore(copied)(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        file = io.BytesIO()
        torch.save(packed, file)
        file.seek(0)
        read = torch.load(file, weights_only=False)
        torch.testing.assert_close(read(IDS).logits, wanted)
        with pytest.raises(PrunekitError, match="copy of"):
            generate(read, [PROMPT])


class Wrapper(nn.Module):
    """As PEFT's models: everything else is asked of the model inside."""

    def __init__(self, model: Any):
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)


def test_wrappers_are_refused() -> None:
    packed = optimize(make())
    with pytest.raises(PrunekitError, match="a Wrapper around"):
        generate(Wrapper(packed), [PROMPT])
    compiled = torch.compile(packed, backend="eager")
    wanted = generate(packed, [PROMPT], max_new_tokens=NEW).sequences
    assert generate(compiled, [PROMPT], max_new_tokens=NEW).sequences == wanted, "which adds nothing"


def test_training_is_refused_and_inference_is_not() -> None:
    """In evaluation with gradients on, as where no_grad was forgotten, the forward runs and a backward says no."""
    packed = optimize(make())
    with torch.no_grad():
        wanted = packed(IDS).logits
    made = packed(IDS).logits
    torch.testing.assert_close(made, wanted)
    with pytest.raises(PrunekitError, match=r"can't be trained.*restore"):
        made.sum().backward()
    packed.train()
    with pytest.raises(PrunekitError, match="can't be trained"):
        packed(IDS, labels=IDS)
    with pytest.raises(PrunekitError, match=r"training mode.*model.eval\(\)"):
        generate(packed, [PROMPT])
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS).logits, wanted)
    packed.requires_grad_(False)
    torch.testing.assert_close(packed(IDS).logits, wanted)


def test_gradients_of_an_ffn_alone_are_not_left_out() -> None:
    """Attention and embedding ask for none, so that nothing but the packed FFN would notice."""
    for weights in ("keep", "int8"):
        packed = optimize(make(), weights=weights)  # type: ignore[arg-type]
        packed.requires_grad_(False)
        last = packed.model.layers[-1].mlp if weights == "keep" else packed.model.layers[0].input_layernorm
        last.requires_grad_(True)
        with pytest.raises(PrunekitError, match="can't be trained"):
            packed(IDS).logits.sum().backward()


def test_restoring_keeps_what_was_put_in() -> None:
    plain, packed = make(), optimize(make())
    with torch.no_grad():
        for change in (replaced(f"{FFN}.down_proj"), replaced(f"{ATTENTION}.q_proj"), fewer_layers):
            change(plain)
            change(packed)
        torch.testing.assert_close(restore(packed)(IDS).logits, plain(IDS).logits)
    assert [name for name, _ in packed.named_modules()] == [name for name, _ in plain.named_modules()]


def test_hooks_on_an_ffn_are_refused_beforehand() -> None:
    for path in (FFN, f"{FFN}.gate_proj"):
        model = make()
        hooked(path)(model)
        with pytest.raises(PrunekitError, match=r"mlp.*forward hook.*before optimize\(\)"):
            optimize(model)
        assert type(model.model.layers[0].mlp).__name__ == "LlamaMLP"


def test_collecting_hidden_states_is_no_change() -> None:
    packed = optimize(make())
    wanted = generate(packed, [PROMPT], max_new_tokens=NEW).sequences
    with torch.no_grad():
        assert len(packed(IDS, output_hidden_states=True).hidden_states) == 3
    assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == wanted


def test_the_state_dict_of_a_fused_ffn_has_its_familys_shapes() -> None:
    plain, packed = make("phi3"), optimize(make("phi3"))
    before, after = plain.state_dict(), packed.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    changed = {name: tensor * 0.9 for name, tensor in before.items()}
    plain.load_state_dict(changed)
    packed.load_state_dict(changed)
    with torch.no_grad():
        torch.testing.assert_close(packed(IDS).logits, plain(IDS).logits, atol=2e-5, rtol=1e-4)
        assert generate(packed, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain)]


def test_a_model_is_freed_with_its_runtimes() -> None:
    packed = optimize(make())
    generate(packed, [PROMPT], max_new_tokens=2)
    runtime = Runtime(packed, 1, 32)
    gone = weakref.ref(packed)
    gc.disable()
    try:
        del packed
        assert gone() is None
    finally:
        gc.enable()
    runtime.prefill(IDS)


@pytest.mark.parametrize("targets", (["q_proj", "v_proj"], ["gate_proj", "down_proj"], "all-linear"))
def test_adapters_of_peft(targets: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False, r=4)

    def adapted(model: Any) -> Any:
        torch.manual_seed(1)
        return peft.get_peft_model(model, config).eval()

    plain, inner = adapted(make()), optimize(make())
    packed = adapted(inner)
    with torch.no_grad():
        wanted = plain(input_ids=IDS).logits
        try:
            torch.testing.assert_close(packed(input_ids=IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        except PrunekitError as error:
            assert targets != ["q_proj", "v_proj"] and "merge adapters" in str(error)
        for model in (packed, inner):
            with pytest.raises(PrunekitError, match="merge adapters"):
                generate(model, [PROMPT])
        merged = packed.merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        assert generate(inner, [PROMPT], max_new_tokens=NEW).sequences == [greedy(plain.merge_and_unload())]


def test_adapters_that_transformers_loads() -> None:
    peft = pytest.importorskip("peft")
    packed = optimize(make())
    packed.add_adapter(peft.LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    with torch.no_grad(), pytest.raises(PrunekitError, match="merge adapters"):
        packed(IDS)
    with pytest.raises(PrunekitError, match="merge adapters"):
        generate(packed, [PROMPT])
