"""Each metric on logits whose value can be counted by hand, and all of them from one forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from abctune.llm.likelihood import conversation_nll, conversation_sums
from stages.eval.metrics import METRICS, accuracy, loss

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 5.0, 0.0]])
CAME = torch.tensor([0, 1, 1])


def test_accuracy_counts_the_tokens_that_were_held_for_the_likeliest():
    assert accuracy.MEASURED.of_tokens(LOGITS, CAME).tolist() == [1, 0, 1]
    assert not accuracy.MEASURED.record.lower_is_better


def test_loss_is_minus_the_log_probability_in_nats():
    first = math.log(math.exp(2) + 2) - 2
    assert loss.MEASURED.of_tokens(LOGITS, CAME)[0].item() == pytest.approx(first)
    assert loss.MEASURED.record.lower_is_better


def test_a_metric_more_does_not_change_the_loss(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    rows = [[5, 17, 200, 31, 8, 90, 3], [44, 2, 2, 101], [7] * 40]
    all_of_them = {metric.record.sum: metric.of_tokens for metric in METRICS}
    sums = conversation_sums(model, rows, rows, 100, all_of_them)
    assert sums["nll"] == conversation_nll(model, rows, rows, 100)
    assert all(
        0 <= hits <= len(row) - 1 and hits == int(hits)
        for hits, row in zip(sums["n_correct"], rows, strict=True)
    )
