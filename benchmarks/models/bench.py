"""The model level: time to first token, time per token and memory of whole models with random weights.

Four arms on the same weights: transformers eager, transformers with torch.compile and a static cache, ours, and ours
with launches that wait for each other.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common.failures import agreement, check_device, describe
from benchmarks.common.timer import bounded, spread
from benchmarks.models.shapes import Model
from prunekit.kernels.ops.utils.dispatch import can_overlap, choosing
from prunekit.models.modeling import pruned_config
from prunekit.models.runner import TorchRunner
from prunekit.plan.shape import ModelShape
from prunekit.utils.machine import synchronize
from prunekit.utils.timing import prompt_ids, turns

PREPARE_S = 240.0
# (ids, tokens) -> seconds of the prefill, seconds of each token after the first
Run = Callable[[torch.Tensor, int], tuple[float, float]]


def build(model: Model, shape: ModelShape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A transformers model of ``shape`` with random weights, made on the device: nothing is read or copied."""
    from transformers import AutoModelForCausalLM

    config = model.dense_config()
    if not shape.is_uniform:
        config = pruned_config(model.family, config, shape.layers, range(shape.num_hidden_layers))
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(0.0, 0.02, generator=generator)
            if "norm" in name:
                weight.add_(1.0)
    return made.eval().requires_grad_(False)


class ModelBench:
    """Holds one model in memory, dense or pruned, and measures it at several batch sizes and prompts."""

    def __init__(
        self,
        model: Model,
        shape: ModelShape,
        device: torch.device,
        dtype: torch.dtype,
        ceilings: dict[str, Any],
        *,
        compile_options: dict[str, Any] | None,
        tokens: int = 32,
        rounds: int = 7,
        most_s: float = 60.0,
    ):
        self.model, self.shape, self.device, self.dtype = model, shape, device, dtype
        self.ceilings, self.compile_options = ceilings, compile_options
        self.tokens, self.rounds, self.most_s = tokens, rounds, most_s
        self.stock = build(model, shape, device, dtype)
        self.weight_bytes = sum(weight.numel() * weight.element_size() for weight in self.stock.parameters())
        # Else the arms run one after the other, ours in the place of the stock model.
        self.fits_twice = device.type != "cuda" or torch.cuda.mem_get_info(device)[0] > 1.5 * self.weight_bytes
        self._packed_model: Any = None

    def measure(self, batch: int, prompt: int) -> dict[str, Any]:
        """One batch size and prompt length as JSON values. An arm that fails holds its error."""
        ids = prompt_ids(batch, prompt, self.shape.vocab_size, seed=0).to(self.device)
        makers: dict[str, Callable[[], Run]] = {
            "eager": lambda: lambda ids, tokens: _eager(self.stock, ids, tokens),
            "compiled": lambda: StaticRun(self.stock, prompt + self.tokens, self.compile_options or {}),
            "ours": lambda: OursRun(self._packed(), batch, prompt + self.tokens),
        }
        if self.device.type != "cuda" or can_overlap(self.device):
            makers["ours_waiting"] = lambda: OursRun(self._packed(), batch, prompt + self.tokens, overlap="off")
        if self.compile_options is None:
            del makers["compiled"]
        together = self.fits_twice and self._has_room(batch, prompt)
        groups = [list(makers)] if together else [[name] for name in makers]
        arms: dict[str, Any] = {}
        agrees: dict[str, Any] = {}
        for group in groups:
            runs: dict[str, Any] = {}
            for name in group:
                try:
                    with bounded(PREPARE_S):
                        runs[name], arms[name] = self._prepare(name, makers[name], ids)
                except Exception as error:
                    check_device(self.device, error)
                    arms[name] = {"error": describe(error)}
            for name, times in self._interleaved(runs, ids).items():
                arms[name] |= self._figures(times, batch, prompt)
            if self.fits_twice and "ours" in runs:
                agrees = self._agreement(ids, runs["ours"])
            if {"ours", "ours_waiting"} <= {*runs}:
                # A read before its time would show as another token, now and then.
                first, second = (runs[name].tokens(ids, self.tokens) for name in ("ours", "ours_waiting"))
                agrees["overlap_same_tokens"] = first == second
            runs.clear()
            self._tidy()
        self._unpack()
        moved = self._moved(batch, prompt)
        return {
            "batch": batch,
            "prompt": prompt,
            "tokens": self.tokens,
            "parameters": self.shape.parameters,
            "weight_bytes": self.weight_bytes,
            "decode_bytes": moved,
            "roofline_tpot_us": moved / self.ceilings["copy_gbps"] / 1e3,
            "in_turns": together,
            "arms": arms,
            **agrees,
        }

    def close(self) -> None:
        """Give the memory back."""
        self.stock = self._packed_model = None
        self._tidy()

    def _tidy(self) -> None:
        """Free what compiled functions and their graphs hold."""
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _has_room(self, batch: int, prompt: int) -> bool:
        """True where the caches of all arms fit at once; transformers' eager one is copied at every step."""
        if self.device.type != "cuda":
            return True
        cache = batch * (prompt + self.tokens) * self.shape.kv_bytes_per_token(self.dtype.itemsize)
        copied = 0 if self._packed_model is not None else self.weight_bytes
        return 5 * cache + copied < 0.9 * torch.cuda.mem_get_info(self.device)[0]

    def _packed(self) -> Any:
        """The optimised model, a second copy where there is room for one."""
        from prunekit.kernels import optimize

        if self._packed_model is None:
            self._packed_model = optimize(copy.deepcopy(self.stock) if self.fits_twice else self.stock)
        return self._packed_model

    def _unpack(self) -> None:
        if self._packed_model is not None and not self.fits_twice:
            from prunekit.kernels import restore

            restore(self.stock)
            self._packed_model = None

    def _moved(self, batch: int, prompt: int) -> int:
        """Bytes that a decode step must read: the weights, and every sequence's KV cache at its mean length."""
        return self.shape.decode_bytes(self.dtype.itemsize, batch * (prompt + self.tokens // 2))

    def _prepare(self, name: str, make: Callable[[], Run], ids: torch.Tensor) -> tuple[Run, dict[str, Any]]:
        """A warm arm, and the memory that it takes: weights, caches, activations, graphs."""
        weights = self.weight_bytes
        if name.startswith("ours"):
            from prunekit.kernels import report

            packed = report(self._packed())
            weights = packed.weight_bytes + packed.extra_bytes
        if self.device.type != "cuda":
            return make(), {"peak_bytes": None}
        before = torch.cuda.memory_allocated(self.device)
        run = make()
        for _ in range(2):  # what compiling takes doesn't count
            torch.cuda.reset_peak_memory_stats(self.device)
            run(ids, 3)
        return run, {"peak_bytes": torch.cuda.max_memory_allocated(self.device) - before + weights}

    def _interleaved(self, runs: dict[str, Run], ids: torch.Tensor) -> dict[str, list[tuple[float, float]]]:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        begin = time.perf_counter()
        for position, name in enumerate(turns(list(runs), self.rounds)):
            if position and position % len(runs) == 0 and time.perf_counter() - begin > self.most_s:
                break
            times[name].append(runs[name](ids, self.tokens))
        return times

    def _figures(self, times: list[tuple[float, float]], batch: int, prompt: int) -> dict[str, Any]:
        ttft, tpot = (spread(values) for values in zip(*times, strict=True))
        step_s = tpot["median_us"] / 1e6
        rate = self._moved(batch, prompt) / step_s / 1e9
        return {
            "ttft": ttft,
            "tpot": tpot,
            "tokens_per_s": batch / step_s,
            "gbps": rate,
            "share_of_copy": rate / self.ceilings["copy_gbps"],
        }

    def _agreement(self, ids: torch.Tensor, ours: Run) -> dict[str, Any]:
        """Of the logits of the first token after the prompt, with eager."""
        assert isinstance(ours, OursRun)
        with torch.no_grad():
            expected = self.stock(input_ids=ids[:1], use_cache=False, logits_to_keep=1).logits[:, -1]
        return agreement(ours.runtime.prefill(ids)[:1], expected)


@torch.no_grad()
def _eager(model: Any, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
    made = TorchRunner(model).greedy(ids, tokens + 1)
    return made.ttft, made.tpot


class StaticRun:
    """transformers' fast way: a static cache, and the decode step compiled into CUDA graphs."""

    def __init__(self, model: Any, room: int, options: dict[str, Any]):
        from transformers import StaticCache

        torch._dynamo.reset()
        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=room)
        self.step = torch.compile(model.forward, dynamic=False, **options)

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
        self.cache.reset()
        arguments = {"past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        synchronize(ids.device)
        begin = time.perf_counter()
        token = self.model(input_ids=ids, **arguments).logits[:, -1].argmax(-1, keepdim=True)
        synchronize(ids.device)
        first = time.perf_counter()
        for _ in range(tokens):
            torch.compiler.cudagraph_mark_step_begin()
            token = self.step(input_ids=token, **arguments).logits[:, -1].argmax(-1, keepdim=True)
        synchronize(ids.device)
        return first - begin, (time.perf_counter() - first) / tokens


class OursRun:
    """prunekit's runtime: a static cache whose layers differ, the decode step as one CUDA graph. ``overlap`` "off": its
    launches wait for each other."""

    def __init__(self, model: Any, batch: int, room: int, *, overlap: str | None = None):
        from prunekit.kernels import Runtime

        self.runtime = Runtime(model, batch, room)
        self.choices = {"overlap": overlap} if overlap else {}

    def __call__(self, ids: torch.Tensor, tokens: int) -> tuple[float, float]:
        # The first step records the graph, and with it the choice.
        with choosing(**self.choices):
            synchronize(ids.device)
            begin = time.perf_counter()
            self.runtime.prefill(ids)
            synchronize(ids.device)
            first = time.perf_counter()
            for _ in range(tokens):
                self.runtime.step()
            synchronize(ids.device)
            return first - begin, (time.perf_counter() - first) / tokens

    def tokens(self, ids: torch.Tensor, count: int) -> list[list[int]]:
        """The likeliest tokens after each prompt."""
        with choosing(**self.choices):
            self.runtime.prefill(ids)
            made = [self.runtime.tokens[: len(ids)].tolist()]
            for _ in range(count):
                self.runtime.step()
                made.append(self.runtime.tokens[: len(ids)].tolist())
        return made
