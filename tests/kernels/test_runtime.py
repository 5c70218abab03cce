from __future__ import annotations

import weakref
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.kernels import Runtime, generate, optimize, report, restore, stream
from prunekit.kernels.runtime import pack_layer as packing
from prunekit.kernels.runtime.pack_layer import read_block
from prunekit.kernels.runtime.sampling import Sampling
from prunekit.models.families import FAMILIES
from tests.support.tiny import MODEL_TYPES, VOCAB, one_thread, random_plan, rebuilt_model, tiny_config, tiny_model

PROMPTS = [[5, 9, 2, 7, 7, 31, 4, 88, 12, 3, 64, 9, 101], [17, 3], [44, 6, 90, 12, 1, 77, 8]]
NEW = 20


@pytest.fixture(autouse=True)
def single_thread() -> Any:
    with one_thread():
        yield


def model_of(model_type: str, pruned: bool, **fields: Any) -> Any:
    model = tiny_model(model_type, **fields)
    # Softcapping is left out by sdpa in the oldest supported transformers.
    if pruned:
        model = rebuilt_model(model, random_plan(FAMILIES[model_type].shape(model.config), seed=3))
    implementation = FAMILIES[model_type].attn_implementation
    if implementation:
        model.set_attn_implementation(implementation)
    return model


def expected(model: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What transformers' own generate gives, one prompt at a time."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)
        out.append(made[0, len(prompt) :].tolist())
    return out


@pytest.mark.parametrize("pruned", (False, True), ids=("dense", "pruned"))
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_same_tokens_as_transformers(model_type: str, pruned: bool) -> None:
    """Prompts shorter and longer than the sliding window, in one batch of a size that is no bucket."""
    model = model_of(model_type, pruned)
    wanted = expected(model, PROMPTS)
    made = generate(optimize(model), PROMPTS, max_new_tokens=NEW)
    assert made.sequences == wanted


@pytest.mark.parametrize("model_type", ("llama", "qwen2", "qwen3", "smollm3"))
def test_biases(model_type: str) -> None:
    model = model_of(model_type, True, bias=True)
    wanted = expected(model, PROMPTS)
    assert generate(optimize(model), PROMPTS, max_new_tokens=NEW).sequences == wanted


@pytest.mark.parametrize("model_type", ("llama", "gemma2", "phi3"))
def test_prefill_in_pieces(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts and many prompts go through in several passes; the last token of each may lie in any of them."""
    model = model_of(model_type, True)
    wanted = expected(model, PROMPTS)
    monkeypatch.setattr("prunekit.kernels.runtime.decoder.PREFILL_LENGTH", 5)
    monkeypatch.setattr("prunekit.kernels.runtime.decoder.PREFILL_TOKENS", 10)
    assert generate(optimize(model), PROMPTS, max_new_tokens=NEW).sequences == wanted


def test_more_sequences_than_decode_rows() -> None:
    """Beyond 16 rows a decode step takes plain GEMMs."""
    model = model_of("llama", True)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(1, VOCAB, (int(length),), generator=generator).tolist() for length in torch.arange(33) % 7 + 1
    ]
    wanted = expected(model, prompts)
    assert generate(optimize(model), prompts, max_new_tokens=NEW).sequences == wanted


@pytest.mark.parametrize("side", ("left", "right"))
def test_padded_tensors(side: str) -> None:
    model = optimize(model_of("llama", True))
    length = max(map(len, PROMPTS))
    pads = [[0] * (length - len(prompt)) for prompt in PROMPTS]
    ones = [[1] * len(prompt) for prompt in PROMPTS]
    both = [
        torch.tensor([a + b if side == "left" else b + a for a, b in zip(pads, rows, strict=True)])
        for rows in (PROMPTS, ones)
    ]
    wanted = generate(model, PROMPTS, max_new_tokens=NEW).sequences
    assert generate(model, both[0], attention_mask=both[1], max_new_tokens=NEW).sequences == wanted


def test_ends_at_eos() -> None:
    """The end token is the last of its sequence; the others go on, and the loop stops with the last of them."""
    model = model_of("llama", True)
    free = expected(model, PROMPTS)
    end = free[0][4]
    model.generation_config.eos_token_id = end
    wanted = expected(model, PROMPTS)
    optimize(model)
    seen: list[list[int | None]] = []
    made = generate(model, PROMPTS, max_new_tokens=NEW, on_tokens=seen.append)
    assert made.sequences == wanted
    assert len(made.sequences[0]) <= 5
    assert len(seen) == max(map(len, wanted))
    assert seen[-1].count(None) < len(PROMPTS)
    assert generate(model, PROMPTS[:1], eos_token_id=[VOCAB - 1, end], max_new_tokens=NEW).sequences == wanted[:1]


def test_runtimes_are_kept_by_bucket_and_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    build = Runtime.__init__

    def counted(self: Runtime, model: Any, batch: int, max_length: int, **options: Any) -> None:
        build(self, model, batch, max_length, **options)
        made.append((self.slots, self.capacity))

    monkeypatch.setattr(Runtime, "__init__", counted)
    model = optimize(model_of("llama", True))
    wanted = generate(model, PROMPTS, max_new_tokens=NEW).sequences
    for _ in range(2):
        assert generate(model, PROMPTS[::-1], max_new_tokens=NEW).sequences == wanted[::-1]
        assert generate(model, PROMPTS[:1], max_new_tokens=NEW).sequences == wanted[:1]
        assert generate(model, [*PROMPTS, PROMPTS[1]], max_new_tokens=3).sequences[3] == wanted[1][:3]
    assert made == [(4, 256), (1, 256)], "a shorter request and another batch of the bucket take what is there"
    arenas = {runtime.cache.arena.data_ptr() for runtime in model.prunekit_runtimes._runtimes.values()}
    assert len(arenas) == 1
    assert generate(model, PROMPTS * 3, max_new_tokens=NEW).sequences == wanted * 3
    assert generate(model, PROMPTS, max_new_tokens=NEW).sequences == wanted, "made anew in the larger arena"
    assert made[2:] == [(16, 256), (4, 256)]


def test_another_generation_ends_the_one_before() -> None:
    model = optimize(model_of("llama", True))
    steps = stream(model, PROMPTS, max_new_tokens=NEW)
    first = next(steps)
    generate(model, PROMPTS[:1], max_new_tokens=2)
    with pytest.raises(PrunekitError, match="Another generation"):
        next(steps)
    later = stream(model, PROMPTS, max_new_tokens=NEW)
    generate(model, PROMPTS[:1], max_new_tokens=2)
    assert next(later) == first, "its prompts had not run yet"


def test_times_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill takes a second and a step ten: one is the time to the first token, the other that of each later one."""
    now = [0.0]
    model = optimize(model_of("llama", True))

    def ticking(call: Any, seconds: float) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            now[0] += seconds
            return call(*args, **options)

        return run

    monkeypatch.setattr(Runtime, "prefill", ticking(Runtime.prefill, 1.0))
    monkeypatch.setattr(Runtime, "step", ticking(Runtime.step, 10.0))
    monkeypatch.setattr("prunekit.kernels.runtime.generate.time.perf_counter", lambda: now[0])
    made = generate(model, PROMPTS, max_new_tokens=5)
    assert (made.ttft_seconds, made.tpot_seconds) == (1.0, 10.0)
    assert made.tokens_per_second == 3 * 4 / 40
    assert generate(model, PROMPTS, max_new_tokens=1).tpot_seconds is None


def test_a_full_cache_is_refused() -> None:
    runtime = Runtime(optimize(model_of("llama", True)), 1, 250)
    with pytest.raises(PrunekitError, match="full"):
        runtime.step()
    runtime.prefill(torch.ones(1, 254, dtype=torch.long))
    runtime.step()
    runtime.step()
    with pytest.raises(PrunekitError, match="256 tokens"):
        runtime.step()
    with pytest.raises(PrunekitError, match="lengths"):
        runtime.prefill(torch.ones(1, 5, dtype=torch.long), torch.tensor([6]))
    with pytest.raises(PrunekitError, match="don't fit"):
        runtime.prefill(torch.ones(1, 256, dtype=torch.long))


def test_warns_beyond_the_models_positions() -> None:
    model = optimize(model_of("llama", False))
    with pytest.warns(UserWarning, match="made for 256"):
        generate(model, [[3] * 250], max_new_tokens=8)


def test_sampling_is_seeded_and_follows_the_distribution() -> None:
    model = optimize(model_of("llama", True))
    options = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}
    first = generate(model, PROMPTS, seed=5, **options).sequences
    assert generate(model, PROMPTS, seed=5, **options).sequences == first
    assert generate(model, PROMPTS, seed=6, **options).sequences != first
    assert generate(model, PROMPTS, max_new_tokens=NEW, do_sample=True, top_k=1).sequences == (
        generate(model, PROMPTS, max_new_tokens=NEW).sequences
    )


def test_sampling_probabilities_as_transformers_trims_them() -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(4, 1, dtype=torch.long)
    for k, p, temperature in ((None, 0.7, 1.0), (5, None, 0.5), (10, 0.6, 1.7), (50, 0.999, 1.0)):
        wanted = TemperatureLogitsWarper(temperature)(ids, logits)
        wanted = wanted if k is None else TopKLogitsWarper(k)(ids, wanted)
        wanted = wanted if p is None else TopPLogitsWarper(p)(ids, wanted)
        torch.testing.assert_close(Sampling(temperature, k, p).probabilities(logits), wanted.softmax(-1))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_models_own_forward_still_works_and_is_restored(model_type: str) -> None:
    model = model_of(model_type, True)
    ids = torch.tensor([PROMPTS[0]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(ids).logits
        optimize(model)
        torch.testing.assert_close(model(ids).logits, wanted, atol=2e-5, rtol=1e-4)
        assert set(model.state_dict()) == set(before)
        with pytest.raises(PrunekitError, match="restore"):
            model.save_pretrained("nowhere")
        restore(model)
        assert torch.equal(model(ids).logits, wanted)
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) and after[name].is_contiguous(), name


def test_memory_grows_by_the_padding_alone() -> None:
    model = tiny_model("llama", config=tiny_config("llama", intermediate_size=1013, hidden_size=128))
    before = sum(weight.nbytes for weight in model.parameters())
    made = report(optimize(model))
    assert made.weight_bytes == before
    pads, norms = 4 * 3 * (1024 - 1013) * 128 * 4, 9 * 128 * 4
    assert made.extra_bytes == pads + norms
    assert made.extra_share < 0.02
    assert made.to_dict()["extra_share"] == made.extra_share


def test_says_which_fallbacks_it_took() -> None:
    made = report(optimize(model_of("llama", True)))
    assert {op.op for op in made.fallbacks} >= {"mlp_decode", "attention_decode", "qkv_rope", "linear_decode"}
    assert all("cpu" in (op.reason or "") and op.provider == "torch" for op in made.fallbacks)
    assert {op.op for op in made.fallbacks if op.rows == "prompt"} == {"rms_norm", "gated_act", "rope_cache"}
    assert any(op.rows == "17-64" and op.op == "mlp_decode" and not op.fallback for op in made.ops)


def test_says_what_an_old_gpu_takes_from_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tensor cores kernels of one row run, and those of several don't."""
    model = optimize(model_of("llama", True))
    monkeypatch.setattr(
        "prunekit.kernels.runtime.optimize.why_not_triton", lambda *_, dot=False: "no tensor cores" if dot else None
    )
    who = {(op.op, op.rows): op.provider for op in report(model).ops}
    assert who["mlp_decode", "1"] == "triton" and who["mlp_decode", "2-16"] == "torch"
    assert who["attention_decode", "1-64"] == "torch" and who["rms_norm", "prompt"] == "triton"


@pytest.mark.parametrize("model_type", ("llama", "gemma3_text", "phi3"))
def test_composes_with_compile(model_type: str) -> None:
    """No graph breaks: fullgraph would raise."""
    model = optimize(model_of(model_type, True))
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, wanted)


def test_composes_with_export() -> None:
    model = optimize(model_of("llama", True))

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids, use_cache=False).logits

    dynamic = {"ids": {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=200)}}
    with torch.no_grad():
        program = torch.export.export(Logits(), (torch.tensor(PROMPTS[:1] * 2),), dynamic_shapes=dynamic)
        assert any("prunekit.mlp" in str(node.target) for node in program.graph.nodes)
        for ids in (torch.tensor([PROMPTS[2]] * 3), torch.tensor([PROMPTS[0]] * 4)):
            torch.testing.assert_close(program.module()(ids), Logits()(ids))


@pytest.mark.parametrize("model_type", ("llama", "phi3", "gemma3_text"))
def test_int8(model_type: str) -> None:
    """Close to the model that was rounded, and decode gives what the rounded model's own forward gives."""
    model = model_of(model_type, True)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        wanted = model(ids).logits
        optimize(model, weights="int8")
        rounded = model(ids).logits
    error = (rounded - wanted).norm() / wanted.norm()
    assert 1e-5 < error < 0.05
    assert generate(model, PROMPTS, max_new_tokens=NEW).sequences == expected(model, PROMPTS)
    assert report(model).weights == "int8"
    with pytest.raises(PrunekitError, match="load the model again"):
        restore(model)


def test_rounding_holds_one_unrounded_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", False)
    originals = [weakref.ref(layer.mlp) for layer in model.model.layers]
    alive = []

    def counted(*arguments: Any) -> Any:
        alive.append(sum(original() is not None for original in originals))
        return read_block(*arguments)

    monkeypatch.setattr("prunekit.kernels.runtime.optimize.read_block", counted)
    optimize(model, weights="int8")
    assert alive == [4, 3, 2, 1]
    with pytest.raises(PrunekitError, match="rounded from"):
        model.save_pretrained("nowhere")


def test_a_model_that_can_not_be_rounded_stays_as_it_was() -> None:
    model = model_of("llama", False)
    model.model.layers[2].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(PrunekitError, match="NaN"):
        optimize(model, weights="int8")
    assert {type(layer.mlp).__name__ for layer in model.model.layers} == {"LlamaMLP"}
    assert {type(part) for layer in model.model.layers for part in layer.self_attn.children()} == {torch.nn.Linear}


@pytest.mark.parametrize("model_type", ("llama", "phi3"))
@pytest.mark.parametrize("place", ("_pack_mlp", "_pack_output"))
def test_packing_that_fails_is_undone(place: str, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(model_type, True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    pack, calls = getattr(packing, place), iter((True, True, False))

    def full(*arguments: Any) -> Any:
        if not next(calls):
            raise torch.OutOfMemoryError("no more")
        return pack(*arguments)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(packing, place, full)
        optimize(model)
    assert [name for name, _ in model.named_modules()] == modules
    after = model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) and after[name].is_contiguous(), name
    wanted = expected(model, PROMPTS)
    assert generate(optimize(model), PROMPTS, max_new_tokens=NEW).sequences == wanted


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ([], {}, "no prompt"),
        ([[3], []], {}, "Prompt 1 is empty"),
        ([[3, VOCAB]], {}, "outside the vocabulary"),
        (torch.ones(3), {}, "shape"),
        (torch.ones(1, 3, dtype=torch.long), {"attention_mask": torch.ones(1, 2)}, "attention_mask"),
        ([[3]] * 65, {}, "1 to 64"),
        ([[3]], {"max_new_tokens": 0}, "max_new_tokens"),
        ([[3]], {"do_sample": True, "temperature": 0.0}, "temperature"),
        ([[3]], {"do_sample": True, "temperature": 1e-40}, "temperature"),
        ([[3]], {"do_sample": True, "seed": 1 << 63}, "seed"),
        ([[3]], {"do_sample": True, "top_k": 2.5}, "top_k"),
        ([[3]], {"do_sample": True, "top_p": 1.5}, "top_p"),
        ([[3]], {"do_sample": True, "top_k": 0}, "top_k"),
        ([[3]], {"top_k": 5}, "do_sample"),
        ("hello", {}, "list of token ids"),
        ([1, 2, 3], {}, "list of token ids"),
        ([[1.5]], {}, "whole numbers"),
    ],
)
def test_refuses_bad_requests(prompts: Any, options: dict[str, Any], message: str) -> None:
    model = optimize(model_of("llama", False))
    with pytest.raises(PrunekitError, match=message):
        generate(model, prompts, **options)


def test_refuses_an_embedding_that_does_more_than_to_read_rows() -> None:
    """Decoding reads them itself."""
    hooked, replaced = tiny_model("llama"), tiny_model("llama")
    hooked.model.embed_tokens.register_forward_hook(lambda *_: None)
    replaced.model.embed_tokens = type("LoraEmbedding", (torch.nn.Embedding,), {})(VOCAB, 8)
    for model in (hooked, replaced):
        with pytest.raises(PrunekitError, match=r"embed_tokens.*merge adapters and remove hooks"):
            optimize(model)
        assert type(model.model.layers[0].mlp).__name__ == "LlamaMLP", "refused before anything was changed"


def test_refuses_models_it_cannot_pack() -> None:
    model = tiny_model("llama")
    with pytest.raises(PrunekitError, match="optimize"):
        generate(model, PROMPTS)
    with pytest.raises(PrunekitError, match="weights must be"):
        optimize(model, weights="int3")
    with pytest.raises(PrunekitError, match="already optimised"):
        optimize(optimize(model))
    with pytest.raises(PrunekitError, match="float32, float16"):
        optimize(tiny_model("llama").double())
    with pytest.raises(PrunekitError, match="one device"):
        optimize(tiny_model("llama").to("meta"))
    with pytest.raises(PrunekitError, match="can't be pruned"):
        optimize(torch.nn.Linear(2, 2))
    with pytest.raises(PrunekitError, match="after optimize"):
        generate(optimize(tiny_model("llama")).half(), PROMPTS)
    adapted = tiny_model("llama")
    adapted.model.layers[1].self_attn.q_proj = torch.nn.Sequential(adapted.model.layers[1].self_attn.q_proj)
    with pytest.raises(PrunekitError, match="merge adapters"):
        optimize(adapted)
    assert type(adapted.model.layers[0].mlp).__name__ == "LlamaMLP", "refused before anything was changed"
    with pytest.raises(PrunekitError, match="no kernel for the activation"):
        optimize(tiny_model("llama", hidden_act="relu"))


@pytest.mark.parametrize("model_type", ("llama", "phi3", "qwen2"))
def test_int4(model_type: str) -> None:
    """Coarse, but decode gives what the rounded model's own forward gives."""
    pytest.importorskip("torchao")
    model = model_of(model_type, True)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        wanted = model(ids).logits
        optimize(model, weights="int4")
        rounded = model(ids).logits
    error = (rounded - wanted).norm() / wanted.norm()
    assert 1e-3 < error < 0.7, "far from unrelated (1.4)"
    assert generate(model, PROMPTS, max_new_tokens=NEW).sequences == expected(model, PROMPTS)
    made = report(model)
    assert made.weights == "int4"
    assert [op.rows for op in made.ops if op.provider == "library"] == ["1-64"]


class _FakeGraphs:
    """CUDA graphs without CUDA: what is recorded has no effect, and a replay runs it again into the same memory."""

    def __init__(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
        self.runtime, self.replays, self.recorded = runtime, 0, 0
        stream = type("Stream", (), {"wait_stream": lambda *_: None, "synchronize": lambda *_: None})()
        monkeypatch.setattr(torch.cuda, "Stream", lambda *_: stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda *_: nullcontext())
        monkeypatch.setattr(torch.cuda, "device", lambda *_: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", lambda _: self.recording())
        runtime.uses_graph = True

    @contextmanager
    def recording(self) -> Any:
        runtime = self.runtime
        changing = (runtime.tokens, runtime.positions, runtime.lengths, runtime.hidden, runtime.cache.arena)
        before = [tensor.clone() for tensor in changing]
        yield
        for tensor, value in zip(changing, before, strict=True):
            tensor.copy_(value)
        self.recorded += 1

    def replay(self) -> None:
        self.replays += 1
        self.runtime._logits.copy_(self.runtime._body())


def test_the_recorded_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trial runs and the recording leave no trace; every step after is a replay, the first one too."""
    model = optimize(model_of("llama", True))
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])

    def run(runtime: Runtime) -> torch.Tensor:
        runtime.prefill(ids)
        steps = [runtime.step().clone() for _ in range(6)]
        return torch.stack([*steps, runtime.step(torch.tensor([3, 4])).clone()])

    wanted = run(Runtime(model, 2, 64))
    runtime = Runtime(model, 2, 64)
    fake = _FakeGraphs(runtime, monkeypatch)
    assert torch.equal(run(runtime), wanted)
    assert torch.equal(run(runtime), wanted), "a second prompt"
    assert (fake.recorded, fake.replays) == (1, 14)
