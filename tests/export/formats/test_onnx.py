from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.export.export import export, read_export
from prunekit.export.formats.onnx import write as onnx_write
from prunekit.export.formats.pytorch.forward import example_inputs
from prunekit.export.registry import target
from prunekit.export.target import Job, Options, prepared
from prunekit.models.runner import TorchRunner
from prunekit.models.source import resolve
from tests.support.cached_forward import CachedForward
from tests.support.command import save_tiny
from tests.support.export_models import FAMILIES_TESTED, FFN, HEADS, KV_HEADS
from tests.support.tiny import tiny_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("optimum.exporters.base")

# What each family has that others lack; a window shorter than the texts that are compared.
FIELDS = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": 8},
    "qwen2": {"tied": True},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
}


def freeze(value):
    """Arguments of a cached fixture must be hashable."""
    return Frozen(value) if isinstance(value, dict) else value


class Frozen(dict):
    def __hash__(self):
        return hash(json.dumps(self, sort_keys=True))


@pytest.fixture(scope="session")
def source(uneven):
    return lambda family: uneven(family, **{name: freeze(value) for name, value in FIELDS[family].items()})


@pytest.fixture(scope="session")
def exported(source, tmp_path_factory):
    """``exported("qwen2")``: (source, what export returned), once a session."""
    made = {}

    def make(family):
        if family not in made:
            folder = tmp_path_factory.mktemp("onnx") / "mit Leerzeichen, 模型"
            made[family] = (source(family), export(source(family), "onnx", folder))
        return made[family]

    return make


def session_of(folder):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def graph_of(folder):
    return onnx.load(folder / "model.onnx", load_external_data=False)


def compare(session, model, shape, *, batch, length, past, keep=None):
    """Largest difference of logits and cache from transformers', padding on the left of the first sequence apart."""
    ids, mask, positions, *cache = example_inputs(shape, batch=batch, length=length, past=past)
    pad = min(2, past + length - 1)
    mask[0, :pad] = 0
    positions[0] -= pad
    positions.clamp_(min=0)
    given = (ids, mask, positions, *cache)
    with torch.no_grad():
        wanted = [tensor.numpy() for tensor in CachedForward(model)(*given)]
    names = [each.name for each in session.get_inputs() if each.name != "num_logits_to_keep"]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
    if keep is not None:
        feeds["num_logits_to_keep"] = np.array(keep)
    made = session.run(None, feeds)
    seen = mask[:, past:].bool().numpy()
    if keep:
        wanted[0], seen = wanted[0][:, -keep:], seen[:, -keep:]
    assert [each.shape for each in made] == [each.shape for each in wanted]
    gaps = [np.abs(made[0] - wanted[0])[seen]]
    # Of layers behind the first, what stands at padding is nobody's business.
    gaps += [np.abs(a - b).swapaxes(1, 2)[mask.bool().numpy()] for a, b in zip(made[1:], wanted[1:], strict=True)]
    return max(float(gap.max()) for gap in gaps)


@pytest.mark.parametrize("family", FAMILIES_TESTED)
def test_family(exported, family):
    source, made = exported(family)
    assert made.parity.ok and made.parity.logits.rms_relative < 2e-5
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    onnx.checker.check_model(str(made.path / "model.onnx"), full_check=True)
    # Weights are stored once: a tied head is the embedding table.
    assert source.shape.parameters * 4 < (made.path / "model.onnx").stat().st_size < source.shape.parameters * 4 + 2e5
    session = session_of(made.path)
    for batch, length, past in ((1, 1, 7), (3, 5, 0), (2, 4, 6), (3, 1, 12), (1, 40, 0)):
        for keep in (None, 1):
            assert compare(session, *_model(source), batch=batch, length=length, past=past, keep=keep) < 2e-4


def _model(source):
    return Job(source, Options(), "fp32").model, source.shape


def test_graph(exported):
    _, made = exported("qwen3")
    session = session_of(made.path)
    shapes = {each.name: each.shape for each in session.get_inputs()}
    total = "past_sequence_length + sequence_length"
    assert list(shapes)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", total]
    outputs = {each.name: each.shape for each in session.get_outputs()}
    for layer, heads in enumerate(KV_HEADS):
        for kind in ("key", "value"):
            assert shapes[f"past_key_values.{layer}.{kind}"] == ["batch_size", heads, "past_sequence_length", 32]
            assert outputs[f"present.{layer}.{kind}"] == ["batch_size", heads, total, 32]
    assert next(iter(outputs)) == "logits" and len(outputs) == len(shapes) - 2 == 7
    assert [each.name for each in session.get_overridable_initializers()] == ["num_logits_to_keep"]
    graph = graph_of(made.path).graph
    nodes = Counter(node.op_type for node in graph.node)
    assert nodes["Attention"] == 3 and nodes["RotaryEmbedding"] == 6 and nodes["Transpose"] == 0
    # Of 7 norms of the hidden state, 6 follow a sum; queries and keys have 6 more.
    assert nodes["SkipSimplifiedLayerNormalization"] == 6 and nodes["RMSNormalization"] == 7
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    found = [{each.name: each.i for each in node.attribute} for node in attentions]
    assert [(each["q_num_heads"], each["kv_num_heads"]) for each in found] == list(zip(HEADS, KV_HEADS, strict=True))
    sizes = {tuple(tensor.dims) for tensor in graph.initializer}
    assert all((256, width) in sizes for width in FFN)


def test_runner(exported):
    source, made = exported("qwen2")
    wanted = TorchRunner(Job(source, Options(), "fp32").model)
    ids = np.random.default_rng(0).integers(0, 512, (3, 21))
    with read_export(made.path).open(threads=1) as runner:
        assert runner.vocab_size == 512 and runner.max_batch is None
        for prompts in (ids, ids[:1, :1]):
            assert (runner.greedy(prompts, 9).tokens == wanted.greedy(prompts, 9).tokens).all()
        # What came before is forgotten, by texts and by prompts.
        runner.start(ids)
        np.testing.assert_allclose(runner.logits(ids[0]), wanted.logits(ids[0]), atol=1e-3)
        assert runner.start(ids).shape == runner.step(ids[:, 0]).shape == (3, 512)
        with pytest.raises(PrunekitError, match="could not run the model"):
            runner.step(ids[:2, 0])


def test_runtime_refuses_what_is_no_model(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(PrunekitError, match=r"ONNX Runtime refuses .*model\.onnx"):
        target("onnx").open(tmp_path)


def test_halves_in_a_file_of_their_own(source, tmp_path, monkeypatch):
    real = onnx_write.export_onnx
    monkeypatch.setattr(
        "prunekit.export.formats.onnx.target.export_onnx", lambda job, folder: real(job, folder, external_from=10**6)
    )
    given = source("mistral")
    made = export(given, "onnx", tmp_path / "out", Options(dtype="float16"))
    assert made.dtype == "fp16" and made.parity.ok and made.parity.logits.rms_relative < 1e-2
    browser = json.loads((made.path / "config.json").read_text())["transformers.js_config"]
    assert browser["use_external_data_format"] == {"model.onnx": 1}
    data = (made.path / "model.onnx_data").stat().st_size
    assert abs(data - 2 * given.shape.parameters) < 3e5
    assert (made.path / "model.onnx").stat().st_size < 5e5
    onnx.checker.check_model(str(made.path / "model.onnx"), full_check=True)
    notes = " ".join(made.written.notes)
    assert "model.onnx_data" in notes and "saves no time" in notes
    session = session_of(made.path)
    types = {each.name: each.type for each in (*session.get_inputs(), *session.get_outputs())}
    assert types["past_key_values.2.key"] == types["present.0.value"] == "tensor(float16)"
    assert types["logits"] == "tensor(float)"
    # Where the file of weights is lost, nothing is computed.
    (made.path / "model.onnx_data").unlink()
    with pytest.raises(PrunekitError, match="ONNX Runtime refuses"):
        target("onnx").open(made.path)


@pytest.mark.parametrize("what", ["weight", "rotation", "groups"])
def test_wrong_graphs_are_refused(exported, tmp_path, monkeypatch, what):
    source, good = exported("qwen2")

    def corrupt(job, folder):
        model = onnx.load(good.path / "model.onnx")
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        if what == "weight":
            tensor = next(each for each in tensors.values() if list(each.dims) == [256, 77])
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[3] *= 1.5
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        elif what == "rotation":
            tensor = next(each for each in tensors.values() if list(each.dims)[-1:] == [16])
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
        else:
            for node in model.graph.node:
                if node.op_type == "RotaryEmbedding":
                    # Halves of one head are rotated with those of another: shapes fit as before.
                    for attribute in node.attribute:
                        if attribute.name == "num_heads" and attribute.i == 4:
                            node.attribute.append(onnx.helper.make_attribute("interleaved", 1))
        onnx.save(model, folder / "model.onnx")

    monkeypatch.setattr("prunekit.export.formats.onnx.target.export_onnx", corrupt)
    with pytest.raises(PrunekitError, match="does not compute what PyTorch computes"):
        export(source, "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dynamic_rotation_is_refused(uneven):
    source = uneven("llama", rope_parameters=Frozen(rope_theta=10000.0, rope_type="dynamic", factor=2.0))
    with pytest.raises(PrunekitError, match=r"rope_type dynamic.*--to hf or --to vllm"):
        prepared(target("onnx"), source, Options())


def test_numbers_beyond_half_precision_are_refused(tmp_path):
    model = tiny_model("llama", layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path / "model")
    job = prepared(target("onnx"), resolve(str(tmp_path / "model")), Options(dtype="fp16"))
    with pytest.raises(PrunekitError, match=r"Layer 0: mlp\.up_proj\.weight .*--dtype float32"):
        onnx_write.export_onnx(job, tmp_path)
    with pytest.raises(PrunekitError, match="fp32, fp16 or bf16, not int4"):
        onnx_write.export_onnx(job, tmp_path, dtype="int4")


def test_plain_operators(tmp_path):
    """For other runtimes: gemma2 has most of what attention can have."""
    save_tiny(tmp_path / "model", "gemma2", layers=2)
    job = Job(resolve(str(tmp_path / "model")), Options(), "fp32")
    path = onnx_write.export_onnx(job, tmp_path, plain=True, logits="required")
    model = onnx.load(path)
    assert {(each.domain, each.version) for each in model.opset_import} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    session = session_of(tmp_path)
    assert "num_logits_to_keep" in [each.name for each in session.get_inputs()]
    for keep in (0, 1):
        assert compare(session, *_model(job.source), batch=2, length=12, past=5, keep=keep) < 2e-4


def test_readme_runs(exported, monkeypatch, capsys):
    source, made = exported("llama")
    readme = (made.path / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.S)
    assert code is not None
    monkeypatch.chdir(made.path)
    exec(code[1], {})
    job = Job(source, Options(), "fp32")
    prompt = job.tokenizer("Once upon a time")["input_ids"]
    made_by_torch = TorchRunner(job.model).greedy(np.array([prompt]), 40).tokens[0]
    assert capsys.readouterr().out == job.tokenizer.decode([*prompt, *made_by_torch]) + "\n"


def test_config_for_optimum(exported, tmp_path):
    from prunekit.export.formats.onnx.optimum_config import stock_fields

    source, made = exported("qwen3")
    assert made.written.facts["loads_in_optimum"] is False
    # transformers.js takes the architecture and the number of layers from it, and the cache's shapes from the graph.
    config = json.loads((made.path / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32"} and config["model_type"] == "qwen3"
    assert config["num_hidden_layers"] == len(KV_HEADS) and config["num_key_value_heads"] == max(KV_HEADS)
    assert stock_fields(Job(source, Options(), "fp32")) is None
    # hidden 64, head_dim 16: optimum divides one by num_attention_heads to get the other.
    uniform = resolve(str(save_tiny(tmp_path / "model", "qwen3", layers=2)))
    fields = stock_fields(Job(uniform, Options(), "fp16"))
    assert fields is not None and fields["model_type"] == "qwen3" and fields["architectures"] == ["Qwen3ForCausalLM"]
    assert (fields["num_attention_heads"], fields["num_key_value_heads"], fields["head_dim"]) == (4, 4, 16)
    assert fields["dtype"] == "float16" and json.dumps(fields)
    assert stock_fields(Job(resolve(str(save_tiny(tmp_path / "phi", "phi3"))), Options(), "fp32")) is None


def test_exporter_config(source):
    from optimum.exporters.base import ExporterConfig

    from prunekit.export.formats.onnx.config import PrunedOnnxConfig

    config = PrunedOnnxConfig.of(source("qwen3"), "fp16")
    assert isinstance(config, ExporterConfig)
    made = config.generate_dummy_inputs(batch_size=3, sequence_length=2, past_sequence_length=4)
    assert list(made) == list(config.inputs) and len(made) == 3 + 2 * len(KV_HEADS)
    assert made["input_ids"].shape == made["position_ids"].shape == (3, 2)
    assert made["attention_mask"].shape == (3, 6) and made["position_ids"][0].tolist() == [4, 5]
    for layer, heads in enumerate(KV_HEADS):
        assert made[f"past_key_values.{layer}.key"].shape == (3, heads, 4, 32)
        assert made[f"past_key_values.{layer}.value"].dtype == torch.float16


def test_subcommand_of_optimum(tmp_path, monkeypatch, capsys):
    from optimum.commands import optimum_cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "prunekit", *map(str, arguments)])
        try:
            optimum_cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    assert run("--help") == 0
    assert "--dtype" in capsys.readouterr().out
    model = save_tiny(tmp_path / "my model", layers=1)
    assert run("--model", model, tmp_path / "out") == 0
    done = read_export(tmp_path / "out")
    assert done.target.name == "onnx" and done.dtype == "fp32" and done.verified
    assert run("--model", model, tmp_path / "out") == 2
    assert "already exists" in capsys.readouterr().err


def test_subcommand_of_optimum_imports_little():
    code = "import sys, optimum.commands.register.register_prunekit; print({'torch', 'prunekit'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.stdout.strip() == "set()", done.stderr


def test_pruned_smollm2(shortened_smollm2, tmp_path):
    made = export(shortened_smollm2, "onnx", tmp_path / "out")
    assert made.parity.ok and made.parity.logits.rms_relative < 5e-5
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    assert (made.path / "model.onnx_data").stat().st_size < shortened_smollm2.shape.parameters * 4 * 1.01
    assert (made.path / "model.onnx").stat().st_size < 2e7
    assert made.written.decode_bytes == shortened_smollm2.shape.decode_bytes(4)
    nodes = Counter(node.op_type for node in graph_of(made.path).graph.node)
    layers = shortened_smollm2.shape.num_hidden_layers
    assert nodes["Attention"] == layers and nodes["SkipSimplifiedLayerNormalization"] == 2 * layers


def test_weights_are_let_go_when_they_are_written(uneven, tmp_path, monkeypatch):
    """torch keeps a graph that it has traced, with the weights that it has folded: a gigabyte and more of a large model
    while the next steps run."""
    onnx_ir = pytest.importorskip("onnx_ir")
    graphs = []
    save = onnx_ir.save

    def kept(made, *given, **named):
        graphs.append(made)
        save(made, *given, **named)

    monkeypatch.setattr(onnx_ir, "save", kept)
    onnx_write.export_onnx(Job(uneven("llama"), Options(), "fp32"), tmp_path)
    # The tests' own cache of traces saves one too.
    made = graphs[-1]
    assert made.graph.initializers and all(each.const_value is None for each in made.graph.initializers.values())
    assert onnx_ir.load(tmp_path / "model.onnx").graph.initializers
