"""``onnx`` exports in transformers.js, in Node.js: the tokens must be PyTorch's.

    python transformersjs_check.py FOLDER [NAME ...]   # FOLDER has transformers.js in node_modules; default: all models

Writes exports (a dense model, pruned ones whose KV heads differ by layer, weights beside the graph, fp16, a chat model)
and what PyTorch makes of prompts into FOLDER/exports, and has transformersjs_check.mjs and the JavaScript of the
README compared with that. Exits with 1 where they differ.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).parents[3])]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from prunekit.export.export import export  # noqa: E402
from prunekit.export.formats.onnx import write as onnx_write  # noqa: E402
from prunekit.export.target import Options  # noqa: E402
from prunekit.models.runner import TorchRunner  # noqa: E402
from prunekit.models.source import load_model, load_tokenizer, resolve  # noqa: E402
from tests.support.export_models import byte_tokenizer, dense_config, save_chatty, save_uneven  # noqa: E402
from tests.support.readme_blocks import blocks  # noqa: E402
from tests.support.tiny import tiny_model  # noqa: E402

TOKENS = 16
PROMPTS = ("Once upon a time", "The", "One two three four five six")
README_TOKENS = 40


def _dense(folder: Path) -> Path:
    tiny_model("llama", config=dense_config("llama")).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


# By name: what writes the checkpoint, the dtype, and from how many bytes on weights lie beside the graph.
MODELS: dict[str, tuple[Any, str, int]] = {
    "dense": (_dense, "fp32", 2**26),
    "pruned llama": (lambda folder: save_uneven(folder, "llama"), "fp32", 10**6),
    "pruned mistral": (lambda folder: save_uneven(folder, "mistral", sliding_window=16), "fp32", 2**26),
    "pruned qwen3 fp16": (lambda folder: save_uneven(folder, "qwen3", tie_word_embeddings=True), "fp16", 2**26),
    "pruned gemma3": (lambda folder: save_uneven(folder, "gemma3_text", sliding_window=16), "fp32", 2**26),
    "pruned olmo2": (lambda folder: save_uneven(folder, "olmo2"), "fp32", 2**26),
    "chat": (save_chatty, "fp32", 2**26),
}


def write(folder: Path, name: str) -> None:
    """One export in ``folder``, and expected.json beside it."""
    save, dtype, external_from = MODELS[name]
    source = resolve(str(save(folder / "model")))
    real = onnx_write.export_onnx
    with patch(
        "prunekit.export.formats.onnx.target.export_onnx", lambda job, out: real(job, out, external_from=external_from)
    ):
        made = export(source, "onnx", folder / "export", Options(dtype), verify=False)
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype="float32", device="cpu")
    runner = TorchRunner(model)
    ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
    tokens = [runner.greedy(np.array([each]), TOKENS).tokens[0].tolist() for each in ids]
    with torch.no_grad():
        # With the checkpoint's own penalty of repetitions, which the README's program heeds too.
        readme = model.generate(torch.tensor(ids[:1]), max_new_tokens=README_TOKENS, do_sample=False)[0]
    ends = json.loads((made.path / "generation_config.json").read_text())["eos_token_id"]
    expected: dict[str, Any] = {
        "prompts": PROMPTS,
        "ids": ids,
        "tokens": [_until(row, ends) for row in tokens],
        "readme": tokenizer.decode(readme, skip_special_tokens=True),
    }
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": "Hi"}]
        expected["chat"] = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _until(tokens: list[int], ends: int | list[int]) -> list[int]:
    """What is generated: an end is the last token."""
    ends = ends if isinstance(ends, list) else [ends]
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def main(folder: Path, names: Iterable[str]) -> int:
    exports = folder / "exports"
    shutil.rmtree(exports, ignore_errors=True)
    script = folder / "check.mjs"
    shutil.copyfile(Path(__file__).with_suffix(".mjs"), script)
    wrong = 0
    for name in names:
        write(exports / name, name)
        done = subprocess.run(["node", script.resolve(), exports / name], text=True, capture_output=True)
        print(f"{name}: {done.stdout.strip() or done.stderr.strip()[-300:]}", flush=True)
        wrong += done.returncode != 0
        (snippet,) = (text for language, text in blocks(exports / name / "export") if language == "js")
        (exports / name / "export" / "readme.mjs").write_text(snippet, encoding="utf-8")
        done = subprocess.run(["node", "readme.mjs"], cwd=exports / name / "export", text=True, capture_output=True)
        same = done.stdout.rstrip("\n") == json.loads((exports / name / "expected.json").read_text())["readme"].rstrip(
            "\n"
        )
        print(
            f"{name}: the README's JavaScript prints {'the same' if same else 'something else: ' + done.stderr[-300:]}"
        )
        wrong += not same
    print("differs" if wrong else "all equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or MODELS))
