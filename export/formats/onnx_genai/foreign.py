"""What a genai_config.json of unknown origin may say: what prunekit's own exports do, and nothing that names a file.

onnxruntime-genai has settings that load libraries, write profiles, and open further files, and passes what it doesn't
know on to ONNX Runtime, which has more of them. So what is allowed is listed, not what is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.formats.onnx.foreign import check_onnx
from prunekit.export.formats.onnx_genai.builder import MODEL, SCORER
from prunekit.export.formats.onnx_genai.config import CONFIG, CUDA_GRAPH
from prunekit.utils.files.strict_json import parse, read_regular

_MOST_BYTES = 2**20


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def _numbers(value: Any) -> bool:
    return _number(value) or (isinstance(value, list) and all(map(_number, value)))


def _name(value: Any) -> bool:
    """A word: names of inputs and outputs ("past_key_values.%d.key") and model types."""
    return isinstance(value, str) and len(value) < 200 and all(each.isalnum() or each in "_.%-" for each in value)


def _providers(value: Any) -> bool:
    """None, or CUDA with or without CUDA graphs: what exports of prunekit ask for."""
    return value in ([], [{"cuda": {CUDA_GRAPH: "0"}}], [{"cuda": {CUDA_GRAPH: "1"}}])


_NAMES = dict.fromkeys(
    (
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_names",
        "past_value_names",
        "logits",
        "present_key_names",
        "present_value_names",
    ),
    _name,
)
_THREADS = dict.fromkeys(("intra_op_num_threads", "inter_op_num_threads", "log_severity_level"), _number)
_SIZES = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
# A name, and what its value must satisfy or hold.
_ALLOWED: dict[str, Any] = {
    "model": {
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"), _numbers),
        **dict.fromkeys(("context_length", "vocab_size"), _number),
        "type": _name,
        "decoder": {
            "session_options": {"log_id": _name, "provider_options": _providers, **_THREADS},
            "filename": lambda value: value in (MODEL, SCORER),
            **dict.fromkeys(_SIZES, _number),
            "inputs": _NAMES,
            "outputs": _NAMES,
        },
    },
    "search": dict.fromkeys(
        (
            "do_sample",
            "min_length",
            "max_length",
            "batch_size",
            "num_beams",
            "num_return_sequences",
            "repetition_penalty",
            "top_k",
            "top_p",
            "min_p",
            "temperature",
            "early_stopping",
            "no_repeat_ngram_size",
            "diversity_penalty",
            "length_penalty",
            "past_present_share_buffer",
            "random_seed",
            "chunk_size",
        ),
        _number,
    ),
}


def check_genai(folder: Path, files: Collection[str]) -> None:
    """Raises PrunekitError where ``folder`` would make onnxruntime-genai do more than run the graphs of it. ``files``
    are the names of the files that belong there."""
    path = folder / CONFIG
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise PrunekitError(f"{path} is missing or far too long; export the model again.")
    try:
        settings = parse(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise PrunekitError(f"{path} is not valid JSON ({error}); export the model again.") from None
    _check(path, "", settings, _ALLOWED)
    for name in (MODEL, SCORER):
        if name in files:
            check_onnx(folder / name, folder, files)


def _check(path: Path, where: str, value: Any, allowed: dict[str, Any] | Callable[[Any], bool]) -> None:
    if callable(allowed):
        if not allowed(value):
            raise PrunekitError(
                f"{path} sets {where} to {ascii(value)[:80]}, which exports of prunekit don't; export the model again."
            )
        return
    if not isinstance(value, dict):
        raise PrunekitError(f"{path} has no settings in {where or 'it'}; export the model again.")
    for name, inner in value.items():
        place = f"{where}.{name}" if where else name
        if name not in allowed:
            raise PrunekitError(
                f"{path} sets {ascii(place)[1:-1][:120]}, which exports of prunekit don't and which may load code or "
                "files; remove that setting, or export the model again."
            )
        _check(path, place, inner, allowed[name])
