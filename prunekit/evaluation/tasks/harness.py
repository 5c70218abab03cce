"""lm-evaluation-harness: finding its tasks, giving them local data, and a model to ask. Needs the extra ``lm-eval``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.tasks.task_data import MissingData, TaskData
from prunekit.utils.provenance import install_extra, installed
from prunekit.utils.quiet import quiet, reason

# Reading all of lm-eval's 14,000 task files takes a minute; these folders hold what is asked for most.
_USUAL = ("mmlu/default", "truthfulqa", "agieval")
# lm-eval holds the logits of all positions, twice: numbers of one batch at a time, 4 bytes each.
_LOGIT_ELEMENTS = 1 << 29


def check_installed() -> str:
    """lm-eval's version. Raises PrunekitError where it is not installed."""
    version = installed("lm-eval")
    if version is None or find_spec("lm_eval") is None:
        raise PrunekitError(f"--tasks needs lm-evaluation-harness: {install_extra('lm-eval')}.")
    return version


@contextmanager
def silent() -> Iterator[None]:
    """lm-eval, the hub's clients and transformers without lines and bars of their own while the block runs."""
    import datasets
    import lm_eval.api.task as task_module
    from huggingface_hub import utils as hub
    from tqdm import tqdm

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, own = [logger.level for logger in loggers], task_module.tqdm
    bars = [library for library in (datasets, hub) if not library.are_progress_bars_disabled()]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for library in bars:
        library.disable_progress_bars()
    task_module.tqdm = partial(tqdm, disable=True)
    try:
        with quiet():
            yield
    finally:
        task_module.tqdm = own
        for library in bars:
            library.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def index(names: list[str], local: bool = False) -> Any:
    """A TaskManager that knows all ``names``; with ``local``, of tasks whose data local files can provide.

    Raises PrunekitError where there is no task, group or tag so called.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    usual = lm_eval.tasks.TaskManager(include_path=[root / each for each in _USUAL], include_defaults=False)
    if all(name in usual.task_index for name in names):
        return usual
    manager = usual if local else lm_eval.tasks.TaskManager()
    for name in names:
        if name in manager.task_index:
            continue
        if local:
            raise PrunekitError(
                f"The task {name!r} can't be made from local files; mmlu, truthfulqa and agieval can, or one of their "
                "subjects such as mmlu_anatomy."
            )
        near = get_close_matches(name, usual.all_tasks, 3) or get_close_matches(name, manager.all_tasks, 3)
        hint = f"it has {', '.join(near)}, and what else `lm-eval ls tasks` lists" if near else "see `lm-eval ls tasks`"
        raise PrunekitError(f"lm-eval {installed('lm-eval')} has no task {name!r}; {hint}.")
    return manager


def load(manager: Any, name: str) -> list[Any]:
    """The tasks and groups that ``name`` means, with data from the hub (or its cache).

    Raises PrunekitError where the data can't be had.
    """
    try:
        loaded = manager.load([name])
    except ImportError as error:
        raise PrunekitError(
            f"The task {name} needs a package that is missing ({reason(error)}); install it, or leave the task out."
        ) from None
    except Exception as error:  # whatever datasets and the hub's client raise where there is no network
        raise PrunekitError(
            f"The data of the task {name} could not be loaded: {reason(error)}. Go online once, or give local files "
            "with --task-data."
        ) from None
    if name in loaded["groups"]:
        return [loaded["groups"][name]]
    return list(loaded["tasks"].values())


def load_local(manager: Any, name: str, data: TaskData, left_out: dict[str, str]) -> list[Any]:
    """The tasks and groups that ``name`` means, as lm-eval defines them, with rows from ``data``.

    What the folder can't provide is put into ``left_out`` with the reason. Raises PrunekitError where a line is broken.
    """
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    entry = manager.task_index[name]
    kind = entry.kind.name
    if kind == "TAG":
        return [each for child in sorted(entry.tags) for each in load_local(manager, child, data, left_out)]
    if kind == "GROUP":
        known = {field.name for field in fields(GroupConfig)}
        group = Group.from_config({key: value for key, value in entry.cfg.items() if key in known})
        for child in entry.cfg["task"]:
            if not isinstance(child, str):
                left_out[name] = "its definition changes other tasks, which works online only"
                continue
            for each in load_local(manager, child, data, left_out):
                group.add(each)
        return [group] if len(group) else []
    try:
        rows = data.splits(entry.cfg.get("dataset_path") or name, entry.cfg.get("dataset_name"))
    except MissingData as missing:
        left_out[name] = str(missing)
        return []
    override = {"task": name, "custom_dataset": _dataset(rows)}
    return list(manager.load([{"group": f"local {name}", "task": [override]}])["tasks"].values())


def _dataset(rows: dict[str, list[dict[str, Any]]]) -> Callable[..., Any]:
    def make(**metadata: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_list(each) for split, each in rows.items()})

    return make


def check_runnable(task: Any) -> None:
    """Raises PrunekitError where a task would run code that the model writes, or needs more than text."""
    if getattr(task, "UNSAFE_CODE", False):
        raise PrunekitError(f"The task {task.task_name} runs code that the model writes, which prunekit does not do.")
    if getattr(task, "MULTIMODAL", False):
        raise PrunekitError(f"The task {task.task_name} needs pictures or sound, and prunekit's models read only text.")


def set_few_shot(task: Any, few_shot: int | None) -> bool:
    """Set how many examples precede each question; True where ``few_shot`` could be followed.

    None means what lm-eval publishes for the task, and 5 for MMLU, which leaves the number open. A task is left as
    published where its definition fixes none at all, or it has no examples apart from the questions it scores.
    Raises PrunekitError where there are fewer examples than asked for.
    """
    published = task.get_config("num_fewshot")
    if few_shot is None:
        shots = published if published is not None else 5 if task.task_name.startswith("mmlu_") else 0
    elif published == 0 or not _has_examples(task):
        shots = published or 0
    else:
        shots = few_shot
    there = len(list(task.fewshot_docs())) if shots else 0
    if shots > there:
        raise PrunekitError(f"{task.task_name} has {there} examples; ask for at most so many with --few-shot.")
    task.set_config("num_fewshot", shots)
    return few_shot is None or shots == few_shot


def _has_examples(task: Any) -> bool:
    config = task.config
    scored = config.test_split or config.validation_split
    return any(split and split != scored for split in (config.fewshot_split, config.training_split)) or bool(
        config.test_split and config.validation_split
    )


def harness_model(model: Any, tokenizer: Any, batch_size: int, name: str, answered: Callable[[], None]) -> Any:
    """lm-eval's own HFLM around a loaded model; ``answered`` is called for each request that was answered.

    ``truncated`` counts the requests that are longer than the model's positions, whose beginning lm-eval cuts off.
    Raises PrunekitError, while it works, where a likelihood is not a number.
    """
    from lm_eval.models.huggingface import HFLM

    class Model(HFLM):
        truncated = 0

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:
            room = self.max_length + 1
            sizes: dict[int, list[int]] = {}
            for place, (_, context, answer) in enumerate(requests):
                tokens = len(context) + len(answer)
                self.truncated += tokens > room
                fits = _LOGIT_ELEMENTS // (min(tokens, room) * model.config.vocab_size)
                sizes.setdefault(max(1, min(batch_size, fits)), []).append(place)
            scores: dict[int, tuple[float, bool]] = {}
            for size, places in sizes.items():
                self.batch_size_per_gpu = size
                each = super()._loglikelihood_tokens([requests[place] for place in places], True, override_bs)
                scores.update(zip(places, each, strict=True))
            self.batch_size_per_gpu = batch_size
            if any(likelihood != likelihood for likelihood, _ in scores.values()):
                raise PrunekitError(
                    f"{name} gave logits that are not numbers; its weights are broken or its dtype overflows. Try "
                    "--dtype float32, and if that does not help make the checkpoint again."
                )
            return [scores[place] for place in range(len(requests))]

    class Counter:
        """lm-eval's hook for a cache of answers, told of each of them."""

        def add_partial(self, kind: str, request: Any, answer: Any) -> None:
            answered()

    made = Model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    made.set_cache_hook(Counter())
    return made
