"""A message or a help text that names a setting names one that there is."""

from __future__ import annotations

import re

from prunekit.plan.recipe import knobs
from prunekit.plan.training import recovery_knobs
from tests.support.command import ROOT

NAMED = re.compile(r"--set ([a-z_0-9]+)=")
PLACEHOLDERS = {"key"}


def test_every_setting_that_a_message_names_is_one() -> None:
    known = {*knobs(), *recovery_knobs(), *PLACEHOLDERS}
    sources = [path for room in ("prunekit", "kernels", "export") for path in (ROOT / room).rglob("*.py")]
    named = {
        (str(path.relative_to(ROOT)), setting)
        for path in sources
        for setting in NAMED.findall(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")))
    }
    assert len(named) > 5
    assert [each for each in sorted(named) if each[1] not in known] == []
