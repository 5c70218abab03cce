"""Time one model in vLLM's offline engine from its config.json alone, with weights that vLLM makes up.

    python benchmarks/server/vllm_engine.py FOLDER OUT.json --batch 1 8 64 256 --prompt 128 --tokens 64

TTFT is the time of a batch for one new token, TPOT what each further one adds; both are medians of batches that start
together. Decoding runs in CUDA graphs, nothing is compiled. Writes OUT.json after every batch size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

# vLLM's own process runs the model, so that a timeout ends all; nothing asks a network; FlashInfer is not needed.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--memory", type=float, default=0.85, help="share of the GPU's memory that vLLM may take")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    given = parser.parse_args()
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    measure(given)


def measure(given: argparse.Namespace) -> None:
    begin = time.perf_counter()
    import vllm
    from vllm import LLM, SamplingParams

    longest = given.prompt + given.tokens
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sorted(given.batch)}
    engine = LLM(
        given.folder,
        load_format="dummy",
        dtype=given.dtype,
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_seqs=max(given.batch),
        max_num_batched_tokens=max(8192, longest),
        enable_prefix_caching=False,
        gpu_memory_utilization=given.memory,
        seed=0,
        **({"enforce_eager": True} if given.eager else {"compilation_config": graphs}),
    )
    config = engine.llm_engine.model_config
    report: dict[str, Any] = {
        "vllm": vllm.__version__,
        "architecture": config.architecture,
        "start_s": round(time.perf_counter() - begin, 1),
        "kv_tokens": _kv_tokens(engine),
        "rows": [],
    }
    vocabulary = min(config.get_vocab_size(), 30000)
    params = {"temperature": 0, "ignore_eos": True, "detokenize": False}

    def run(batch: int, tokens: int) -> float:
        prompts: Any = [
            {"prompt_token_ids": [(7 * place + 31 * row + 11) % vocabulary for place in range(given.prompt)]}
            for row in range(batch)
        ]
        start = time.perf_counter()
        made = engine.generate(prompts, SamplingParams(max_tokens=tokens, **params), use_tqdm=False)
        took = time.perf_counter() - start
        if not all(len(each.outputs[0].token_ids) == tokens for each in made):
            raise RuntimeError("vLLM ended a sequence before its time")
        return took

    for batch in given.batch:
        run(batch, 4)
        pairs = [(run(batch, 1), run(batch, given.tokens)) for _ in range(given.repeat)]
        first, whole = (median(values) for values in zip(*pairs, strict=True))
        step = (whole - first) / (given.tokens - 1)
        report["rows"].append(
            {
                "batch": batch,
                "ttft_ms": first * 1e3,
                "tpot_ms": step * 1e3,
                "tokens_per_s": batch * given.tokens / whole,
                "decode_tokens_per_s": batch / step,
            }
        )
        given.out.write_text(json.dumps(report))


def _kv_tokens(engine: Any) -> int | None:
    """Tokens that fit into the KV cache, where this version tells."""
    cache = engine.llm_engine.vllm_config.cache_config
    blocks, size = getattr(cache, "num_gpu_blocks", None), getattr(cache, "block_size", None)
    return blocks * size if blocks and size else None


if __name__ == "__main__":
    main()
