"""An adapter's part computed inside the base's product is the adapter that PEFT computes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from transformers import AutoModelForCausalLM

from abctune.llm.likelihood import conversation_nll
from stages.eval.fused import fuse_adapter

ROWS = [[5, 17, 200, 31, 8, 90, 3], [44, 2, 2, 101], [7] * 40]


def adapted(small_model, dtype=torch.float32, **settings):
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=dtype)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "up_proj", "down_proj"],
        init_lora_weights=False,
        **settings,
    )
    return get_peft_model(base, config, autocast_adapter_dtype=False).eval()


def fused_layers(model):
    return [layer for layer in model.modules() if isinstance(layer, Linear) and "forward" in vars(layer)]


def test_every_layer_is_fused_and_the_likelihoods_are_peft_s(small_model):
    model = adapted(small_model)
    wanted = conversation_nll(model, ROWS, ROWS, batch_tokens=100)
    fuse_adapter(model)
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    assert len(fused_layers(model)) == len(layers) > 0
    assert conversation_nll(model, ROWS, ROWS, batch_tokens=100) == pytest.approx(wanted, rel=1e-6)


def test_in_bfloat16_it_is_no_further_from_the_exact_product_than_peft(small_model):
    model = adapted(small_model, torch.bfloat16)
    layer = next(layer for layer in model.modules() if isinstance(layer, Linear))
    x = torch.randn(3, 50, layer.in_features).bfloat16()
    base, down, up = (
        weight.double()
        for weight in (layer.base_layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight)
    )
    exact = x.double() @ base.t() + x.double() @ down.t() @ up.t() * layer.scaling["default"]

    def error():
        return (layer(x).double() - exact).pow(2).mean().sqrt()

    of_peft = error()
    fuse_adapter(model)
    assert error() <= 1.05 * of_peft


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_not_a_plain_product_is_left_to_peft(small_model, settings):
    model = adapted(small_model, **settings)
    wanted = conversation_nll(model, ROWS, ROWS, batch_tokens=100)
    fuse_adapter(model)
    assert not fused_layers(model)
    assert conversation_nll(model, ROWS, ROWS, batch_tokens=100) == wanted
