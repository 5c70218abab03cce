"""What a local model folder must hold, checked from config.json and safetensors headers before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from prunekit.errors import PrunekitError
from prunekit.models.families import Family, family_of
from prunekit.models.modeling import register_pruned
from prunekit.models.redirections import check_config
from prunekit.plan.shape import LIMITS, ModelShape
from prunekit.utils.files.atomic import read_json
from prunekit.utils.files.strict_json import parse
from prunekit.utils.quiet import quiet, reason

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_HEADER = 16 << 20


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a safetensors header describes it; ``dtype`` is the format's own name, e.g. BF16. Its bytes begin
    at ``start`` of ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int


def read_config(folder: Path) -> tuple[Any, Family, ModelShape]:
    """The transformers config of ``folder``, its family and its geometry. Never runs code from the folder.

    Raises PrunekitError where config.json is missing, malformed or absurd, describes a family that can't be pruned,
    or belongs to a quantised checkpoint.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise PrunekitError(f"{folder} has no config.json, {_what_instead(folder)}")
    raw = read_json(path, "model config")
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise PrunekitError(f"{path} names no model_type; it is not the config of a Hugging Face model.")
    family = family_of(raw["model_type"])
    _refuse_quantized(path, raw)
    _check_numbers(path, raw)
    check_config(path, raw)
    from transformers import AutoConfig

    register_pruned()
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if config.model_type != raw["model_type"]:
            raise ValueError(f"transformers takes it for a model of type {config.model_type!r}")
        _check_architectures(config)
        _check_layers(config, family)
        shape = family.shape(config)
        _check_rotation(config, shape.head_dim)
        return config, family, shape
    except Exception as error:  # whatever goes wrong here is the file's fault: transformers has dozens of types for it
        raise PrunekitError(
            f"{path} does not describe a {family.name} model: {reason(error)}. Compare it with the original model's."
        ) from None


def _check_architectures(config: Any) -> None:
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("its architectures are no list of names")


def _check_layers(config: Any, family: Family) -> None:
    """transformers finds out at the first forward only."""
    for name in family.per_layer_fields:
        values = getattr(config, name, None)
        if values is not None and not (isinstance(values, list) and len(values) == config.num_hidden_layers):
            raise ValueError(f"its {name} has no entry for each of its {config.num_hidden_layers} layers")
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"its layer_types name {min(map(str, unknown))!r}, which no layer of such a model is")
    if "sliding_attention" in kinds and not getattr(config, "sliding_window", None):
        raise ValueError("its layer_types name sliding_attention, but it has no sliding_window")


def _check_rotation(config: Any, head_dim: int) -> None:
    """What part of a head is turned: halves of it, and no more than there is."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in (vars(config), parameters, *(own for own in parameters.values() if isinstance(own, dict))):
        share = each.get("partial_rotary_factor")
        if share is None:
            continue
        if type(share) not in (int, float) or not 0 < share <= 1 or int(head_dim * share) % 2 or head_dim * share < 2:
            raise ValueError(f"its partial_rotary_factor {str(share)[:20]} turns no even part of {head_dim} channels")


def _what_instead(folder: Path) -> str:
    if any(folder.glob("*.gguf")):
        return "but it holds .gguf files; give one of them by its full path."
    if (folder / "adapter_config.json").is_file():
        return "only a LoRA adapter; merge it into its base model first (peft: merge_and_unload, save_pretrained)."
    return "so it is not a Hugging Face model; give the folder that save_pretrained wrote."


def _refuse_quantized(path: Path, raw: dict[str, Any]) -> None:
    quantization = raw.get("quantization_config") or raw.get("compression_config")
    if not quantization:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise PrunekitError(
        f"{path.parent} holds quantised weights ({method or 'unknown method'}), whose rows and columns can't be cut; "
        "prune the unquantised model and quantise the result."
    )


def _check_numbers(path: Path, raw: dict[str, Any]) -> None:
    """Refuse what would make transformers loop or allocate without end, and heads that don't divide."""
    overrides = raw.get("per_layer_config") or {}
    if not isinstance(overrides, dict) or not all(isinstance(own, dict) for own in overrides.values()):
        raise PrunekitError(f"per_layer_config in {path} must map layer numbers to objects.")
    for where, values in [("", raw), *((f" of layer {layer}", own) for layer, own in overrides.items())]:
        for name, limit in LIMITS.items():
            value = values.get(name)
            if value is not None and (type(value) is not int or not 1 <= value <= limit):
                raise PrunekitError(f"{name}{where} in {path} must be a whole number from 1 to {limit}, got {value!r}.")
    layers = raw.get("num_hidden_layers")
    for key in overrides:
        if not key.isdecimal() or len(key) > 4 or (layers is not None and int(key) >= layers):
            raise PrunekitError(f"per_layer_config in {path} names layer {key!r}, but there are {layers} layers.")
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    if hidden and heads and "head_dim" not in raw and not overrides and hidden % heads:
        raise PrunekitError(
            f"{path} splits a hidden size of {hidden} over {heads} heads, which does not divide; check both numbers."
        )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of ``folder``: model.safetensors, or all that its index names, in order of name.

    Raises PrunekitError where there are none, or the index is malformed, leaves the folder or names a missing file.
    """
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    index = folder / INDEX
    if not index.is_file():
        raise PrunekitError(f"{folder} has no {SINGLE} and no {INDEX}{_other_weights(folder)}")
    data = read_json(index, "weight index")
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise PrunekitError(f"{index} has no weight_map that says which file holds which tensor; download it again.")
    if "metadata" not in data:
        raise PrunekitError(f'{index} has no "metadata", which transformers needs; add "metadata": {{}} to it.')
    files = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise PrunekitError(f"{index} names {name!r}, which is no safetensors file beside it; download it again.")
        if not (folder / name).is_file():
            raise PrunekitError(f"{index} names {name}, which is missing; finish the download.")
        files.append(folder / name)
    return tuple(files)


def _other_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            "; its weights are pickled, and prunekit loads nothing pickled because that can run code. If you trust "
            "them, load them once with transformers and save_pretrained, which writes safetensors."
        )
    if any(folder.glob("*.gguf")):
        return ", but .gguf files; give one of them by its full path."
    if any(folder.glob("*.safetensors")):
        return ", but other .safetensors files; the index is missing, so finish the download."
    return "; finish the download, or give the folder that save_pretrained wrote."


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors that one safetensors file declares. Raises PrunekitError where the header or the length is wrong."""
    broken = PrunekitError(f"{file} is not a whole safetensors file: its header can't be read. Download it again.")
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise broken
            header = parse(handle.read(length))
        tensors = {}
        promised = 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape = entry["shape"]
            if not isinstance(entry["dtype"], str) or any(type(n) is not int or n < 0 for n in (start, end, *shape)):
                raise broken
            tensors[name] = StoredTensor(file, entry["dtype"], tuple(shape), end - start, 8 + length + start)
            promised = max(promised, end)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise broken from None
    except OSError as error:
        raise PrunekitError(f"{file} can't be read: {error.strerror or error}.") from None
    if size != 8 + length + promised:
        raise PrunekitError(
            f"{file} has {size:,} bytes, but its header promises {8 + length + promised:,}; it is cut short or "
            "damaged. Download it again."
        )
    try:
        # The format's own reader refuses what is left: overlaps, holes, shapes that don't fit their bytes.
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        raise PrunekitError(f"{file} is damaged ({reason(error)}). Download it again.") from None
    return tensors


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model folder by name. Raises PrunekitError as :func:`weight_files` and :func:`read_header`."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        for name, tensor in read_header(file).items():
            if name in found:
                raise PrunekitError(
                    f"The weights in {folder} hold {name} twice, in {found[name].file.name} and {file.name}; download "
                    "them again."
                )
            found[name] = tensor
    return found
