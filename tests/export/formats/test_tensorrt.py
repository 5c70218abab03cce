from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("optimum")
onnxruntime = pytest.importorskip("onnxruntime")

from prunekit.errors import PrunekitError  # noqa: E402
from prunekit.export.export import export  # noqa: E402
from prunekit.export.formats.tensorrt import target as tensorrt  # noqa: E402
from prunekit.export.formats.tensorrt.check import Shapes, check_operators  # noqa: E402
from prunekit.export.registry import target  # noqa: E402
from prunekit.export.target import Options, prepared  # noqa: E402
from prunekit.plan.shape import LayerShape, ModelShape  # noqa: E402
from tests.support import export_models  # noqa: E402

WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
CASES = {
    "llama": ("fp16", {"tied": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("fp32", {"sliding_window": 8}),
    "qwen2": ("fp32", WINDOW),
    "qwen3": ("fp32", WINDOW),
}
CONTEXT = 200


@pytest.fixture(scope="module")
def exported(uneven, tmp_path_factory):
    """``exported("llama")``: the export of that family as in CASES, made once."""
    made = {}

    def get(model_type):
        if model_type not in made:
            dtype, fields = CASES[model_type]
            out = tmp_path_factory.mktemp("tensorrt") / f"modèle {model_type}"
            made[model_type] = export(
                uneven(model_type, **fields), "tensorrt", out, Options(dtype, context_length=CONTEXT)
            )
        return made[model_type]

    return get


@pytest.mark.parametrize("model_type", CASES)
def test_graph_is_compared_but_said_to_be_untested(exported, model_type):
    made = exported(model_type)
    assert made.parity is None and "not run in TensorRT" in made.unverified
    facts = made.written.facts
    assert facts["onnxruntime"]["ok"] is True and facts["shapes_inferred_at"] == 12
    model = onnx.load(made.path / "model.onnx")
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    element = onnx.TensorProto.FLOAT16 if made.dtype == "fp16" else onnx.TensorProto.FLOAT
    shapes = {}
    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        shapes[value.name] = [axis.dim_value or axis.dim_param for axis in kind.shape.dim]
        if "." in value.name:
            assert kind.elem_type == element
    past = "past_sequence_length"
    for index, heads in enumerate(export_models.KV_HEADS):
        for kind in ("key", "value"):
            assert shapes[f"past_key_values.{index}.{kind}"] == ["batch_size", heads, past, 32]
            assert shapes[f"present.{index}.{kind}"] == ["batch_size", heads, f"{past} + sequence_length", 32]
    assert shapes["logits"] == ["batch_size", 1, 512]
    assert "num_logits_to_keep" not in shapes
    readme = (made.path / "README.md").read_text()
    assert "never run" in readme and str(made.path) not in readme


def _built(folder: Path, bin_folder: Path, helps: str = "  --profile    Build", **environment: str):
    """Runs build-engine.sh with a trtexec that says what it was given."""
    bin_folder.mkdir(exist_ok=True)
    fake = bin_folder / "trtexec"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{helps}"; else printf "%s\\n" "$@"; fi\n')
    fake.chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(folder / "build-engine.sh"), "--verbose"]
    return subprocess.run(command, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True)


def _shapes(argument: str, option: str) -> dict[str, list[int]]:
    assert argument.startswith(f"--{option}=")
    pairs = (each.split(":") for each in argument.removeprefix(f"--{option}=").split(","))
    return {name: [int(size) for size in sizes.split("x")] for name, sizes in pairs}


def test_script_gives_trtexec_both_profiles(exported, tmp_path):
    made = exported("llama")
    run = _built(made.path, tmp_path / "bin", BATCH="4", WORKSPACE_MIB="512")
    assert run.returncode == 0, run.stderr
    given = run.stdout.splitlines()
    assert given[:2] == ["--onnx=model.onnx", "--saveEngine=model.engine"]
    assert given[-4:] == ["--stronglyTyped", "--memPoolSize=workspace:512", "--skipInference", "--verbose"]
    assert [given[2], given[6]] == ["--profile=0", "--profile=1"]  # trtexec wants its shapes right behind each
    # (batch, new tokens, tokens in the cache)
    expected = [(1, 1, 0), (4, 50, 0), (4, 200, 0), (1, 1, 1), (4, 1, 100), (4, 1, 199)]
    for place, (batch, new, past) in zip((3, 4, 5, 7, 8, 9), expected, strict=True):
        option = ("minShapes", "optShapes", "maxShapes")[(place - 3) % 4]
        shapes = _shapes(given[place], option)
        names = {each.name for each in onnxruntime.InferenceSession(made.path / "model.onnx").get_inputs()}
        assert set(shapes) == names
        assert shapes["input_ids"] == shapes["position_ids"] == [batch, new]
        assert shapes["attention_mask"] == [batch, past + new]
        for index, heads in enumerate(export_models.KV_HEADS):
            for kind in ("key", "value"):
                assert shapes[f"past_key_values.{index}.{kind}"] == [batch, heads, past, 32]
    default = _built(made.path, tmp_path / "bin").stdout.splitlines()
    assert _shapes(default[5], "maxShapes")["input_ids"] == [1, 200]


def test_script_of_float32_has_no_precision_flag(exported, tmp_path):
    given = _built(exported("mistral").path, tmp_path / "bin").stdout.splitlines()
    assert "--stronglyTyped" not in given and not any("16" in each for each in given if "Shapes" not in each)


def test_script_refuses_an_old_trtexec(exported, tmp_path):
    run = _built(exported("llama").path, tmp_path / "bin", helps="  --profilingVerbosity=mode")
    assert run.returncode == 1 and "TensorRT 10 or newer" in run.stderr
    assert not run.stdout


def test_engine_shapes_run(exported):
    """At every corner of the profiles the graph takes what the script says and gives what the README says."""
    made = exported("qwen3")
    session = onnxruntime.InferenceSession(made.path / "model.onnx")
    shape = ModelShape(
        256,
        32,
        512,
        False,
        tuple(map(LayerShape, export_models.HEADS, export_models.KV_HEADS, export_models.FFN)),
    )
    for phase in tensorrt.phases(CONTEXT):
        for _, (new, past) in phase.points():
            feeds = {
                name: np.ones(size, np.float32 if "." in name else np.int64)
                for name, size in tensorrt.input_shapes(shape, 2, new, past).items()
            }
            logits, *cache = session.run(None, feeds)
            assert logits.shape == (2, 1, 512)
            assert [each.shape[1:3] for each in cache[::2]] == [(k, past + new) for k in export_models.KV_HEADS]


def test_corrupted_graph_is_refused(uneven, tmp_path, monkeypatch):
    """Also the path of models over 2 GB, whose weights lie beside the graph."""
    write = tensorrt.export_onnx

    def corrupted(job, folder, **options):
        path = write(job, folder, external_from=0, **options)
        model = onnx.load(path, load_external_data=False)
        stored = max(model.graph.initializer, key=lambda each: np.prod(each.dims))
        where = {each.key: each.value for each in stored.external_data}
        with (folder / where["location"]).open("r+b") as file:
            file.seek(int(where["offset"]))
            file.write(np.full(4096, 0.5, np.float32).tobytes())
        return path

    monkeypatch.setattr(tensorrt, "export_onnx", corrupted)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(uneven("mistral", **CASES["mistral"][1]), "tensorrt", tmp_path / "wrong", Options("fp32"))
    assert not list(tmp_path.iterdir())


def _graph(nodes, inputs, outputs, constants=()):
    def value(name, shape):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [value(*each) for each in inputs.items()],
        [value(*each) for each in outputs.items()],
        [onnx.numpy_helper.from_array(np.array(each), name) for name, each in dict(constants).items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


def test_operators_that_tensorrt_does_not_import_are_refused():
    node = onnx.helper.make_node
    unknown = _graph([node("GroupQueryAttention", ["x"], ["y"], domain="com.microsoft")], {"x": ["n"]}, {"y": ["n"]})
    with pytest.raises(PrunekitError, match="GroupQueryAttention, which TensorRT"):
        check_operators(unknown)
    with pytest.raises(PrunekitError, match="NonZero"):
        check_operators(_graph([node("NonZero", ["x"], ["y"])], {"x": ["n"]}, {"y": [1, "m"]}))
    computed = [node("Shape", ["x"], ["axes"]), node("Unsqueeze", ["x", "axes"], ["y"])]
    with pytest.raises(PrunekitError, match="axes that are computed"):
        check_operators(_graph(computed, {"x": ["n"]}, {"y": [1, "n"]}))
    check_operators(_graph([node("Unsqueeze", ["x", "axes"], ["y"])], {"x": ["n"]}, {"y": [1, "n"]}, {"axes": [0]}))


def test_shapes_that_contradict_each_other_are_found():
    node = onnx.helper.make_node
    nodes = [node("Concat", ["a", "b"], ["c"], axis=0), node("Add", ["c", "mask"], ["y"])]
    shapes = Shapes(_graph(nodes, {"a": ["p"], "b": ["n"], "mask": ["t"]}, {"y": ["t"]}))
    assert shapes.infer({"a": [3], "b": [2], "mask": [5]})["y"] == (5,)
    with pytest.raises(PrunekitError, match="contradicts itself"):
        shapes.infer({"a": [3], "b": [2], "mask": [4]})
    fixed = Shapes(_graph([node("Add", ["a", "a"], ["y"])], {"a": ["n", 4]}, {"y": ["n", 4]}))
    with pytest.raises(PrunekitError, match="a takes 4 where the profile has 3"):
        fixed.infer({"a": [2, 3]})


def test_lengths_computed_in_the_graph_are_followed():
    node = onnx.helper.make_node
    nodes = [
        node("Shape", ["x"], ["shape"], start=0, end=1),
        node("Squeeze", ["shape"], ["n"]),
        node("Add", ["n", "one"], ["end"]),
        node("Range", ["zero", "end", "one"], ["counted"]),
        node("Cast", ["counted"], ["y"], to=1),
    ]
    constants = {"zero": np.array(0), "one": np.array(1)}
    shapes = Shapes(_graph(nodes, {"x": ["n"]}, {"y": ["m"]}, constants))
    assert shapes.infer({"x": [7]})["y"] == (8,)


def test_context_of_one_token_is_refused(uneven):
    with pytest.raises(PrunekitError, match="at least 2 tokens"):
        prepared(target("tensorrt"), uneven("llama"), Options(context_length=1))


def test_opening_says_why_not(tmp_path):
    with pytest.raises(PrunekitError, match="does not run TensorRT engines"):
        target("tensorrt").open(tmp_path)


def test_smollm2(shortened_smollm2, tmp_path):
    made = export(shortened_smollm2, "tensorrt", tmp_path / "out", Options("fp16"))
    assert made.written.facts["onnxruntime"]["ok"] is True
    given = _built(made.path, tmp_path / "bin").stdout.splitlines()
    shapes = _shapes(given[9], "maxShapes")
    for index, layer in enumerate(shortened_smollm2.shape.layers):
        assert shapes[f"past_key_values.{index}.key"] == [1, layer.num_key_value_heads, 2047, 64]
