"""Loads a tokenizer that has no tokenizer.json, for a parent that has set limits: transformers makes one from its other
files. Prints what :mod:`prunekit.models.tokenizer.check_child` prints.

    python -m prunekit.models.tokenizer.folder_child folder
"""

from __future__ import annotations

import json
import sys

from prunekit.models.modeling import register_pruned
from prunekit.models.tokenizer.check_child import fails, grows
from prunekit.utils.quiet import quiet, reason


def main() -> None:
    from transformers import AutoTokenizer

    register_pruned()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False, local_files_only=True)
    except Exception as error:
        said: str | None = reason(error)
    else:
        made = getattr(tokenizer, "backend_tokenizer", None)
        # A class of its own in Python has no patterns or replacements of the files' making.
        said = None if made is None else grows(json.loads(made.to_str())) or fails(made)
    sys.stdout.write(json.dumps({"error": said} if said else {}))


if __name__ == "__main__":
    main()
