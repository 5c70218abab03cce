"""A local model's greedy answers, in batches."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prunekit.data.chat_template import chat_template, render_chats
from prunekit.data.tokenised import encode
from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.asked.answers import LENGTH, STOP, Answer
from prunekit.evaluation.acceptance.asked.candidate import Candidate, Told
from prunekit.evaluation.acceptance.records import Record
from prunekit.evaluation.continuations import end_tokens
from prunekit.evaluation.windows import eval_mode
from prunekit.models.runner import TorchRunner
from prunekit.models.source import load_model, load_tokenizer, pick_device, pick_dtype
from prunekit.utils.files.cache import cache_key
from prunekit.utils.files.hashes import token_ids_sha256
from prunekit.utils.numerics.finite import NotFinite
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source

_RECIPE = 1
_AT_ONCE = 256


class LocalModel(Candidate):
    """A model that prunekit runs. Texts of ``prompt`` get the special tokens that the tokenizer adds, ``messages`` go
    through its chat template, as `prunekit generate` does it."""

    def __init__(self, source: Source, *, dtype: str, device: str, batch_size: int):
        source.check_language_model()
        self.source = source
        self.name = model_label(source.name)
        self._dtype, self._device, self._batch = dtype, device, batch_size
        self.tokenizer: Any = load_tokenizer(source)
        self._prompts: list[list[int]] = []
        self.identity = {
            "model": self.name,
            "fingerprint": source.fingerprint,
            "parameters": source.shape.parameters,
            "dtype": str(pick_dtype(dtype) or source.dtype).removeprefix("torch."),
            "device": pick_device(device).type,
        }

    def keys(self, records: Sequence[Record], most: int) -> list[str]:
        import numpy as np

        self._prompts = self._encoded(records)
        room = getattr(self.source.config, "max_position_embeddings", None)
        shared = {"recipe": _RECIPE, **{name: self.identity[name] for name in ("fingerprint", "dtype", "device")}}
        shared |= {"versions": versions(), "batch": self._batch}
        made = []
        for record, ids in zip(records, self._prompts, strict=True):
            tokens = record.max_tokens or most
            if not ids:
                raise PrunekitError(f"{record.where} has a prompt that makes no tokens for {self.name}; write a text.")
            if room is not None and len(ids) + tokens > room:
                raise PrunekitError(
                    f"{record.where} needs {len(ids):,} tokens of prompt and up to {tokens:,} of answer, and "
                    f"{self.name} was made for {room:,}; shorten it, or say a smaller --max-new-tokens."
                )
            digest = token_ids_sha256(np.asarray(ids, dtype=np.int64))
            made.append(cache_key({**shared, "prompt": digest, "most": tokens}))
        return made

    def _encoded(self, records: Sequence[Record]) -> list[list[int]]:
        """The token ids of each prompt."""
        made: list[list[int]] = [[] for _ in records]
        chats = [place for place, each in enumerate(records) if each.messages]
        if chats and chat_template(self.tokenizer) is None:
            raise PrunekitError(
                f"{records[chats[0]].where} has messages, and {self.name} has no chat template; write a prompt instead."
            )
        for at in range(0, len(chats), _AT_ONCE):
            some = chats[at : at + _AT_ONCE]
            texts = render_chats(
                self.tokenizer, [[*map(dict, records[place].messages)] for place in some], generation=True
            )
            for place, text in zip(some, texts, strict=True):
                if isinstance(text, PrunekitError):
                    raise PrunekitError(f"{records[place].where}: {text}")
            for place, ids in zip(some, encode(self.tokenizer, [*map(str, texts)]), strict=True):
                made[place] = ids
        plain = [place for place, each in enumerate(records) if not each.messages]
        for at in range(0, len(plain), _AT_ONCE):
            some = plain[at : at + _AT_ONCE]
            texts = [records[place].prompt or "" for place in some]
            for place, ids in zip(some, encode(self.tokenizer, [*map(str, texts)], special=True), strict=True):
                made[place] = ids
        return made

    def ask(self, records: Sequence[Record], missing: set[int], most: int, told: Told, failures: int) -> None:
        import numpy as np

        if not missing:
            return
        limits = [record.max_tokens or most for record in records]
        model = load_model(self.source, dtype=self._dtype, device=self._device)
        try:
            ends = end_tokens(model, self.tokenizer)
            with eval_mode(model):
                runner = TorchRunner(model)
                for batch in self._batches(limits):
                    places = [place for place in batch if place in missing]
                    if not places:
                        continue
                    prompts = [np.asarray(self._prompts[place], dtype=np.int64) for place in places]
                    made = runner.until(prompts, [limits[place] for place in places], ends)
                    for place, tokens in zip(places, made, strict=True):
                        told(records[place], self._answer(tokens, ends))
        except NotFinite as error:
            raise PrunekitError(f"{self.name}: {error} Try --dtype float32.") from None
        finally:
            del model
            gc.collect()

    def _batches(self, limits: Sequence[int]) -> list[list[int]]:
        """All places, those of like lengths together, whatever is missing: a batch's shape moves the last bits of its
        numbers, and a run that goes on shall answer as one that was never stopped."""
        order = sorted(range(len(limits)), key=lambda place: (limits[place], len(self._prompts[place]), place))
        return [order[at : at + self._batch] for at in range(0, len(order), self._batch)]

    def _answer(self, tokens: list[int], ends: set[int]) -> Answer:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, len(tokens), STOP if tokens[-1] in ends else LENGTH)
