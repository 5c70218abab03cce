"""A digest of a model's weights that knows tensors, not files: the same in other shards or another folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from prunekit.errors import PrunekitError
from prunekit.models.folder import StoredTensor

_BLOCK = 1 << 20
_TABLE, _HEAD = "embed_tokens.weight", "lm_head.weight"
# Tables that old versions of transformers saved and new ones compute.
_COMPUTED = "rotary_emb.inv_freq"


def weights_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of ``tensors``.

    Left out is what depends on who saved them: the prefix of a decoder's names, a head that is the embedding table a
    second time. Reads all of them once, on all cores (about a second for 1 GB a core). Raises PrunekitError where a
    file can't be read.
    """
    named = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if not name.endswith(_COMPUTED)}
    if len(named) < sum(not name.endswith(_COMPUTED) for name in tensors):
        named = dict(tensors)  # names of both kinds: nothing that transformers saves, and nothing to leave out
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(named, pool.map(_digest, named.values()), strict=True))
    if _TABLE in digests and digests.get(_HEAD) == digests[_TABLE]:
        del digests[_HEAD]
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(f"{name}\0{digests[name]}\n".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def _digest(tensor: StoredTensor) -> str:
    content = hashlib.sha256(f"{tensor.dtype} {tensor.shape}\n".encode())
    left = tensor.nbytes
    try:
        with tensor.file.open("rb", buffering=0) as handle:
            handle.seek(tensor.start)
            while left and (block := handle.read(min(left, _BLOCK))):
                content.update(block)
                left -= len(block)
    except OSError as error:
        raise PrunekitError(f"{tensor.file} can't be read: {error.strerror or error}.") from None
    return content.hexdigest()
