"""What belongs to a model comes along: licences, notices, named templates, and a card that the hub can read."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from prunekit.checkpoint.manifest import verify
from prunekit.checkpoint.rebuild import rebuild
from prunekit.export.export import export
from prunekit.export.target import Options
from prunekit.models.origin import Origin, read_origin
from prunekit.models.source import _HUB_FILES, _HUB_IGNORED, Source, resolve
from prunekit.plan import Plan
from tests.support.tiny import random_plan, tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")

LEGAL = {
    "LICENSE",
    "LICENSE-APACHE-2.0",
    "NOTICE.txt",
    "USE_POLICY.md",
    "COPYING",
    "licence.md",
    "MODEL_LICENSE",
    "THIRD_PARTY_LICENSES.txt",
    "ThirdPartyNotices.md",
}
HEAD = """---
license: other
license_name: tiny-1
license_link: LICENSE
base_model: someone/base-model
language: [en, no]
tags: [chat, gguf, "a: b\\n- c"]
---
# Tiny
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "tiny: *model*"
    tiny_model("llama").save_pretrained(folder)
    for name in LEGAL:
        (folder / name).write_text(name)
    for name in ("LICENSE.py", "licensed_weights.bin", "terms.safetensors"):
        (folder / name).write_text("no licence")
    secret = folder.parent / "secret"
    secret.write_text("key")
    (folder / "NOTICE").symlink_to(secret)
    (folder / "README.md").write_text(HEAD)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    return folder


def planned(source: Source) -> Plan:
    said = {"method": {"name": "taylor", "units": ["ffn"]}, "target": {"asked": "70 % | of blocks"}}
    return replace(random_plan(source.shape), provenance=said)


def test_licences_templates_and_head_come_along(dense: Path, tmp_path: Path) -> None:
    source = resolve(str(dense))
    rebuild(source, planned(source), tmp_path / "out")
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there >= LEGAL and not there & {"LICENSE.py", "licensed_weights.bin", "terms.safetensors", "NOTICE"}
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text() == "{{ messages }}"
    assert not verify(tmp_path / "out").damaged
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "tiny-1", "LICENSE")
    assert (data.base_model, data.base_model_relation) == ("someone/base-model", "finetune")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.language == ["en", "no"]
    assert data.tags == ["chat", "prunekit", "pruned", "custom_code"]
    assert str(tmp_path) not in text and "None" not in text and text.count("num_attention_heads") == 0
    assert "Notice of modification" in text and r"taylor (units: ffn)" in text and r"70 % \| of blocks" in text
    assert "# tiny: \\*model\\*, pruned" in text

    (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").write_text("changed")
    assert verify(tmp_path / "out").damaged == ("additional_chat_templates/rag.jinja",)


def test_exports_carry_them_too(dense: Path, tmp_path: Path) -> None:
    made = export(resolve(str(dense)), "hf", tmp_path / "out", Options(), verify=False)
    assert {path.name for path in made.path.iterdir()} >= LEGAL
    data = ModelCard((made.path / "README.md").read_text()).data
    assert (data.license, data.base_model, data.base_model_relation) == ("other", "someone/base-model", "quantized")
    assert data.tags == ["chat", "prunekit", "hf"]


def test_an_unknown_licence_is_not_made_up(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    source = resolve(str(tmp_path / "m"))
    rebuild(source, random_plan(source.shape), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "The licence is not known" in text
    data = ModelCard(text).data
    assert data.license is None and data.base_model is None and "base_model_relation" not in data.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n",
        "---\n[[[[\n---\n",
        "---\n- a\n---\n",
        "---\nlicense: 3\nbase_model: ../../x\n---\n",
        "---\na: &a [*a]\n---",
    ],
)
def test_a_strange_card_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert read_origin(str(tmp_path), tmp_path) == Origin()


def test_a_hub_model_is_the_base(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    (tmp_path / "models--org--name" / "blobs").mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs" / "1").write_text("licence")
    snapshot.mkdir(parents=True)
    (snapshot / "LICENSE").symlink_to("../../blobs/1")
    (snapshot / "README.md").write_text("---\nbase_model: org/base\nlicense: mit\n---\n")
    for name in ("org/name", str(snapshot)):
        origin = read_origin(name, snapshot)
        assert origin.bases == ("org/name",) and origin.license == "mit" and origin.legal_files == ("LICENSE",)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("LICENSE", True),
        ("License.md", True),
        ("USE_POLICY.md", True),
        ("Notice.txt", True),
        ("README.md", True),
        ("MODEL_LICENSE", True),
        ("THIRD-PARTY.txt", True),
        ("a_model_license.json.py/x", False),
        ("additional_chat_templates/rag.jinja", True),
        ("tokenizer.model", True),
        ("onnx/config.json", False),
        ("assets/x.json", False),
        ("original/tokenizer.model", False),
        ("additional_chat_templates/x/y.jinja", False),
        ("modeling_x.py", False),
        ("pytorch_model.bin", False),
    ],
)
def test_what_is_downloaded(name: str, wanted: bool) -> None:
    allowed = any(fnmatchcase(name, pattern) for pattern in _HUB_FILES)
    assert (allowed and not any(fnmatchcase(name, pattern) for pattern in _HUB_IGNORED)) is wanted
