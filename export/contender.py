"""A model in any runtime, ready to be timed: exported first, unless it is an export already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.export.device import kind_of, place
from prunekit.export.export import OpenedExport, check_packages, export, is_export, read_export
from prunekit.export.registry import target as target_named
from prunekit.export.target import CPU, DEFAULT_CONTEXT, Options
from prunekit.models.source import Source, resolve
from prunekit.profiling.compare import Contender, ModelFacts
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.phases.telling import unneeded
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label


@contextmanager
def exports(
    names: tuple[str, ...],
    runtime: str,
    dtype: str = "auto",
    *,
    revisions: tuple[str | None, ...] | None = None,
    batch: int = 1,
    at_least: int = 1,
    keep: Path | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
) -> Iterator[tuple[OpenedExport, ...]]:
    """The models ``names``, of a hub in ``revisions``, as exports for ``runtime``: folders that are exports as they lie
    there, anything else (a checkpoint, a hub id) exported and verified, with room for ``at_least`` tokens, into
    ``keep`` or into a folder that goes when the block ends. They run on ``device``, where what is exported is compared.

    Exports that this call did not write are checked first, and tried on ``batch`` texts of ``at_least`` tokens; those
    that are programs need ``trust_remote_code``, which also lets tokenizers that are code run. Raises PrunekitError
    where a folder is an export for another runtime, dtype or device, or not safe to open, or exporting fails.
    """
    target = target_named(runtime)
    check_packages(target)
    wanted = target.dtype(dtype, place(target, device))
    with temporary_folder("bench") as temporary:

        def matching(name: str, opened: OpenedExport) -> OpenedExport:
            if opened.target.name != runtime or (dtype != "auto" and opened.dtype != wanted):
                raise PrunekitError(
                    f"{name} is an export for {opened.target.name} in {opened.dtype}, not for {runtime} in {wanted}; "
                    "give --runtime and --dtype to match, or the checkpoint itself."
                )
            opened.place(device)
            return opened.checked(trust_remote_code, batch=batch, tokens=min(at_least, opened.context_length))

        def folder_of(index: int, name: str, revision: str | None) -> Path:
            if is_export(folder := Path(name).expanduser()):
                return folder
            label = f"{model_label(name)}-{revision}" if revision else model_label(name)
            on = "" if device in ("auto", CPU) else f"-{kind_of(device)}"
            return (keep or temporary) / f"{index}-{label.replace('/', '-')}-{runtime}-{wanted}{on}"

        asked = [*zip(names, revisions or (None,) * len(names), strict=True)]
        folders = [folder_of(index, *each) for index, each in enumerate(asked)]
        # What lies there already may be refused, which should not wait for exports.
        made = {
            folder: matching(name, read_export(folder))
            for name, folder in zip(names, folders, strict=True)
            if is_export(folder)
        }
        for (name, revision), folder in zip(asked, folders, strict=True):
            if folder in made:
                unneeded(exporting(name), "taken as it is")
            else:
                source = resolve(name, revision=revision)
                options = Options(
                    wanted, _context(source, at_least), trust_remote_code=trust_remote_code, device=device
                )
                with progress(exporting(name), 1):
                    export(source, runtime, folder, options)
                made[folder] = matching(name, read_export(folder, own=True))
        opened = tuple(made[folder] for folder in folders)
        if len({each.dtype for each in opened}) > 1:
            raise PrunekitError(
                f"The exports are in {' and '.join(each.dtype for each in opened)}; compare like with like."
            )
        if len(places := {each.place(device) for each in opened}) > 1:
            raise PrunekitError(f"These exports run on {' and '.join(sorted(places))}; say which with --device.")
        yield opened


def exporting(name: str) -> str:
    """What the phase is called in which that model is exported."""
    return f"export of {model_label(name)}"


def contender(
    opened: OpenedExport, threads: int | None = None, *, peak_bytes: int | None = None, device: str = "auto"
) -> Contender:
    """An export, opened in its runtime on ``device``, as :func:`prunekit.profiling.compare.bench` takes it."""
    runner = opened.open(threads, device=device)
    shape = opened.shape
    read = opened.decode_bytes or shape.decode_bytes(4)
    if opened.target.widens_halves and opened.dtype in ("fp16", "bf16") and opened.place(device) != CPU:
        read //= 2
    return Contender(
        runner,
        shape,
        ModelFacts(
            name=opened.name,
            parameters=shape.parameters,
            weight_bytes=read if opened.decode_bytes else 0,
            kv_bytes_per_token=shape.kv_bytes_per_token(runner.kv_element_bytes),
            decode_bytes=read,
            file_bytes=opened.file_bytes,
            peak_bytes=peak_bytes,
            fingerprint=opened.fingerprint,
            plan_sha256=opened.plan_sha256,
        ),
        opened.context_length,
    )


def _context(source: Source, at_least: int) -> int | None:
    """None, the default, unless more room than that is needed and the model has it."""
    most = getattr(source.config, "max_position_embeddings", None) or at_least
    return min(at_least, most) if at_least > DEFAULT_CONTEXT else None
