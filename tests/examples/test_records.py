"""The records and the policy of examples/operate are such as `prunekit accept` takes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from prunekit.evaluation.acceptance.policy import Policy
from prunekit.evaluation.acceptance.records import read_records
from tests.support.command import ROOT

EXAMPLES = ROOT / "examples" / "operate"


def test_records_are_200_of_four_groups(tmp_path: Path) -> None:
    out = tmp_path / "records.jsonl"
    subprocess.run([sys.executable, EXAMPLES / "make_records.py", out], check=True)
    records = read_records(out)
    groups = Counter(each.group for each in records.all)
    assert groups == {"arithmetic": 50, "copying": 50, "extraction": 50, "json": 50}
    policy = Policy.load(EXAMPLES / "policy.toml")
    assert policy.margin == 0.05
    assert set(policy.groups) <= set(groups)
