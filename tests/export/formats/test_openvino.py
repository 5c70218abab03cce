from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
pytest.importorskip("optimum")

from prunekit.errors import PrunekitError  # noqa: E402
from prunekit.export.export import export, read_export  # noqa: E402
from prunekit.export.formats.onnx import target as onnx_target  # noqa: E402
from prunekit.export.formats.openvino.target import MODEL, OpenVinoRunner  # noqa: E402
from prunekit.export.target import Options  # noqa: E402
from prunekit.models.runner import TorchRunner  # noqa: E402
from prunekit.models.source import load_model  # noqa: E402
from tests.support import export_models  # noqa: E402

WINDOW = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}
CASES = {
    "llama": ("fp16", {"tied": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("fp32", {"sliding_window": 8}),
    "qwen2": ("fp32", WINDOW),
    "qwen3": ("fp32", WINDOW),
}


@pytest.fixture(scope="module")
def exported(uneven, tmp_path_factory):
    """``exported("llama")``: the export of that family as in CASES, made once."""
    made = {}

    def get(model_type):
        if model_type not in made:
            dtype, fields = CASES[model_type]
            out = tmp_path_factory.mktemp("openvino") / f"modèle {model_type}"
            made[model_type] = (
                uneven(model_type, **fields),
                export(uneven(model_type, **fields), "openvino", out, Options(dtype)),
            )
        return made[model_type]

    return get


@pytest.mark.parametrize("model_type", CASES)
def test_runtime_computes_the_same(exported, model_type):
    _, made = exported(model_type)
    assert made.parity is not None and made.parity.ok
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    assert made.parity.logits.rms_relative < {"fp32": 2e-5, "fp16": 5e-3}[made.dtype]
    files = {file.name for file in made.path.iterdir()}
    assert {MODEL, "openvino_model.bin", "tokenizer.json", "parity.json", "README.md"} <= files
    assert not any("onnx" in name for name in files)


def test_states_have_their_layers_shapes(exported):
    _, made = exported("qwen3")
    model = openvino.Core().read_model(made.path / MODEL)
    assert {port.get_any_name() for port in model.inputs} == {"input_ids", "attention_mask", "position_ids", "beam_idx"}
    assert [port.get_any_name() for port in model.outputs] == ["logits"]
    shapes = {each.get_info().variable_id: each.get_info().data_shape for each in model.get_variables()}
    for index, heads in enumerate(export_models.KV_HEADS):
        for kind in ("key", "value"):
            shape = shapes[f"past_key_values.{index}.{kind}present.{index}.{kind}"]
            assert (shape[1].get_length(), shape[3].get_length()) == (heads, 32)


def test_weights_are_stored_in_the_precision(exported):
    sizes = {name: (exported(name)[1].path / "openvino_model.bin").stat().st_size for name in ("llama", "mistral")}
    for name, element in (("llama", 2), ("mistral", 4)):
        expected = exported(name)[0].shape.parameters * element
        model = openvino.Core().read_model(exported(name)[1].path / MODEL)
        vectors = [each for each in model.get_ops() if each.get_type_name() == "Constant" and len(each.shape) == 1]
        # Rotary frequencies must not be rounded.
        assert {each.get_element_type() for each in vectors if each.get_element_type().is_real()} == {openvino.Type.f32}
        assert expected <= sizes[name] <= expected * 1.02 + 2**16


def test_batches_lengths_and_beams(exported):
    source, made = exported("mistral")
    ids = np.random.default_rng(0).integers(0, source.shape.vocab_size, (3, 11))
    torch_runner = TorchRunner(load_model(source, device="cpu"))
    with read_export(made.path).open(threads=1) as runner:
        assert runner._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1
        for batch in (ids, ids[:1], ids[:2, :1]):  # a smaller batch behind a larger one: nothing of it may stay
            np.testing.assert_allclose(runner.start(batch), torch_runner.start(batch), atol=1e-3)
            for token in (3, 4, 5):
                tokens = np.full(len(batch), token)
                np.testing.assert_allclose(runner.step(tokens), torch_runner.step(tokens), atol=1e-3)
        # Each sequence goes on from another one's cache.
        runner.start(ids)
        order = np.array([2, 0, 1], dtype=np.int32)
        request = runner._request
        given = {
            "input_ids": np.array([[3], [4], [5]]),
            "attention_mask": np.ones((3, 12), np.int64),
            "position_ids": np.full((3, 1), 11),
            "beam_idx": order,
            "num_logits_to_keep": np.array(1),
        }
        made_logits = request.infer(given, share_inputs=True)["logits"][:, -1]
        torch_runner.start(ids[order])
        np.testing.assert_allclose(made_logits, torch_runner.step(np.array([3, 4, 5])), atol=1e-3)


def test_readme_snippet_runs(exported, monkeypatch, capsys):
    _, made = exported("llama")
    text = (made.path / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(made.path.parent)
    exec(code.replace("this-folder", made.path.name), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_other_families(uneven, tmp_path, model_type):
    made = export(uneven(model_type, sliding_window=8), "openvino", tmp_path / "out", Options("fp32"))
    assert made.parity.ok and made.parity.logits.rms_relative < 2e-5


def test_corrupted_weight_is_refused(uneven, tmp_path, monkeypatch):
    import onnx

    write = onnx_target.export_onnx

    def corrupted(job, folder: Path, **options):
        path = write(job, folder, **options)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[:, :4] *= -1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, path)
        return path

    monkeypatch.setattr(onnx_target, "export_onnx", corrupted)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(uneven("mistral", **CASES["mistral"][1]), "openvino", tmp_path / "wrong", Options("fp32"))
    assert not list(tmp_path.iterdir())


def test_other_ir_is_refused(tmp_path):
    from openvino import opset13 as ops

    given = ops.parameter([2], np.float32)
    openvino.save_model(openvino.Model([ops.add(given, given)], [given]), tmp_path / MODEL)
    with pytest.raises(PrunekitError, match="not written by prunekit"):
        OpenVinoRunner(tmp_path / MODEL)
    (tmp_path / MODEL).write_text("no xml")
    with pytest.raises(PrunekitError, match="OpenVINO can't load"):
        OpenVinoRunner(tmp_path / MODEL)


def test_unknown_dtypes_are_refused(uneven, tmp_path):
    with pytest.raises(PrunekitError, match="openvino has no dtype 'int4'; choose one of fp32, fp16"):
        export(uneven("llama"), "openvino", tmp_path / "out", Options("int4"))


def test_smollm2(shortened_smollm2, tmp_path):
    made = export(shortened_smollm2, "openvino", tmp_path / "out", Options("fp16"))
    assert made.parity.ok and made.parity.logits.rms_relative < 5e-3
    assert read_export(made.path).shape == shortened_smollm2.shape
