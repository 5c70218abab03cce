"""Export folders of unknown origin: what their files would make a runtime do, whatever the manifest says."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import PrunekitError
from prunekit.export.contender import exports
from prunekit.export.export import MANIFEST, export, read_export
from prunekit.export.formats.onnx.foreign import check_onnx
from prunekit.export.formats.openvino.foreign import check_openvino
from prunekit.export.registry import target
from prunekit.export.target import Options
from prunekit.models.families import FAMILIES
from prunekit.models.source import resolve
from prunekit.profiling.compare import BenchConfig
from prunekit.profiling.memory import measure_peak
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.listed_folder import is_plain
from tests.support.command import save_tiny
from tests.support.tiny import tiny_config

FAST = (
    "--no-memory",
    "--max-minutes",
    "0",
    "--repeats",
    "2",
    "--warmup",
    "0",
    "--prompt-tokens",
    "4",
    "--new-tokens",
    "2",
)
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """``originals("onnx")``: an export of a tiny model, made once."""
    folder = tmp_path_factory.mktemp("originals")
    save_tiny(folder / "model", "llama", layers=1)

    def make(name: str) -> Path:
        if (needed := target(name).missing((*target(name).writes_with, *target(name).runs_with))) != ():
            pytest.skip(f"{needed[0].package} is not installed")
        if not (folder / name).exists():
            export(resolve(str(folder / "model")), name, folder / name, verify=False)
        return folder / name

    return make


@pytest.fixture
def made(originals: Made, tmp_path: Path) -> Made:
    """The same, to be changed."""
    return lambda name: Path(shutil.copytree(originals(name), tmp_path / name))


def sign(folder: Path) -> None:
    """Write the hashes of what lies there: anybody can."""
    manifest = json.loads((folder / MANIFEST).read_text())
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    manifest["files"] = {name: sha256(folder / name) for name in names if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def set_genai(folder: Path, change: Callable[[Any], object]) -> None:
    settings = json.loads((folder / "genai_config.json").read_text())
    change(settings)
    (folder / "genai_config.json").write_text(json.dumps(settings))
    sign(folder)


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Path]:
    """``described("onnx", text={"a.txt": "b"})``: a folder with an export's manifest and these files."""

    def make(name: str, text: dict[str, str]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        manifest = {"format": "prunekit-export", "version": 1, "target": name, "dtype": "fp32", "source": {"name": "m"}}
        manifest |= {"shape": FAMILIES["llama"].shape(tiny_config("llama")).to_dict(), "context_length": 64}
        manifest |= {"decode_bytes": None, "verified": False}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        for file, content in text.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(content)
        sign(folder)
        return folder

    return make


@pytest.mark.parametrize("name", ["torchscript", "torch-export", "executorch", "tensorrt"])
def test_programs_need_trust_and_the_reason_is_told(described, name, monkeypatch):
    folder = described(name, {"model.bin": "program"})
    monkeypatch.setattr(type(target(name)), "missing", lambda *_: ())
    opened = []
    monkeypatch.setattr(type(target(name)), "open", lambda _, path, threads=None, device="cpu": opened.append(path))
    with pytest.raises(
        PrunekitError, match=r"is a program: .* only if you trust who made it, with --trust-remote-code"
    ):
        read_export(folder).open()
    # Before anything is exported.
    names = (str(folder.parent / "no model"), str(folder))
    with pytest.raises(PrunekitError, match="--trust-remote-code"), exports(names, name):
        pass
    assert not opened
    with exports((str(folder),), name, trust_remote_code=True) as found, pytest.raises(AttributeError):
        found[0].open().greedy()
    assert opened == [folder]
    (folder / "compiled.pt2").write_bytes(b"machine code")
    with pytest.raises(PrunekitError, match=r"holds compiled\.pt2, which its prunekit-export\.json does not list"):
        read_export(folder).open(trust_remote_code=True)


def test_a_program_is_refused_and_trusted_by_the_command_and_where_memory_is_measured(made, command):
    folder = made("torchscript")
    told = ("bench", folder, "--baseline", folder, "--runtime", "torchscript", *FAST, "--json")
    ended = command(*told)
    assert ended.code == 2 and "--trust-remote-code" in ended.json["error"] and ended.err.count("\n") == 1
    ended = command(*told, "--trust-remote-code")
    assert ended.code == 0 and ended.json["runtime"] == "torchscript"
    with pytest.raises(PrunekitError, match="--trust-remote-code"):
        measure_peak(str(folder), BenchConfig(prompt=4, tokens=2), runtime="torchscript")


def test_what_this_run_wrote_is_opened_without_trust(originals, tmp_path):
    originals("torchscript")
    model = str(originals("torchscript").parent / "model")
    with exports((model, model), "torchscript", keep=tmp_path / "kept") as opened:
        assert all(each.own for each in opened)
        with opened[0].open() as runner:
            assert runner.vocab_size > 0
    # What an earlier run left there is a folder like any other.
    with (
        pytest.raises(PrunekitError, match="--trust-remote-code"),
        exports((model,), "torchscript", keep=tmp_path / "kept"),
    ):
        pass


def _link_out(folder: Path) -> None:
    shutil.move(folder / "tokenizer.json", folder.parent / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")


def _manifest_elsewhere(folder: Path) -> None:
    shutil.move(folder / MANIFEST, folder.parent / "manifest.json")
    (folder / MANIFEST).symlink_to("../manifest.json")


def _list_outside(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../model/config.json"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "x.so").write_bytes(b""), r"holds x\.so, which its prunekit-export\.json does not"),
        (lambda folder: (folder / ".x.so").write_bytes(b""), r"holds \.x\.so, which"),
        (lambda folder: (folder / "other").mkdir(), "holds the folder other, of which no file is listed"),
        (lambda folder: (folder / "x\x1b[2J").write_bytes(b""), r"holds 'x\\x1b\[2J'"),
        (lambda folder: os.mkfifo(folder / "pipe"), "holds pipe, which is neither a file nor a folder"),
        (lambda folder: (folder / "gone").symlink_to("nothing"), "holds gone, which is neither a file nor a folder"),
        (_link_out, r"holds tokenizer\.json, a link that leads out of the folder"),
        (_manifest_elsewhere, r"prunekit-export\.json is a link"),
        (_list_outside, r"lists '\.\./model/config\.json', which is no file of this folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"is damaged: tokenizer\.json changed .* or is missing"),
        (lambda folder: (folder / "README.md").write_text("x"), r"is damaged: README\.md changed"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_a_folder_holds_exactly_what_its_manifest_lists(described, change, said):
    folder = described("onnx", {"model.onnx": "x", "tokenizer.json": "{}", "README.md": "", "sub/deep": ""})
    change(folder)
    with pytest.raises(PrunekitError, match=said):
        read_export(folder).open()


def test_what_downloads_leave_beside_is_no_harm_and_a_change_in_between_is_seen(made, command):
    folder = made("onnx-genai")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".gitattributes").write_text("x")
    opened = read_export(folder).checked()
    ended = command("bench", folder, "--baseline", folder, "--runtime", "onnx-genai", *FAST)
    assert ended.code == 0, ended.err
    text = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(text)
    with pytest.raises(PrunekitError, match=r"tokenizer\.json changed while it was in use"):
        opened.open()


def _options(settings: Any) -> Any:
    return settings["model"]["decoder"]["session_options"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: _options(s).update(custom_ops_library="x.so"), "session_options.custom_ops_library"),
        (lambda s: _options(s).update(enable_profiling="/tmp/profile"), "session_options.enable_profiling"),
        (lambda s: _options(s).update({"ep.context_file_path": "x"}), "session_options.ep.context_file_path"),
        (lambda s: _options(s).update(provider_options=[{"qnn": {"backend_path": "x.so"}}]), "provider_options to"),
        (lambda s: s["model"]["decoder"].update(filename="../x.onnx"), "decoder.filename to"),
        (lambda s: s["model"]["decoder"].update(pipeline=[{"a": {"filename": "x.onnx"}}]), "model.decoder.pipeline"),
        (lambda s: s["model"]["decoder"].update(run_options={"a": "b"}), "model.decoder.run_options"),
        (lambda s: s["model"].update(vision={"filename": "x", "config_filename": "/etc/passwd"}), "model.vision"),
        (lambda s: s["model"].update(speech={"adapter_filename": "x"}), "model.speech"),
        (lambda s: s["model"].update(type="../llama"), "model.type to"),
        (lambda s: s.update(engine={}), "sets engine"),
        (lambda s: s["search"].update(top_k="50"), "search.top_k to"),
        (lambda s: s.update(model=[]), "no settings in model"),
    ],
)
def test_genai_settings_beyond_those_of_exports_are_refused_by_name(made, change, said):
    folder = made("onnx-genai")
    set_genai(folder, change)
    with pytest.raises(PrunekitError, match=said):
        read_export(folder).open()


def test_a_genai_setting_that_occurs_twice_is_refused(made, command):
    folder = made("onnx-genai")
    text = (folder / "genai_config.json").read_text()
    assert command("bench", folder, "--baseline", folder, "--runtime", "onnx-genai", *FAST).code == 0
    twice = '"session_options": {"custom_ops_library": "x.so"}, "session_options"'
    (folder / "genai_config.json").write_text(text.replace('"session_options"', twice))
    sign(folder)
    ended = command("bench", folder, "--baseline", folder, "--runtime", "onnx-genai", *FAST)
    assert ended.code == 2 and "a name occurs twice" in ended.err


def graph(folder: Path, *nodes: Any, **place: str) -> Path:
    """A graph of ``nodes`` with one weight, at ``place`` outside the file where that is given."""
    from onnx import TensorProto, helper, save

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    if place:
        weight.ClearField("float_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
    inner = helper.make_graph([], "inner", [], [], initializer=[weight])
    # Behind an attribute of a node of a graph of a node.
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([branch, *nodes], "outer", [], [])
    save(helper.make_model(outer), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    "place",
    [
        {"location": "/etc/passwd"},
        {"location": "../weights"},
        {"location": "sub/../../weights"},
        {"location": "not-listed"},
        {"location": "*/_ORT_MEM_ADDR_/*", "offset": "140000000", "length": "8"},
        {"location": "weights", "offset": "4", "length": "8"},
        {"location": "weights", "offset": "-4", "length": "8"},
        {"offset": "0"},
    ],
)
def test_weights_of_an_onnx_graph_lie_in_listed_files(tmp_path, place):
    pytest.importorskip("onnx")
    (tmp_path / "weights").write_bytes(bytes(8))
    (tmp_path / "not-listed").write_bytes(bytes(8))
    with pytest.raises(PrunekitError, match="weight"):
        check_onnx(graph(tmp_path, **place), tmp_path, ["weights", "model.onnx"])


def test_operators_of_an_onnx_graph_are_those_of_the_runtime(tmp_path):
    helper = pytest.importorskip("onnx.helper")
    (tmp_path / "weights").write_bytes(bytes(8))
    path = graph(tmp_path, helper.make_node("Gelu", [], [], domain="com.microsoft"), location="weights", length="8")
    check_onnx(path, tmp_path, ["weights"])
    for node in (("Run", "my.domain"), ("EPContext", "com.microsoft")):
        with pytest.raises(PrunekitError, match=f"{node[1]}::{node[0]}"):
            check_onnx(graph(tmp_path, helper.make_node(node[0], [], [], domain=node[1])), tmp_path, [])
    with pytest.raises(PrunekitError, match="operator Loop, which may repeat its work without end"):
        check_onnx(graph(tmp_path, helper.make_node("Loop", [], [])), tmp_path, [])
    path.write_bytes(b"no graph")
    with pytest.raises(PrunekitError, match="is no ONNX graph"):
        check_onnx(path, tmp_path, [])


def add_to_logits(path: Path, *nodes: Any) -> None:
    """Make the graph in ``path`` add ``made``, which ``nodes`` compute from ``much``, a number, to its logits."""
    import onnx
    from onnx import helper

    model = onnx.load(str(path), load_external_data=False)
    logits = next(output for output in model.graph.output if output.name == "logits")
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    much = helper.make_tensor("much", onnx.TensorProto.INT64, [1], [40_000_000_000])
    model.graph.initializer.append(much)
    model.graph.node.extend([*nodes, helper.make_node("Add", ["before", "made"], [logits.name])])
    path.write_bytes(model.SerializeToString())
    sign(path.parent)


@pytest.mark.parametrize("when", ["loaded", "run"])
def test_graphs_get_no_more_memory_than_their_size_explains(made, when, command):
    helper = pytest.importorskip("onnx.helper")
    folder = made("onnx")
    opened = read_export(folder)
    opened.checked()
    zeros = helper.make_node("ConstantOfShape", ["much" if when == "loaded" else "shape"], ["zeros"])
    nodes = [zeros, helper.make_node("ReduceSum", ["zeros"], ["made"], keepdims=0)]
    if when == "run":
        # Known only with the prompt.
        nodes = [
            helper.make_node("Shape", ["input_ids"], ["sizes"]),
            helper.make_node("Mul", ["sizes", "much"], ["shape"]),
            *nodes,
        ]
    add_to_logits(folder / "model.onnx", *nodes)
    ended = command("bench", folder, "--baseline", folder, "--runtime", "onnx", *FAST)
    assert ended.code == 2
    assert re.search(r"can't be run|could not load|failed", ended.err), ended.err


def test_a_first_run_has_an_end(made, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("prunekit.export.trial._SECONDS", 1)
    monkeypatch.setattr("prunekit.export.trial._LOADED", 1e12)
    with pytest.raises(
        PrunekitError, match=r"can't be run: a first run, .* \(it (computed for|took) too long\)\. Export"
    ):
        read_export(made("onnx")).open()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('version="opset1"', 'version="extension"', "needs an extension library"),
        ('type="Const"', 'type="Loop"', "operator Loop, which may repeat its work without end"),
        ("<net", '<!DOCTYPE net [<!ENTITY a "b">]><net', "declares a document type"),
        ('offset="0"', 'offset="99999999"', "beyond the end of openvino_model.bin"),
        ("<net", "<xml", "is no OpenVINO IR"),
        ("</net>", "", "is not valid XML"),
    ],
)
def test_openvino_ir_has_public_operators_and_weights_of_its_own(described, old, new, said):
    ir = '<?xml version="1.0"?><net name="m" version="11"><layers><layer id="0" type="Const" version="opset1">'
    ir += '<data element_type="f32" shape="1" offset="0" size="4" /></layer></layers></net>'
    folder = described("openvino", {"openvino_model.xml": ir, "openvino_model.bin": "four"})
    path = folder / "openvino_model.xml"
    check_openvino(path)
    assert old in ir
    path.write_text(ir.replace(old, new, 1))
    sign(folder)
    with pytest.raises(PrunekitError, match=said):
        read_export(folder).open()


@pytest.mark.parametrize(
    "change",
    [{"context_length": 10**30}, {"context_length": -5}, {"decode_bytes": -1}, {"dtype": "\x1b[2J"}, {"shape": []}],
)
def test_a_manifest_holds_ordinary_numbers_and_names(described, change):
    folder = described("onnx", {})
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **change}))
    with pytest.raises(PrunekitError, match=r"prunekit-export\.json is damaged \(.*\); export the model again\.$"):
        read_export(folder)


def test_plain_names_of_files():
    assert all(map(is_plain, ("a", "a/b.c", "..a", "a b")))
    wrong = ("", ".", "..", "/a", "a/../b", "a//b", "a/", "./a", "a\\b", "c:a", "a\n", 3, None)
    assert not any(map(is_plain, wrong))


def test_options_of_bench_reach_its_exports(originals, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "prunekit.export.contender.export", lambda *given: seen.append(given) or (_ for _ in ()).throw(OSError)
    )
    model = str(originals("torchscript").parent / "model")
    with pytest.raises(OSError), exports((model,), "torchscript", trust_remote_code=True):
        pass
    assert seen[0][3] == Options("fp32", None, trust_remote_code=True)
