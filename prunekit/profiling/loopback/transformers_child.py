"""`transformers serve` for a pruned checkpoint without its remote code: prunekit's own classes are registered first.

    python -m prunekit.profiling.loopback.transformers_child FOLDER serve MODEL …

``MODEL`` is the name of a folder or a link in FOLDER.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Serve as the command does, by sys.argv."""
    import transformers

    from prunekit.models.families import FAMILIES
    from prunekit.models.modeling import pruned_class, register_pruned

    register_pruned()
    # The command looks a checkpoint's class up in transformers itself.
    for family in FAMILIES.values():
        setattr(transformers, family.pruned_causal_lm_class, pruned_class(family, "ForCausalLM"))
    os.chdir(sys.argv[1])
    from transformers.cli.transformers import app

    app(sys.argv[2:])


if __name__ == "__main__":
    main()
