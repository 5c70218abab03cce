"""What every target is: what it needs, what it writes, and how its runtime opens the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prunekit.errors import PrunekitError
from prunekit.export.generation import Generation, generation_of
from prunekit.models.source import Source, load_model, load_tokenizer
from prunekit.utils.provenance import install_extra, installed

if TYPE_CHECKING:
    import torch

    from prunekit.models.runner import Runner

# Names that mean the same precision in different worlds. Each target lists the one its own tools print.
_SAME = (("fp32", "f32", "float32"), ("fp16", "f16", "float16"), ("bf16", "bfloat16"))

DEFAULT_CONTEXT = 2048
CPU = "cpu"

PADDED_LEFT = (
    "Prompts of different lengths go in together filled up on the left, with 0 in `attention_mask` there and "
    "`position_ids` that count from the first token."
)
# For snippets, which work in the folder, and beside it once it is named.
FOLDER = 'folder = "this-folder" if Path("this-folder").is_dir() else "."  # run it in this folder, or name it'


@dataclass(frozen=True)
class Options:
    """What the user may choose. ``dtype`` "auto" is the target's first; ``context_length`` bounds prompt plus answer
    where a format has to know (default: the model's own, at most 2048); ``tensor_parallel`` is vLLM's, ``aot``
    torch-export's, ``layout`` hf's. ``pad_ffn`` pads every FFN with zero channels to a multiple (default: the
    target's ``ffn_multiple``), which changes nothing but its speed and size. ``trust_remote_code`` lets a tokenizer
    that is code be run. ``device`` is where the result is run and compared (cpu, cuda, cuda:1), and what is compiled
    is compiled for; "auto" is the CPU, and with ``aot`` the GPU where there is one."""

    dtype: str = "auto"
    context_length: int | None = None
    tensor_parallel: int = 1
    aot: bool = False
    layout: Literal["per-layer", "uniform"] = "per-layer"
    pad_ffn: int | None = None
    trust_remote_code: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("context_length", "tensor_parallel", "pad_ffn"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise PrunekitError(
                    f"{name.replace('_', ' ').capitalize()} must be a whole number of at least 1, got {value!r}."
                )
        if self.layout not in ("per-layer", "uniform"):
            raise PrunekitError(f"The layout must be per-layer or uniform, got {self.layout!r}.")


@dataclass(frozen=True)
class Job:
    """One checkpoint on its way to one target. ``dtype`` is one of the target's own names; ``original`` is the
    checkpoint that ``source`` was padded from, where it was; ``device`` is ``cpu`` or such as ``cuda:0``."""

    source: Source
    options: Options
    dtype: str
    original: Source | None = None
    device: str = CPU

    @property
    def on_gpu(self) -> bool:
        return self.device != CPU

    @cached_property
    def model(self) -> Any:
        """The checkpoint as transformers runs it, float32 on the CPU, to be read and not changed."""
        return self.load("float32")

    def load(self, dtype: str) -> Any:
        """The checkpoint in ``dtype`` (a name in torch) on the CPU, a model of its own that may be changed."""
        made: Any = load_model(self.source, dtype=dtype, device="cpu")
        self._loaded.append(made)
        return made

    def release(self) -> None:
        """Give back the memory of all weights that were loaded: nothing made of them may be used any more. torch keeps
        what it has traced, so that forgetting a model does not free it."""
        self.__dict__.pop("model", None)
        for model in self._loaded:
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data = tensor.data.new_empty(0)
        self._loaded.clear()

    @cached_property
    def _loaded(self) -> list[Any]:
        return []

    @cached_property
    def tokenizer(self) -> Any:
        """Raises PrunekitError where the checkpoint has none that works without running its code."""
        return load_tokenizer(self.source, trust_remote_code=self.options.trust_remote_code)

    @cached_property
    def generation(self) -> Generation:
        """The model's end tokens, chat templates and sampling. Raises PrunekitError where a file is damaged."""
        try:
            tokenizer = self.tokenizer
        except PrunekitError:
            tokenizer = None
        return generation_of(self.original or self.source, tokenizer)

    @property
    def context_length(self) -> int:
        """Prompt and answer together, in tokens. Raises PrunekitError where more is asked than the model can."""
        most = getattr(self.source.config, "max_position_embeddings", None) or DEFAULT_CONTEXT
        wanted = self.options.context_length
        if wanted is not None and wanted > most:
            raise PrunekitError(
                f"A context of {wanted:,} tokens is beyond the {most:,} positions {self.source.name} was made for; "
                "choose a smaller --context-length."
            )
        return wanted or min(most, DEFAULT_CONTEXT)


@dataclass(frozen=True)
class Requirement:
    """A distribution that a target needs. ``extra`` is the extra of prunekit that brings it, ``distributions`` are its
    other names; ``cuda`` is how the build for CUDA is had, where that is another one."""

    package: str
    extra: str | None = None
    distributions: tuple[str, ...] = ()
    cuda: str | None = None

    @property
    def version(self) -> str | None:
        """The installed version, None where there is none."""
        names = (self.package, *self.distributions)
        return next((found for name in names if (found := installed(name))), None)

    def how(self, kind: str = CPU) -> str:
        """The command that brings it, for a ``kind`` of device."""
        if self.cuda is not None and kind == "cuda":
            return self.cuda
        return install_extra(self.extra) if self.extra else f"pip install {self.package}"


@dataclass(frozen=True)
class Written:
    """What a target wrote. ``notes`` are sentences for the user (tensors that fell back to a larger type, a deprecated
    format); ``decode_bytes`` are the weight bytes that one decode step reads (an embedding table of which it reads one
    row is left out); ``facts`` go into the manifest as they are (JSON values). ``placed`` are the keys of
    :meth:`~prunekit.export.generation.Generation.items` that the format holds: a note tells of the others. ``runs_on``
    are the kinds of device that this very export runs on, where they are fewer than the target's."""

    notes: tuple[str, ...] = ()
    decode_bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    placed: frozenset[str] = frozenset()
    runs_on: tuple[str, ...] | None = None


class Target(ABC):
    """One format and the runtime that runs it. Stateless; heavy imports belong inside the methods.

    ``writes_with`` is needed to export, ``runs_with`` to verify and to time. ``limits`` are whole sentences: what this
    target can't do, and what to take instead. ``unverified`` says why nothing can be run here, where that is so.
    ``first_gpu_only`` says that the runtime takes the first GPU it sees; ``compiles`` that `--aot` does something.
    ``library`` is the hub's name of what loads the result, where it has one.
    ``ffn_multiple`` is what FFN widths are padded to unless the user says otherwise. ``takes_removed`` says that layers
    may lack their attention or FFN. ``half_sums`` says that the runtime adds up products of fp16 in fp16 where the
    processor can. ``program`` is set where the format is one: it says what a file of it can do to whoever runs it.
    ``batches`` tells readers how prompts of different lengths are read together. ``devices`` are the kinds of device
    that the runtime runs on, ``only_cpu`` says why there is no GPU among them. ``widens_halves`` says that it keeps
    16-bit weights in 32 bits on a CPU, and ``tf32`` that on CUDA it multiplies float32 numbers rounded to TF32.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]
    writes_with: ClassVar[tuple[Requirement, ...]] = ()
    runs_with: ClassVar[tuple[Requirement, ...]] = ()
    limits: ClassVar[tuple[str, ...]] = ()
    unverified: ClassVar[str | None] = None
    library: ClassVar[str | None] = None
    ffn_multiple: ClassVar[int] = 1
    takes_removed: ClassVar[bool] = False
    half_sums: ClassVar[bool] = False
    program: ClassVar[str | None] = None
    first_gpu_only: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    batches: ClassVar[str] = PADDED_LEFT
    devices: ClassVar[tuple[str, ...]] = (CPU,)
    only_cpu: ClassVar[str | None] = None
    widens_halves: ClassVar[bool] = False
    tf32: ClassVar[bool] = False

    def own_device(self) -> str | None:
        """The device that the runtime takes whatever is asked for, where it is one that does so. None elsewhere."""
        return None

    def check_device(self, kind: str) -> None:
        """Raises PrunekitError where the installed runtime can't use that kind of device (``cpu``, ``cuda``), which is
        one of :attr:`devices` and is there. The message names the package to install."""
        return

    def computes(self, dtype: str, device: str) -> bool:
        """Whether the runtime has kernels of ``dtype``, one of :attr:`dtypes`, for ``device``."""
        return True

    def check(self, job: Job) -> None:
        """Raises PrunekitError where the target can't take this model or these options. Reads no weights."""
        return

    @abstractmethod
    def write(self, job: Job, folder: Path) -> Written:
        """Write everything that belongs to the export into ``folder``, which exists and is empty."""

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        """Raises PrunekitError where opening ``folder`` would make the runtime do more than compute: load libraries,
        read files that are not among ``files``, its listed ones. Not for formats that are programs."""
        return

    @abstractmethod
    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        """The export in ``folder``, written by this process or checked, in its real runtime on ``device``, which may
        trust all that it finds there (:meth:`prunekit.export.export.OpenedExport.open` checks first). Raises
        PrunekitError where the runtime refuses it, or would run it elsewhere."""

    def open_exactly(self, folder: Path, device: str = CPU) -> Runner:
        """As :meth:`open`, for comparing: with nothing rounded but what the export rounds, where the runtime's defaults
        round more (a 16-bit KV cache)."""
        return self.open(folder, None, device)

    def stored_weights(self, job: Job, folder: Path) -> Mapping[str, torch.Tensor] | None:
        """The weights as ``folder`` holds them, dequantised to float32, by their names in transformers.

        Only where ``job.dtype`` rounds so hard that logits of the original model prove nothing (below 16 bits): the
        parity gate then compares weights with weights, and the runtime with PyTorch on *these* weights. None elsewhere.
        """
        return None

    @abstractmethod
    def usage(self, job: Job) -> str:
        """Markdown for the export's README: how to run it, with a snippet that works as it stands."""

    def dtype(self, wanted: str, device: str = CPU) -> str:
        """The target's own name of a precision. Raises PrunekitError for one it doesn't have. "auto" is the first that
        ``device`` has."""
        if wanted == "auto":
            return next(each for each in self.dtypes if self.computes(each, device))
        for names in ((wanted,), *_SAME):
            if wanted in names:
                for name in names:
                    if name in self.dtypes:
                        return name
        raise PrunekitError(f"{self.name} has no dtype {wanted!r}; choose one of {', '.join(self.dtypes)}.")

    def missing(self, requirements: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
        return tuple(each for each in requirements if each.version is None)


def prepared(
    target: Target, source: Source, options: Options, original: Source | None = None, device: str = CPU
) -> Job:
    """The job of exporting ``source`` to ``target``, checked. Raises PrunekitError where it can't be done."""
    if options.pad_ffn is None:
        options = replace(options, pad_ffn=target.ffn_multiple)
    job = Job(source, options, target.dtype(options.dtype, device), original, device)
    if not target.computes(job.dtype, device):
        able = ", ".join(each for each in target.dtypes if target.computes(each, device))
        raise PrunekitError(
            f"{target.name}'s runtime has no kernels of {job.dtype} for {device.partition(':')[0]}; choose one of "
            f"{able}, or another --device."
        )
    job.context_length  # noqa: B018  (raises)
    if not target.takes_removed:
        source.shape.check_whole_layers(
            f"{target.name} takes no such layers; export it with --to hf, or prune the original model again with "
            "`prunekit prune --plan plan.json --layout uniform`, which puts zeros there, and export that"
        )
    target.check(job)
    return job


@contextmanager
def runtime_errors(what: str) -> Iterator[None]:
    """Turns whatever a runtime raises into one sentence: each has exception types of its own."""
    from prunekit.utils.quiet import reason

    try:
        yield
    except (PrunekitError, MemoryError, OSError):
        raise
    except Exception as error:
        raise PrunekitError(f"{what}: {reason(error)}.") from error
