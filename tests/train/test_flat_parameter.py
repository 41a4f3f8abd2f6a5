"""An adapter whose matrices are views of one parameter trains as if they were not."""

import torch
from torch.nn import Linear, Sequential
from torch.nn.utils import clip_grad_norm_

from stages.train.flat_parameter import FlatParameter


def model():
    torch.manual_seed(0)
    layers = Sequential(Linear(5, 7, bias=False), Linear(7, 7, bias=False), Linear(7, 3, bias=False))
    layers[1].weight.requires_grad_(False)  # the frozen base
    return layers


def backward(layers, seed):
    torch.manual_seed(seed)
    layers.zero_grad()
    (layers(torch.randn(4, 5)) ** 2).sum().backward()


def test_steps_of_the_one_parameter_are_the_steps_of_its_parts():
    ours, plain = model(), model()
    flat = FlatParameter(ours.parameters())
    optimizers = [
        torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
        for parameters in (
            flat.parameters(),
            [weight for weight in plain.parameters() if weight.requires_grad],
        )
    ]
    for seed in range(3):
        for layers in (ours, plain):
            backward(layers, seed)
        flat.gather_gradients()
        for layers in (ours, plain):
            clip_grad_norm_(layers.parameters(), 0.5)  # reaches the one parameter through its parts
        for optimizer in optimizers:
            optimizer.step()
    for found, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(ours[0].weight, model()[0].weight)
    assert torch.equal(ours[1].weight, model()[1].weight)


def test_a_part_without_gradient_counts_as_zero():
    layers = model()
    flat = FlatParameter(layers.parameters())
    layers[0].weight.grad = torch.ones_like(layers[0].weight)
    assert flat.gather_gradients().tolist() == [1.0] * 35 + [0.0] * 21
