"""Scores of logged requests, each computed once: models are loaded when they are needed, together where both fit."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.perplexity import check_vocabularies
from prunekit.models.source import Source, load_model, load_tokenizer, pick_device, pick_dtype, resolve
from prunekit.models.tokenizer.same_tokens import first_difference, shown
from prunekit.monitoring.log.request import Request
from prunekit.monitoring.scoring.contexts import Context, Reader, ScoringConfig
from prunekit.monitoring.scoring.dense import KeptStates, Said, reads_log
from prunekit.monitoring.scoring.deployed import score
from prunekit.monitoring.scoring.endpoint import DenseServer
from prunekit.monitoring.scoring.replaced import Look, look, may_change
from prunekit.monitoring.scoring.scores import RequestScore
from prunekit.utils.numerics.recompute import free_bytes
from prunekit.utils.phases.telling import phases

DEPLOYED, DENSE = "the deployed model", "the dense model"
# Scores that are remembered; of each a hidden state of 1 to 16 kB.
_REMEMBERED = 1 << 15


class Scorer:
    """Scores requests under the ``deployed`` model, and beside the ``dense`` one: a checkpoint, a server that has it,
    or None.

    A GGUF file is read as the weights it holds. What runs in ONNX Runtime or another runtime is scored with the
    checkpoint that it was exported from. A watch may run for months: where files were replaced since, all is read anew
    when the next window asks for the :attr:`identity`. Raises PrunekitError where the two models do not read text as
    the same tokens.
    """

    def __init__(
        self,
        deployed: Source,
        dense: Source | DenseServer | None = None,
        config: ScoringConfig | None = None,
        *,
        dtype: str = "auto",
        device: str = "auto",
    ):
        self.deployed, self.dense, self.config = deployed, dense, config or ScoringConfig()
        self._dtype, self._device = dtype, device
        self._known: OrderedDict[str, RequestScore | str] = OrderedDict()
        self._loaded: dict[str, Any] = {}
        sources = [each for each in (deployed, dense) if isinstance(each, Source)]
        self._looks: dict[str, Look] = {each.name: look(each.name) for each in sources if may_change(each)}
        self._reader = self._read(deployed, dense)

    def _read(self, deployed: Source, dense: Source | DenseServer | None) -> Reader:
        tokenizer = load_tokenizer(deployed)
        reader = Reader(tokenizer, deployed.shape.vocab_size, self.config)
        _check_positions(deployed, self.config)
        if isinstance(dense, Source):
            _check_alike(deployed, tokenizer, dense)
            _check_positions(dense, self.config)
        return reader

    def _renew(self) -> None:
        """Where files were replaced, forget what was read of them. What is half replaced raises PrunekitError, and is
        looked at again later."""
        looks = {name: look(name) for name in self._looks}
        if looks == self._looks:
            return
        self._known.clear()
        self._release()
        dense = self.dense
        try:
            deployed = resolve(self.deployed.name) if self.deployed.name in looks else self.deployed
            if isinstance(dense, Source) and dense.name in looks:
                dense = resolve(dense.name)
            self._reader = self._read(deployed, dense)
        except OSError as error:  # taken away while it is read
            raise PrunekitError(
                f"The files of a model were replaced and can't be read: {error.strerror or error}."
            ) from None
        self.deployed, self.dense = deployed, dense
        self.__dict__.pop("_both_fit", None)
        self._looks = looks

    @property
    def identity(self) -> dict[str, Any]:
        """What scores depend on beside the request, JSON values: scores of another identity can't be compared. Raises
        PrunekitError where files were replaced by what is no model."""
        self._renew()
        dense = self.dense
        return {
            "deployed": self.deployed.fingerprint,
            "dense": dense.fingerprint if isinstance(dense, Source) else None if dense is None else dense.identity,
            "dtype": str(pick_dtype(self._dtype) or self.deployed.dtype).removeprefix("torch."),
            "prompt_tokens": self.config.prompt_tokens,
            "answer_tokens": self.config.answer_tokens,
        }

    def scores(
        self, requests: Sequence[Request], shadowed: Sequence[Request] = ()
    ) -> tuple[list[RequestScore], dict[str, str]]:
        """Scores of ``requests`` in their order, and for those that have none, by their ids, why. The dense model reads
        those of ``shadowed``, which are some of them.

        Raises PrunekitError where a model can't be loaded, or gives numbers that are none.
        """
        keys = [_key(each) for each in requests]
        self._prepare(dict(zip(keys, requests, strict=True)), set(map(_key, shadowed)))
        found = [self._known[key] for key in keys]
        made = [score for score in found if isinstance(score, RequestScore)]
        why = {each.id: score for each, score in zip(requests, found, strict=True) if isinstance(score, str)}
        return made, why

    def _prepare(self, requests: Mapping[str, Request], shadowed: Collection[str]) -> None:
        wanted = shadowed if self.dense is not None else ()
        # Different requests may have one id in a log that is badly kept.
        new = [replace(each, id=key) for key, each in requests.items() if not self._knows(key, key in wanted)]
        if not new:
            return
        both_fit = self._both_fit
        contexts, why = self._reader.read(new)
        beside = [each for each in contexts if each.id in wanted]
        names = [DENSE] * bool(beside) + [DEPLOYED] * bool(contexts)
        with phases(*map(reads_log, names)):
            said = self._dense_reads(beside)
            made = list(score(self._model(DEPLOYED), contexts, said, DEPLOYED)) if contexts else []
        if not both_fit:
            self._release()
        self._known.update(why)
        self._known.update((each.id, each) for each in made)
        while len(self._known) > max(_REMEMBERED, len(requests)):
            self._known.popitem(last=False)

    def _knows(self, key: str, shadowed: bool) -> bool:
        """Whether the scores of a request are there; then they are remembered longest."""
        known = self._known.get(key)
        if known is None or (shadowed and isinstance(known, RequestScore) and known.shadow is None):
            return False
        self._known.move_to_end(key)
        return True

    def _dense_reads(self, contexts: Sequence[Context]) -> Any:
        if not contexts or self.dense is None:
            return dict[str, Said]()
        if isinstance(self.dense, DenseServer):
            return self.dense.read(contexts, DENSE)
        said = KeptStates(DENSE)
        said.read(self._model(DENSE), contexts)
        if not self._both_fit:
            self._release()
        return said

    def _model(self, name: str) -> Any:
        if name not in self._loaded:
            source = self.deployed if name == DEPLOYED else self.dense
            assert isinstance(source, Source)
            self._loaded[name] = load_model(source, dtype=self._dtype, device=self._device)
        return self._loaded[name]

    def _release(self) -> None:
        self._loaded.clear()
        gc.collect()

    @cached_property
    def _both_fit(self) -> bool:
        """Whether both models may stay in memory. Half of what is free at first is left to others."""
        sources = [each for each in (self.deployed, self.dense) if isinstance(each, Source)]
        size = sum(each.shape.parameters * (pick_dtype(self._dtype) or each.dtype).itemsize for each in sources)
        return size < free_bytes(pick_device(self._device)) / 2


def _key(request: Request) -> str:
    """What tells the tokens of a request from those of any other, without its texts."""
    tokens = (request.prompt, request.prompt_ids, request.answer, request.answer_ids, request.messages)
    said = repr((request.id, tokens, request.logprob_mean))
    return blake2b(said.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def _check_positions(source: Source, config: ScoringConfig) -> None:
    most = getattr(source.config, "max_position_embeddings", None)
    if most is not None and config.prompt_tokens + config.answer_tokens > most:
        raise PrunekitError(
            f"{config.prompt_tokens} tokens of a prompt and {config.answer_tokens} of an answer are more than the "
            f"{most} positions {source.name} was made for; ask for fewer."
        )


def _check_alike(deployed: Source, tokenizer: Any, dense: Source) -> None:
    check_vocabularies((deployed.name, deployed.shape.vocab_size), (dense.name, dense.shape.vocab_size))
    text = first_difference(tokenizer, load_tokenizer(dense))
    if text is not None:
        raise PrunekitError(
            f"The tokenizers of {deployed.name} and {dense.name} differ, for {shown(text)} among others; give the "
            "model that the deployed one was pruned from."
        )
