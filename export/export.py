"""Export a checkpoint: write, load in the real runtime, compare, and keep it only if it holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from prunekit.checkpoint.layout import padded
from prunekit.checkpoint.rebuild import rebuild
from prunekit.checkpoint.record import made_from
from prunekit.errors import PrunekitError
from prunekit.evaluation.phases import reading_work, reads
from prunekit.export.device import KINDS, device_facts, kind_of, place
from prunekit.export.edge.script import SCRIPT, bench_script
from prunekit.export.parity import Parity, ask, check_parity, judge, sample
from prunekit.export.quality import (
    Loss,
    OwnText,
    TextQuality,
    check_baseline,
    in_pytorch,
    in_runtime,
    own_text,
    text_quality,
)
from prunekit.export.readme import export_readme
from prunekit.export.registry import target as target_named
from prunekit.export.target import CPU, Job, Options, Requirement, Target, Written, prepared
from prunekit.export.trial import try_export
from prunekit.models.origin import copy_legal_files, read_origin
from prunekit.models.runner import Runner
from prunekit.models.source import Source, as_source, resolve
from prunekit.plan import whole_plan
from prunekit.plan.shape import ModelShape
from prunekit.utils.files.atomic import new_folder, read_json
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.files.listed_folder import Seen, check_listed, check_unchanged
from prunekit.utils.files.replacing import EXPORT
from prunekit.utils.files.sizes import folder_bytes
from prunekit.utils.machine import speed_key
from prunekit.utils.names import nearest
from prunekit.utils.phases.run import Run
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import aside, progress
from prunekit.utils.provenance import installed, model_label, versions

MANIFEST = EXPORT.manifest
PARITY = "parity.json"
COMPARING = "comparing with PyTorch"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Exported:
    """What :func:`export` made. ``parity`` is None where nothing could be run, for the reason ``unverified``;
    ``device`` is the kind of device that it was run on and made for; ``quality`` is of the user's own text, where one
    was given."""

    path: Path
    target: str
    dtype: str
    file_bytes: int
    written: Written
    parity: Parity | None
    unverified: str | None
    device: str = CPU
    quality: TextQuality | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "target": self.target,
            "dtype": self.dtype,
            "device": self.device,
            "file_bytes": self.file_bytes,
            "verified": self.parity is not None,
            "unverified": self.unverified,
            "notes": list(self.written.notes),
            "facts": dict(self.written.facts),
            "parity": self.parity.to_dict() if self.parity else None,
            "quality": self.quality.to_dict() if self.quality else None,
        }


def export(
    source: Source,
    to: str,
    out: Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    verify: bool = True,
    text: str | None = None,
    dense: Source | None = None,
) -> Exported:
    """Write ``source`` for the target named ``to`` into the folder ``out``, atomically.

    The result is opened in the target's runtime and compared with PyTorch before it gets its name; where it differs,
    nothing stays. Raises PrunekitError then, and where a package or the device is missing, the target can't take this
    model, or the folder can't be written. ``verify`` False leaves the comparison out, and the manifest says so.
    On ``text``, the user's own, perplexity is measured before and after: of ``dense``, the model that ``source`` was
    pruned from (where it is given), of ``source``, and of the result in its runtime.
    """
    target = target_named(to)
    check_packages(target, verify, kind_of((options or Options()).device))
    options = options or Options()
    device = chosen_device(target, options)
    job = prepared(target, source, options, device=device)
    if dense is not None and text is None:
        raise PrunekitError("The baseline is for perplexity on a text of yours: name one, or leave the baseline out.")
    given = None if text is None else own_text(job, text)
    if dense is not None:
        check_baseline(job, dense)
    compared = verify and target.unverified is None
    with ExitStack() as stack:
        read = [] if given is None else [reads(model_label(each.name), given.name) for each in (dense, source) if each]
        run = stack.enter_context(phases(_writing(target), *([COMPARING] if compared else []), *read))
        if run is not None:
            _weigh(run, job, target, given, dense)
        folder = stack.enter_context(new_folder(out, overwrite, kind=EXPORT, inputs=source.inputs))
        multiple = job.options.pad_ffn or 1
        if any(layer != padded(layer, multiple) for layer in source.shape.layers):
            # Beside the export: a temporary folder elsewhere may be small.
            beside = stack.enter_context(temporary_folder(out.name, folder.parent))
            with aside("padding"):
                rebuild(source, whole_plan(source.shape), beside / "model", ffn_multiple=multiple)
            job = prepared(target, replace(resolve(f"{beside}/model"), name=source.name), options, source, device)
        try:
            with progress(_writing(target), 1) as advance:
                written = target.write(job, folder)
                advance()
        finally:
            job.release()
        left_out = job.generation.left_out(written.placed)
        if left_out:
            written = replace(written, notes=(*written.notes, left_out))
        if job.original is not None and options.pad_ffn is None:
            written = replace(written, notes=(*written.notes, _padded_note(job, target, multiple)))
        origin = read_origin(source.name, source.path)
        copy_legal_files(source.path, origin, folder)
        script = bench_script(target.name)
        if script is not None:
            (folder / SCRIPT).write_text(script, encoding="utf-8")
        with progress(COMPARING, 1) if compared else nullcontext():
            parity, unverified, exported = _verified(job, target, folder, verify, given)
        if parity is not None:
            check_parity(f"The {target.name} export of {model_label(source.name)}", parity, job)
            (folder / PARITY).write_text(json.dumps(_parity_report(job, target, parity), indent=1) + "\n")
        quality = None
        if given is not None:
            # The model that the user gave, not what was padded of it.
            before = in_pytorch(dense, given, "name the model that it was pruned from with --baseline")
            quality = text_quality(given, before, in_pytorch(source, given), exported)
        readme = export_readme(job, target, written, origin, quality, PARITY, MANIFEST)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        _write_manifest(folder, job, target, written, parity, unverified, quality)
        file_bytes = folder_bytes(folder)
    return Exported(out, target.name, job.dtype, file_bytes, written, parity, unverified, kind_of(device), quality)


def _writing(target: Target) -> str:
    return f"writing {target.name}"


def _weigh(run: Run, job: Job, target: Target, given: OwnText | None, dense: Source | None) -> None:
    """What is remembered of an earlier export says how long this one takes: no trial is like it."""
    place, options = speed_key(CPU), job.options
    parameters = float(job.source.shape.parameters)
    for title in (_writing(target), COMPARING):
        run.weigh({title: parameters}, [title, target.name, job.dtype, options.pad_ffn, given is not None, *place])
    if given is not None:
        read = [each for each in (dense, job.source) if each is not None]
        work = {reads(model_label(each.name), given.name): reading_work(each.shape, given.tokens, 1) for each in read}
        run.weigh(work, ["reads", "float32", *place])


def chosen_device(target: Target, options: Options) -> str:
    """Where the export is run and what it is compiled for. Raises PrunekitError as :func:`place` does."""
    wanted = options.device
    if wanted == "auto" and options.aot and target.compiles:
        # Machine code belongs to a device, and whoever has a GPU compiles for that.
        import torch

        wanted = "cuda" if torch.cuda.is_available() else CPU
    return place(target, wanted)


def export_model(
    model: Source | str,
    to: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    verify: bool = True,
    text: str | None = None,
    baseline: Source | str | None = None,
    **options: Any,
) -> Exported:
    """Write ``model``, a checkpoint's folder or name, for the target ``to``, as `prunekit export --to` does.

    ``text`` and ``baseline``, the dense model, are for perplexity before and after; ``options`` are those of
    :class:`prunekit.export.target.Options`. Raises PrunekitError as :func:`export` does.

    >>> export_model("smaller", "gguf", "smaller-gguf", dtype="q4_k_m").file_bytes  # doctest: +SKIP
    101234567
    """
    known = [each.name for each in fields(Options)]
    for name in options:
        if name not in known:
            raise PrunekitError(f"There is no option {name!r}{nearest(name, known)}; there are {', '.join(known)}.")
    target_named(to)
    chosen = Options(**options)
    dense = None if baseline is None else as_source(baseline)
    return export(as_source(model), to, Path(out), chosen, overwrite=overwrite, verify=verify, text=text, dense=dense)


def _padded_note(job: Job, target: Target, multiple: int) -> str:
    assert job.original is not None
    before, after = (
        sum(layer.intermediate_size for layer in source.shape.layers) for source in (job.original, job.source)
    )
    return (
        f"FFN widths were padded with zero channels to multiples of {multiple} ({after / before - 1:.1%} more), at "
        f"which {target.name}'s kernels are fast. It changes no result; --pad-ffn 1 leaves it out."
    )


def check_packages(target: Target, verify: bool = True, kind: str = CPU) -> None:
    """Raises PrunekitError where a package is missing that exporting (or running the result on that ``kind`` of device)
    needs."""
    missing = target.missing(target.writes_with)
    if missing:
        raise PrunekitError(f"Exporting to {target.name} needs {_names(missing)}; {_how(missing, kind)}.")
    missing = target.missing(target.runs_with)
    if verify and target.unverified is None and missing:
        raise PrunekitError(
            f"Checking an export to {target.name} needs {_names(missing)} to run it; {_how(missing, kind)}, or say "
            "--no-verify to write it unchecked."
        )


def _names(requirements: tuple[Requirement, ...]) -> str:
    return " and ".join(each.package for each in requirements)


def _how(requirements: tuple[Requirement, ...], kind: str) -> str:
    return "run `" + " && ".join(dict.fromkeys(each.how(kind) for each in requirements)) + "`"


def _verified(
    job: Job, target: Target, folder: Path, verify: bool, text: OwnText | None
) -> tuple[Parity | None, str | None, Loss]:
    """The comparison with PyTorch, or why there is none; and the loss of the user's ``text`` in the runtime."""
    unverified = "--no-verify was given" if not verify else target.unverified
    if unverified is not None:
        return None, unverified, Loss(why=unverified)
    given = sample(job)
    with target.open_exactly(folder, job.device) as runner:
        answers, facts = ask(job, runner, given), dict(runner.facts)
        loss = Loss() if text is None else in_runtime(runner, text)
    # Only now: a large model must not be in memory twice.
    stored = target.stored_weights(job, folder)
    parity = judge(job, answers, given, stored, half_sums=target.half_sums, tf32=target.tf32)
    return replace(parity, runtime=facts), None, loss


def _parity_report(job: Job, target: Target, parity: Parity) -> dict[str, Any]:
    return {
        "target": target.name,
        "source": model_label(job.source.name),
        "device": device_facts(job.device),
        **parity.to_dict(),
        **_versions(target),
    }


def _versions(target: Target) -> dict[str, Any]:
    packages = {each.package: each.version for each in (*target.writes_with, *target.runs_with)}
    return {"versions": {**versions(), **packages, "numpy": installed("numpy")}}


def _write_manifest(
    folder: Path,
    job: Job,
    target: Target,
    written: Written,
    parity: Parity | None,
    unverified: str | None,
    quality: TextQuality | None,
) -> None:
    manifest = {
        "format": "prunekit-export",
        "version": MANIFEST_VERSION,
        "target": target.name,
        "dtype": job.dtype,
        "options": asdict(job.options),
        "source": {
            "name": model_label(job.source.name),
            "family": job.source.family.name,
            "fingerprint": (job.original or job.source).fingerprint,
            **made_from(job.original or job.source),
        },
        "shape": job.source.shape.to_dict(),
        "device": device_facts(job.device),
        "runs_on": list(written.runs_on or target.devices),
        "verified": parity is not None,
        "unverified": unverified,
        "context_length": job.context_length,
        "batches": target.batches,
        "decode_bytes": written.decode_bytes,
        "notes": list(written.notes),
        "facts": dict(written.facts),
        **({} if quality is None else {"quality": quality.to_dict()}),
        **_versions(target),
        "files": digests(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class OpenedExport:
    """An export folder as its manifest describes it. ``files`` are the hashes that it lists; ``own`` says that this run
    wrote it, so that nothing in it is a stranger's; ``seen`` is what :meth:`checked` hashed. ``runs_on`` are the kinds
    of device that it can be opened on. ``fingerprint`` and ``plan_sha256`` are of the checkpoint."""

    path: Path
    target: Target
    dtype: str
    name: str
    shape: ModelShape
    context_length: int
    decode_bytes: int | None
    verified: bool
    files: Mapping[str, str] = field(default_factory=dict)
    own: bool = False
    seen: Seen | None = None
    runs_on: tuple[str, ...] = (CPU,)
    fingerprint: str | None = None
    plan_sha256: str | None = None

    @property
    def file_bytes(self) -> int:
        """Bytes of everything in the folder."""
        return folder_bytes(self.path)

    def checked(self, trust_remote_code: bool = False, *, batch: int = 1, tokens: int = 8) -> OpenedExport:
        """This export, found to be safe to open and to run on ``batch`` texts of ``tokens`` tokens.

        Raises PrunekitError where the folder does not hold exactly the files of its manifest, where its format is a
        program (unless ``trust_remote_code``), where its files would make the runtime load code or files of others, or
        where a first run takes far more time or memory than its size explains.
        Hashes prove that nothing changed, not who wrote them, so a manifest vouches for no content.
        """
        if self.own:
            return self
        if self.target.program is not None and not trust_remote_code:
            raise PrunekitError(
                f"{self.path} is for {self.target.name}, and such a file is a program: {self.target.program}. Run it "
                "only if you trust who made it, with --trust-remote-code (trust_remote_code=True in Python)."
            )
        seen = check_listed(self.path, self.files, MANIFEST)
        if self.target.program is None:
            self.target.check_foreign(self.path, self.files)
        check_unchanged(self.path, seen)
        if self.target.program is None:
            gpu = kind_of(self.place()) != CPU
            try_export(self.path, seen, self.file_bytes, batch, tokens, gpu=gpu)
        return replace(self, seen=seen)

    def place(self, wanted: str = "auto") -> str:
        """The device it runs on where a user said ``wanted``. Raises PrunekitError where it can't."""
        return place(self.target, wanted, self.runs_on, str(self.path))

    def open(self, threads: int | None = None, *, trust_remote_code: bool = False, device: str = "auto") -> Runner:
        """The export in its runtime on ``device``, :meth:`checked` unless it was. Raises PrunekitError where it changed
        since, or can't run there."""
        device = self.place(device)
        if self.own:
            return self.target.open(self.path, threads, device)
        seen = self.seen or self.checked(trust_remote_code).seen or {}
        check_unchanged(self.path, seen)
        runner = self.target.open(self.path, threads, device)
        try:
            check_unchanged(self.path, seen)
        except PrunekitError:
            runner.close()
            raise
        return runner


def is_export(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_export(folder: Path, *, own: bool = False) -> OpenedExport:
    """What the manifest of ``folder`` says; no other file is read. ``own``: this process wrote it.

    Raises PrunekitError where ``folder`` holds no export, or its manifest is damaged.
    """
    if (folder / MANIFEST).is_symlink():
        raise PrunekitError(f"{folder / MANIFEST} is a link; put the file itself there, or export the model again.")
    data = read_json(folder / MANIFEST, "export manifest")
    try:
        if data["format"] != "prunekit-export" or data["version"] != MANIFEST_VERSION:
            raise ValueError("another format or version")
        for name, value in (("context_length", data["context_length"]), ("decode_bytes", data["decode_bytes"] or 1)):
            if type(value) is not int or not 0 < value < 1 << 62:
                raise ValueError(f"{name} is no ordinary number")
        target = target_named(data["target"])
        if data["dtype"] not in target.dtypes or not isinstance(data["source"]["name"], str):
            raise ValueError("it names no dtype or source")
        return OpenedExport(
            folder,
            target,
            data["dtype"],
            data["source"]["name"],
            _shape_of(data["shape"]),
            data["context_length"],
            data["decode_bytes"],
            bool(data["verified"]),
            dict(data["files"]),
            own,
            runs_on=_runs_on(data),
            fingerprint=_digest_of(data["source"].get("fingerprint")),
            plan_sha256=_digest_of(data["source"].get("plan_sha256")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PrunekitError(f"{folder / MANIFEST} is damaged ({error}); export the model again.") from None


def _digest_of(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        raise ValueError("a hash of its source is none")
    return value


def _runs_on(data: Mapping[str, Any]) -> tuple[str, ...]:
    # Exports of before there was a choice were made for the CPU.
    kinds = data.get("runs_on", [CPU])
    if not isinstance(kinds, list) or not kinds or not all(kind in KINDS for kind in kinds):
        raise ValueError("it runs on no known device")
    return tuple(kinds)


def _shape_of(data: Any) -> ModelShape:
    try:
        return ModelShape.from_dict(data)
    except PrunekitError as error:  # its advice is about plans
        raise ValueError(str(error).partition(". ")[0]) from None
