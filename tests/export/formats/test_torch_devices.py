"""Programs of PyTorch go where they are sent, whole: shown on torch's device "meta", which holds no numbers and refuses
to mix with a CPU's tensors, as a GPU does."""

from __future__ import annotations

import pytest
import torch

from prunekit.export.export import export
from prunekit.export.formats.pytorch.runner import GraphRunner, read_model_json
from prunekit.export.formats.pytorch.torch_export import moved
from prunekit.export.formats.pytorch.torchscript import TorchScript, bind_to
from prunekit.export.registry import target
from prunekit.export.target import Job, Options
from tests.support.torch_programs import run_alone

FIELDS = {
    "llama": {"attention_bias": True},
    "mistral": {"sliding_window": 8},
    "qwen3": {"tied": True},
    "gemma3_text": {"sliding_window": 8},
    "phi3": {},
}


@pytest.fixture
def equal_on_meta():
    """TorchScript compares constants, which "meta" can't; no two of them are one here."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("equal", lambda one, other: one is other, "Meta")
    yield
    library._destroy()


def check_answers(runner, vocab):
    """A prompt of two texts and a step behind it."""
    ids = torch.zeros(2, 7, dtype=torch.int64, device=runner.device)
    runner._restart(2)
    first, second = runner._last(ids), runner._last(ids[:, :1])
    assert first.shape == second.shape == (2, vocab)
    assert {first.device, second.device, *(each.device for each in runner._cache)} == {runner.device}
    assert all(each.shape[2] == 8 for each in runner._cache)


@pytest.mark.parametrize("family", FIELDS)
def test_torch_export(uneven, tmp_path, family):
    source = uneven(family, **FIELDS[family])
    export(source, "torch-export", tmp_path / "out", verify=False)
    with target("torch-export").open(tmp_path / "out", None, "meta") as runner:
        check_answers(runner, source.shape.vocab_size)


def test_what_torch_export_would_do_unmoved(uneven, tmp_path):
    """The test above can fail."""
    export(uneven("llama"), "torch-export", tmp_path / "out", verify=False)
    program = torch.export.load(str(tmp_path / "out" / "model.pt2"))
    facts = read_model_json(tmp_path / "out")
    with pytest.raises(RuntimeError), GraphRunner(program.module(), facts, "meta") as runner:
        check_answers(runner, facts["vocab_size"])
    assert moved(program, "cpu") is program


def on_meta(path):
    """TorchScript has no way of its own to send a loaded program there."""
    program = torch.jit.load(str(path)).eval()
    for module in program.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            module._c.setattr(name, tensor.detach().to("meta"))
    return program


@pytest.mark.parametrize("family", FIELDS)
def test_torchscript(uneven, tmp_path, family, equal_on_meta):
    source = uneven(family, **FIELDS[family])
    export(source, "torchscript", tmp_path / "out", verify=False)
    program = on_meta(tmp_path / "out" / "model.pt")
    bind_to(program, "meta")
    with GraphRunner(program, read_model_json(tmp_path / "out"), "meta") as runner:
        check_answers(runner, source.shape.vocab_size)


def test_what_torchscript_would_do_unbound(uneven, tmp_path, equal_on_meta):
    export(uneven("llama"), "torchscript", tmp_path / "out", verify=False)
    facts = read_model_json(tmp_path / "out")
    with pytest.raises(RuntimeError), GraphRunner(on_meta(tmp_path / "out" / "model.pt"), facts, "meta") as runner:
        check_answers(runner, facts["vocab_size"])


def test_a_program_for_a_gpu_names_it_and_still_opens_on_a_cpu(uneven, tmp_path, monkeypatch):
    """Its constants say "cuda" in the file, for LibTorch; opened here they say what is asked for."""
    job = Job(uneven("llama"), Options(), "fp32", device="cuda:0")
    folder = tmp_path / "out"
    folder.mkdir()
    # Tensors that are constants go there too, for which a GPU is needed; the program's are empty.
    monkeypatch.setattr(torch.Tensor, "to", _to_cpu_for_cuda(torch.Tensor.to))
    TorchScript().write(job, folder)
    monkeypatch.undo()

    def devices(program):
        return {
            node.s("value")
            for module in program.modules()
            for name in module._c._method_names()
            for node in module._c._get_method(name).graph.findAllNodes("prim::Constant")
            if node.output().type().kind() == "DeviceObjType"
        }

    assert devices(torch.jit.load(str(folder / "model.pt"))) == {"cuda"}
    with TorchScript().open(folder) as runner:
        check_answers(runner, 512)
        assert devices(runner._graph) == {"cpu"}
    assert 'map_location="cuda"' in TorchScript().usage(job) and TorchScript().usage(job).count('device="cuda"') == 5


def _to_cpu_for_cuda(to):
    return lambda self, *where, **more: to(self, *("cpu" if each == "cuda" else each for each in where), **more)


@pytest.mark.parametrize("name", ["torchscript", "torch-export"])
def test_the_program_in_a_readme_for_a_gpu_runs(uneven, tmp_path, name):
    """With "cpu" for "cuda" in it: the same lines otherwise."""
    made = export(uneven("qwen3"), name, tmp_path / "out", verify=False)
    job = Job(uneven("qwen3"), Options(), "fp32", device="cuda:0")
    before = run_alone(made.path)
    (made.path / "README.md").write_text(target(name).usage(job).replace('"cuda"', '"cpu"'))
    assert run_alone(made.path) == before
