"""From what a user types (a hub id, a folder, a .gguf file, a built-in name) to a local model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.models.fingerprint import weights_digest
from prunekit.models.folder import read_config, read_tensors, weight_files
from prunekit.models.gguf import convert as gguf_import
from prunekit.models.modeling import register_pruned
from prunekit.models.origin import legal_patterns
from prunekit.models.redirections import check_tokenizer
from prunekit.models.stored_weights import check_tensors, has_own_head
from prunekit.models.tokenizer.check import try_tokenizer
from prunekit.models.tokenizer.names import TEMPLATES
from prunekit.plan.shape import ModelShape
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.replacing import local
from prunekit.utils.progress import aside
from prunekit.utils.provenance import model_label
from prunekit.utils.quiet import quiet, reason

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md", *legal_patterns()]
# Subfolders hold other formats of the same model, but for the templates'; consolidated files are the same weights under
# other names.
_HUB_IGNORED = [
    *(f"{TEMPLATES[:place]}[!{char}]*/*" for place, char in enumerate(TEMPLATES)),
    f"{TEMPLATES}?*/*",
    f"{TEMPLATES}/*/*",
    "consolidated*",
]
# How the heads of transformers' other tasks are named.
_OTHER_HEADS = {"score", "classifier", "qa_outputs", "reward_head", "v_head"}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Source:
    """A model on local disk that prunekit can prune. ``name`` is what the user typed, ``config`` transformers' own."""

    name: str
    path: Path
    config: Any
    family: Family
    shape: ModelShape

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What of the user's files the model is read from: nothing may replace them."""
        return (self.path, *local(self.name))

    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files that hold the weights. Raises PrunekitError where one is missing."""
        return weight_files(self.path)

    @cached_property
    def weights_digest(self) -> str:
        """The digest of its tensors, however they are saved (:func:`~prunekit.models.fingerprint.weights_digest`)."""
        return weights_digest(read_tensors(self.path))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the geometry and every tensor: equal for equal models, wherever and in whatever shards they lie.

        Reads all weights once (about a second for 500 MB).
        """
        return self._hashed(tensors=self.weights_digest)

    def is_named_by(self, fingerprint: str) -> bool:
        """Whether ``fingerprint`` is this model's. Plans of before told models by their files, and still do."""
        if fingerprint == self.fingerprint:
            return True
        return fingerprint == self._hashed(
            files=[[file.name, file.stat().st_size, sha256(file)] for file in self.weight_files()]
        )

    def check_language_model(self) -> None:
        """Raises PrunekitError where the weights are of a classifier, a reward model or the like."""
        other = next((name for name in read_tensors(self.path) if _is_other_head(name)), None)
        if other is not None:
            kind = next(iter(self.config.architectures or ()), "a classifier")
            raise PrunekitError(
                f"{self.name} is no language model: it has the head {other} ({kind}). Prune the language model that it "
                "was trained from, then train the head on the result, which AutoModelForSequenceClassification and its "
                "like open."
            )

    def _hashed(self, **weights: Any) -> str:
        content = {"family": self.family.model_type, "shape": self.shape.to_dict(), **weights}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that most weight bytes are stored in. Raises PrunekitError where that is no plain float."""
        import torch

        stored: Counter[str] = Counter()
        for tensor in read_tensors(self.path).values():
            stored[tensor.dtype] += tensor.nbytes
        name = stored.most_common(1)[0][0]
        if name not in _DTYPES:
            raise PrunekitError(
                f"The weights in {self.path} are stored as {name}, so they are quantised; prune the unquantised model."
            )
        return cast("torch.dtype", getattr(torch, _DTYPES[name]))


def _is_other_head(name: str) -> bool:
    return name.split(".")[0] in _OTHER_HEADS


def resolve(name: str, *, revision: str | None = None) -> Source:
    """Find the model that ``name`` means: the built-in name, an existing .gguf file or folder, else a hub id.

    ``revision`` is a branch, tag or commit of a hub repository. Files are downloaded or converted once. Config and
    safetensors headers are checked against each other; no weight is read and no code of the model is run.
    Raises PrunekitError where nothing of that name can be had, or it can't be pruned.

    >>> resolve("smollm2-135m").shape.num_hidden_layers  # doctest: +SKIP
    30
    """
    path = _locate(name, revision)
    config, family, shape = read_config(path)
    tensors = read_tensors(path)
    # A classifier has the head of its task instead, which check_language_model tells; a language model has no place for
    # one.
    is_language = any(name.endswith("ForCausalLM") for name in config.architectures or ())
    decoder = {name: each for name, each in tensors.items() if is_language or not _is_other_head(name)}
    check_tensors(path, decoder, family, shape, head=len(decoder) == len(tensors))
    if shape.tie_word_embeddings and has_own_head(tensors):
        # What the files hold counts: transformers keeps such a head too, and so must all that is made of this config.
        config.tie_word_embeddings = False
        shape = replace(shape, tie_word_embeddings=False)
    source = Source(name, path, config, family, shape)
    source.dtype  # noqa: B018  (refuses packed weights that no config field announces)
    return source


def _locate(name: str, revision: str | None) -> Path:
    local = os.path.expanduser(name)
    is_local = name == gguf_import.BUILTIN or os.path.exists(local)
    if is_local and revision is not None:
        raise PrunekitError(f"A revision can only be named for a hub id, and {name} is local; leave it out.")
    if os.path.isdir(local):
        return Path(local)
    if name == gguf_import.BUILTIN:
        return gguf_import.converted(gguf_import.builtin_gguf())
    if is_local and local.endswith(".gguf"):
        return gguf_import.converted(Path(local).absolute())
    if is_local:
        raise PrunekitError(f"{name} is a file, but not a .gguf; give the model's folder.")
    if _HUB_ID.fullmatch(name) and not name.endswith((".gguf", ".safetensors")):
        return _download(name, revision)
    raise PrunekitError(
        f"There is no model {name!r}. Give a local model folder, a .gguf file, a hub id such as org/name, or the "
        f"built-in name {gguf_import.BUILTIN}."
    )


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    hint = f" ({name} is no local folder either)"
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
            )
        )
    except errors.GatedRepoError:
        raise PrunekitError(
            f"{name} is gated: accept its terms on its hub page, then log in with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise PrunekitError(f"{name} has no revision {revision!r}; name a branch, tag or commit of it.") from None
    except errors.RepositoryNotFoundError:
        raise PrunekitError(
            f"The hub has no model {name}, or it is private{hint}; check the spelling, or log in with `hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise PrunekitError(
            f"{name} is not in the local hub cache, and the hub can't be reached{hint}; go online once, or give a "
            "local folder."
        ) from None
    except Exception as error:  # the hub's client changes its network library, and with it the error types
        raise PrunekitError(
            f"{name} could not be downloaded: {reason(error)}. Try again, or give a local folder."
        ) from None


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else the CPU. Raises PrunekitError where there is no device of that name."""
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    match = re.fullmatch(r"(cpu|cuda|mps)(?::(\d{1,3}))?", name)
    if not match:
        raise PrunekitError(f"There is no device {name!r}; use auto, cpu, cuda, cuda:1 or mps.")
    there = {"cpu": 1, "cuda": cuda, "mps": int(mps)}[match[1]]
    if int(match[2] or 0) >= there:
        has = "cpu" + (f", cuda:0 to cuda:{cuda - 1}" if cuda else "") + (", mps" if mps else "")
        raise PrunekitError(f"This machine has no device {name}, as far as this PyTorch can see; it has {has}.")
    return torch.device(name)


def pick_dtype(name: str) -> torch.dtype | None:
    """The dtype of that name, or None for ``auto``, which means as stored. Raises PrunekitError for any other name."""
    import torch

    if name == "auto":
        return None
    if name not in ("float32", "bfloat16", "float16"):
        raise PrunekitError(f"There is no dtype {name!r} to compute in; use auto, float32, bfloat16 or float16.")
    return cast("torch.dtype", getattr(torch, name))


def as_source(model: Source | str, *, revision: str | None = None) -> Source:
    """``model`` as it is, or what its name means to :func:`resolve`: what the public functions take."""
    return resolve(model, revision=revision) if isinstance(model, str) else model


def load_model(source: Source, *, dtype: str = "auto", device: str = "auto") -> PreTrainedModel:
    """The model in eval mode, in ``dtype`` (as stored) on ``device``; code that lies beside the weights is never run.

    Raises PrunekitError where a weight is missing, does not fit or is not finite, or the memory is too small.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source.check_language_model()
    register_pruned()
    place = pick_device(device)
    options: dict[str, Any] = {} if place.type == "cpu" else {"device_map": {"": place}}
    if source.family.attn_implementation:
        options["attn_implementation"] = source.family.attn_implementation
    wanted = pick_dtype(dtype) or source.dtype
    try:
        with aside(f"loading {model_label(source.name)}"), quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=wanted,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                # Not always what config.json says.
                tie_word_embeddings=source.shape.tie_word_embeddings,
                # So that the first misfit can be named: _check_loaded refuses it.
                ignore_mismatched_sizes=True,
                **options,
            )
    except torch.OutOfMemoryError:
        raise PrunekitError(f"{source.name} does not fit into the memory of {place}; try --dtype bfloat16.") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever goes wrong here is the files' fault: transformers has dozens of types for it
        raise PrunekitError(f"The model in {source.path} could not be loaded: {reason(error)}.") from None
    model, info = loaded
    _check_loaded(source, info)
    _check_finite(source, model, wanted)
    check_runs(source, model.eval())
    return cast("PreTrainedModel", model)


def check_runs(source: Source, model: Any) -> None:
    """transformers finds out at the first tokens whether some fields of a config fit each other: three are run, one of
    them after a cache."""
    import torch

    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        with torch.no_grad(), quiet():
            cache = model(ids, use_cache=True).past_key_values
            model(ids[:, :1], past_key_values=cache, use_cache=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise PrunekitError(
            f"The model in {source.path} computes nothing ({reason(error)}); its config.json may have been changed. "
            "Copy the original model's over it."
        ) from None


def _check_finite(source: Source, model: Any, dtype: torch.dtype) -> None:
    """Every command that loads weights refuses NaN and infinity here, whether or not it would have come across them."""
    # Here, for naming a model must not take the time that torch's import takes.
    from safetensors import safe_open

    from prunekit.utils.numerics.finite import check_weight, first_not_finite, is_finite, place_of

    name = first_not_finite(model.named_parameters())
    if name is None:
        return
    for file in source.weight_files():
        with safe_open(file, "pt") as handle:
            for stored in {name, name.removeprefix("model.")} & {*handle.keys()}:
                if is_finite(handle.get_tensor(stored)):
                    kind = str(dtype).removeprefix("torch.")
                    raise PrunekitError(f"{place_of(name)} holds numbers too large for {kind}; take --dtype float32.")
    check_weight(name, model.get_parameter(name))


def _check_loaded(source: Source, info: dict[str, Any]) -> None:
    """transformers fills what it can't find with random numbers and a warning; prunekit refuses."""
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing:
        raise PrunekitError(f"The weights in {source.path} lack {missing[0]}; finish the download, or make them again.")
    if mismatched or info["error_msgs"]:
        what = mismatched[0] if mismatched else reason(Exception(info["error_msgs"][0]))
        raise PrunekitError(f"The weights in {source.path} don't fit its config.json: {what}.")


def has_tokenizer(source: Source) -> bool:
    """Whether the folder has a vocabulary; transformers answers one without with an empty tokenizer."""
    return any((source.path / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with its end token for padding where it names none.

    Code that lies beside it runs only with ``trust_remote_code``. Raises PrunekitError where the folder has none that
    works.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(source):
        raise PrunekitError(
            f"{source.path} has no tokenizer ({_TOKENIZER_FILES[0]}); copy the original model's tokenizer files "
            "into it."
        )
    check_tokenizer(source.path)
    try_tokenizer(source.path, trust_remote_code=trust_remote_code)
    register_pruned()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # tokenizers raises bare Exception for a malformed tokenizer.json
        raise PrunekitError(f"The tokenizer in {source.path} can't be loaded: {reason(error)}.") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast("PreTrainedTokenizerBase", tokenizer)
