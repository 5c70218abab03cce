"""The model level: time to first token, time per token and memory of whole models with random weights.

Four arms on weights of the same shapes: transformers eager, transformers with torch.compile and a static cache, ours,
and ours with launches that wait for each other. What is compared is measured in turns.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common.failures import agreement, check_device, describe
from benchmarks.common.timer import bounded, spread
from benchmarks.models.build import build
from benchmarks.models.shapes import Model
from prunekit.kernels.ops.utils.dispatch import choosing
from prunekit.kernels.tuning.arena import Arena
from prunekit.models.runner import TorchRunner
from prunekit.plan.shape import ModelShape
from prunekit.utils.machine import synchronize
from prunekit.utils.timing import prompt_ids, turns

# (ids, tokens) -> seconds of the prefill, seconds of each token after the first
Run = Callable[[torch.Tensor, int], tuple[float, float]]
# Tokens of prompts together up to which results are compared and memory is measured in a run of its own: more take
# seconds.
FEW_TOKENS = 16384


class ModelBench:
    """Holds one model, dense or pruned, and measures it at several batch sizes and prompts. Of the model itself only
    what packing copies takes memory beside the arena."""

    def __init__(
        self,
        model: Model,
        shape: ModelShape,
        arena: Arena,
        best: dict[str, Any],
        *,
        compile_options: dict[str, Any] | None = None,
        tokens: int = 32,
        rounds: int = 7,
        most_s: float = 4.0,
    ):
        self.model, self.shape, self.arena, self.best = model, shape, arena, best
        self.device, self.dtype = arena.memory.device, arena.memory.dtype
        self.compile_options = compile_options
        self.tokens, self.rounds, self.most_s = tokens, rounds, most_s
        self.weight_bytes = shape.parameters * self.dtype.itemsize
        self._position = arena.position
        self._stock: Any = None
        self._packed: Any = None

    def _build(self) -> Any:
        """The same weights every time."""
        self.arena.position = self._position
        return build(self.model, self.shape, self.arena)

    @property
    def stock(self) -> Any:
        """The transformers model."""
        if self._stock is None:
            self._stock = self._build()
        return self._stock

    @property
    def packed(self) -> Any:
        """Another one with the same weights, optimised."""
        from prunekit.kernels import optimize

        if self._packed is None:
            self._packed = optimize(self._build())
        return self._packed

    def measure(self, batch: int, prompt: int, names: Sequence[str], prepare_s: float = 60.0) -> dict[str, Any]:
        """One batch size and prompt length as JSON values, of the arms ``names``. One that fails, or is not ready
        after ``prepare_s``, holds its error."""
        ids = prompt_ids(batch, prompt, self.shape.vocab_size, seed=0).to(self.device)
        if self.device.type == "meta":  # launches are noted, and there is nothing to time
            for name in names:
                self._make(name, ids, None)(ids, 1)
            return {}
        arms: dict[str, Any] = {}
        runs: dict[str, Run] = {}
        for name in names:
            try:
                with bounded(prepare_s):
                    # Ours share a cache: only one of them holds sequences at a time.
                    others = [run for run in runs.values() if isinstance(run, OursRun)]
                    runs[name], arms[name] = self._prepare(name, ids, others[0].runtime.cache.arena if others else None)
            except Exception as error:
                check_device(self.device, error)
                arms[name] = {"error": describe(error)}
        for name, times in self._interleaved(runs, ids).items():
            arms[name] |= self._figures(times, batch, prompt)
        found = self._compared(runs, ids) if batch * prompt <= FEW_TOKENS else {}
        runs.clear()
        self._tidy()
        moved = self._moved(batch, prompt)
        return {
            "batch": batch,
            "prompt": prompt,
            "tokens": self.tokens,
            "parameters": self.shape.parameters,
            "weight_bytes": self.weight_bytes,
            "decode_bytes": moved,
            "roofline_tpot_us": moved / self.best["copy_gbps"] / 1e3,
            "arms": arms,
            **found,
        }

    def close(self) -> None:
        """Give the memory back."""
        self._stock = self._packed = None
        self._tidy()

    def _tidy(self) -> None:
        """Free what compiled functions and their graphs hold."""
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _moved(self, batch: int, prompt: int) -> int:
        """Bytes that a decode step must read: the weights, and every sequence's KV cache at its mean length."""
        return self.shape.decode_bytes(self.dtype.itemsize, batch * (prompt + self.tokens // 2))

    def _make(self, name: str, ids: torch.Tensor, cache: torch.Tensor | None) -> Run:
        batch, room = ids.shape[0], ids.shape[1] + self.tokens
        if name == "eager":
            return lambda ids, tokens: _eager(self.stock, ids, tokens)
        if name == "compiled":
            return StaticRun(self.stock, room, self.compile_options or {})
        return OursRun(self.packed, batch, room, overlap="off" if name == "ours_waiting" else None, cache=cache)

    def _prepare(self, name: str, ids: torch.Tensor, cache: torch.Tensor | None) -> tuple[Run, dict[str, Any]]:
        """A warm arm, and the memory that it takes: weights, caches, activations, graphs."""
        if self.device.type != "cuda":
            return self._make(name, ids, cache), {"peak_bytes": None}
        weights = self.weight_bytes
        if name.startswith("ours"):
            from prunekit.kernels import report

            packed = report(self.packed)
            weights = packed.weight_bytes + packed.extra_bytes
        before = torch.cuda.memory_allocated(self.device)
        run = self._make(name, ids, cache)
        for _ in range(2 if ids.numel() <= FEW_TOKENS else 1):  # what compiling takes doesn't count
            torch.cuda.reset_peak_memory_stats(self.device)
            run(ids, 3)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        return run, {"peak_bytes": peak + weights + (cache.nbytes if cache is not None else 0)}

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
            "share_of_copy": rate / self.best["copy_gbps"],
        }

    def _compared(self, runs: dict[str, Run], ids: torch.Tensor) -> dict[str, Any]:
        """Whether ours gives the logits of transformers' model, and the same tokens whether its launches wait or not: a
        read before its time would show as another token, now and then."""
        ours = [run for run in runs.values() if isinstance(run, OursRun)]
        if not ours:
            return {}
        with torch.no_grad():
            expected = self.stock(input_ids=ids[:1], use_cache=False, logits_to_keep=1).logits[:, -1]
        if len(ours) == 1:
            return agreement(ours[0].runtime.prefill(ids)[:1], expected)
        (logits, first), (_, second) = (run.tokens(ids, self.tokens) for run in ours)
        return {**agreement(logits[:1], expected), "overlap_same_tokens": first == second}


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
    launches wait for each other. ``cache`` is the memory of another one's cache, to be used by both."""

    def __init__(
        self, model: Any, batch: int, room: int, *, overlap: str | None = None, cache: torch.Tensor | None = None
    ):
        from prunekit.kernels import Runtime

        self.runtime = Runtime(model, batch, room, arena=cache)
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

    def tokens(self, ids: torch.Tensor, count: int) -> tuple[torch.Tensor, list[list[int]]]:
        """The logits after each prompt, and the likeliest tokens."""
        with choosing(**self.choices):
            logits = self.runtime.prefill(ids).clone()
            made = [self.runtime.tokens[: len(ids)].tolist()]
            for _ in range(count):
                self.runtime.step()
                made.append(self.runtime.tokens[: len(ids)].tolist())
        return logits, made
