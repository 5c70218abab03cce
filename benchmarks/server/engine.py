"""One model in vLLM's offline engine, timed in a process of its own: python -m benchmarks.server.engine JOB.json

TTFT is the time of a whole batch for its first tokens, TPOT what each further one adds: both are medians of runs in
which all prompts start together. Beside each stands the CPU time of the process: on a GPU what the host has to do, on a
CPU that others use too the fairer figure. What is measured is written down after every row.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from prunekit.utils.measuring.resident import peak_bytes

MODES: dict[str, dict[str, Any]] = {
    # CUDA graphs for decoding, and no compiler: it would compile a piece for every layer that differs.
    "graphs": {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    # vLLM's default.
    "compile": {},
    "eager": {"enforce_eager": True},
}


def engine_settings(job: dict[str, Any]) -> dict[str, Any]:
    """The arguments of vllm.LLM for a job, which holds the fields of benchmarks.server.run.Settings."""
    longest = max(job["prompts"]) + job["new"]
    mode = json.loads(json.dumps(MODES[job["mode"]]))
    if job["mode"] == "graphs":
        mode["compilation_config"]["cudagraph_capture_sizes"] = sorted(job["batches"])
    memory = (
        {"kv_cache_memory_bytes": job["kv_bytes"]}
        if job["kv_bytes"]
        else {"gpu_memory_utilization": job["memory_share"]}
    )
    return {
        "load_format": job["load_format"],
        "dtype": job["dtype"],
        "model_impl": job["implementation"],
        "skip_tokenizer_init": True,
        "max_model_len": longest,
        "max_num_seqs": max(job["batches"]),
        "max_num_batched_tokens": max(8192, longest),
        "enable_prefix_caching": False,
        "seed": 0,
        **memory,
        **mode,
    }


def prompt(row: int, length: int, vocabulary: int) -> list[int]:
    """Token ids that differ between rows, the same in every process."""
    return [(7 * place + 31 * row + 11) % vocabulary for place in range(length)]


def measure(job: dict[str, Any], write: Any) -> None:
    """Load the model and time every batch and prompt length of ``job``; ``write`` takes the report as it grows."""
    begin = time.perf_counter()
    import torch
    import vllm

    llm = vllm.LLM(job["folder"], **engine_settings(job))
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    vocabulary = min(30_000, config.model_config.get_vocab_size())
    report: dict[str, Any] = {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "model_class": config.model_config.architecture,
        "startup_s": time.perf_counter() - begin,
        "weight_bytes": llm.apply_model(weight_bytes)[0],
        "host_peak_bytes": peak_bytes(),
        "kv_tokens": cache.num_gpu_blocks * cache.block_size,
        "rows": [],
    }
    write(report)

    def run(batch: int, length: int, tokens: int) -> tuple[float, float]:
        """Seconds on the clock, and of this process's CPU time."""
        prompts = [{"prompt_token_ids": prompt(row, length, vocabulary)} for row in range(batch)]
        params = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start, busy = time.perf_counter(), time.process_time()
        made = llm.generate(prompts, params, use_tqdm=False)
        took = time.perf_counter() - start, time.process_time() - busy
        if any(len(each.outputs[0].token_ids) != tokens for each in made):
            raise RuntimeError(f"vLLM ended before {tokens} tokens.")
        return took

    for length in job["prompts"]:
        for batch in job["batches"]:
            run(batch, length, 4)
            firsts, wholes = [], []
            for _ in range(job["repeats"]):
                firsts.append(run(batch, length, 1))
                wholes.append(run(batch, length, job["new"]))
            (ttft, ttft_cpu), (whole, whole_cpu) = (
                [median(each) for each in zip(*times, strict=True)] for times in (firsts, wholes)
            )
            steps = job["new"] - 1
            spread = [seconds for seconds, _ in wholes]
            report["rows"].append(
                {
                    "batch": batch,
                    "prompt": length,
                    "new": job["new"],
                    "ttft_s": ttft,
                    "tpot_s": (whole - ttft) / steps,
                    "ttft_cpu_s": ttft_cpu,
                    "tpot_cpu_s": (whole_cpu - ttft_cpu) / steps,
                    "tokens_per_s": batch * job["new"] / whole,
                    "spread": (max(spread) - min(spread)) / whole,
                }
            )
            write(report)


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters as they lie in memory, padding included."""
    return sum(each.numel() * each.element_size() for each in model.parameters())


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(job["out"])
    measure(job, lambda report: out.write_text(json.dumps(report), encoding="utf-8"))


if __name__ == "__main__":
    main()
