"""What Unsloth is lent on a GPU, its logic on a CPU."""

import pytest
import torch

from abctune.llm.kernels import adapter_first


def unsloths(x, w, quant, a, b, s, out=None, **_):
    return x @ w.t() + s * (x @ a.t() @ b.t())


def not_to_be_called(*_, **__):
    raise AssertionError("Unsloth's own product was asked for")


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)])
def test_the_product_is_unsloths_in_another_order(shape):
    torch.manual_seed(0)
    x, w = torch.randn(shape, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    a, b = torch.randn(2, 8, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    before = [tensor.clone() for tensor in (x, w, a, b)]
    found = adapter_first(not_to_be_called)(x, w, None, a, b, 0.5, use_global_buffer=False)
    torch.testing.assert_close(found, unsloths(x, w, None, a, b, 0.5), rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, (x, w, a, b), before))


def test_an_adapter_in_float32_is_applied_in_the_rows_format():
    x, w = torch.randn(6, 8, dtype=torch.bfloat16), torch.randn(5, 8, dtype=torch.bfloat16)
    a, b = torch.randn(2, 8), torch.randn(5, 2)
    found = adapter_first(not_to_be_called)(x, w, None, a, b, 2.0)
    assert found.dtype == torch.bfloat16
    exact = unsloths(*(tensor.double() for tensor in (x, w)), None, a.double(), b.double(), 2.0)
    assert (found.double() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("change", [{"a": None}, {"quant": object()}, {"out": torch.empty(6, 5)}])
def test_what_it_does_not_know_is_left_to_unsloth(change):
    asked = {"x": torch.ones(6, 8), "w": torch.ones(5, 8), "quant": None, "a": torch.ones(2, 8)}
    asked |= {"b": torch.ones(5, 2), "s": 1.0, "out": None} | change
    assert adapter_first(lambda *given, **_: given)(**asked) == tuple(asked.values())
