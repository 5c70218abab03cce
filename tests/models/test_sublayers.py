from __future__ import annotations

import pytest
import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import FAMILIES
from prunekit.models.sublayers import KINDS, Sublayers
from tests.support.tiny import MODEL_TYPES, VOCAB, tiny_model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_sublayers_one_after_the_other_are_the_model(model_type, bias):
    model = tiny_model(model_type, bias=bias)
    ids = torch.randint(0, VOCAB, (3, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model.base_model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        parts = Sublayers(model, FAMILIES[model_type], 19)
        hidden = parts.embed(ids)
        for index in range(4):
            assert torch.allclose(hidden, wanted[index], atol=1e-5)
            for kind in KINDS:
                layer = parts.layers[index]
                inputs, output = parts.run(layer, index, kind, parts.normed(layer, kind, hidden))
                projection = parts.projection(layer, kind)
                assert torch.allclose(projection(inputs), output, atol=1e-6)
                hidden = hidden + parts.added(layer, kind, output)
        assert torch.allclose(model.base_model.norm(hidden), wanted[4], atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_are_put_together_otherwise_are_refused():
    model = tiny_model("llama")
    forward = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)
    parts = Sublayers(model, FAMILIES["llama"], 8)
    with torch.no_grad(), pytest.raises(PrunekitError, match="not put together"):
        parts.run(parts.layers[0], 0, "attention", torch.randn(1, 8, 64))
