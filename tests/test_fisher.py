"""The diagonal Fisher against per-sample autograd."""

import numpy as np
import pytest
import torch

from thinkback_utils.fisher import DiagonalFisher
from thinkback_utils.scores import head_gradients

N, D, K = 60, 6, 4


@pytest.fixture(scope="module")
def head():
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(K, D, generator=generator, dtype=torch.float64)
    bias = torch.randn(K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (N,), generator=generator)
    return features, weight, bias, features @ weight.T + bias, labels


def reference(features, weight, bias, labels, temperature, kind):
    """Mean of squared per-sample gradients (N, K, D + 1) under the labels of that kind, by autograd."""
    logits = features @ weight.T + bias
    if kind == "model":
        p = (logits / temperature).softmax(1)
        squares = [head_gradients(features, weight, bias, torch.full((N,), k), temperature).square() for k in range(K)]
        return sum(p[:, k, None, None] * square for k, square in enumerate(squares)).mean(0)
    y = logits.argmax(1) if kind == "predicted" else labels
    return head_gradients(features, weight, bias, y, temperature).square().mean(0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("kind", ["predicted", "true", "model"])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_mean_of_squared_gradients(head, temperature, kind, bias):
    features, weight, b, logits, labels = head
    ours = DiagonalFisher(temperature, kind, bias).update(features, logits, labels).compute()
    oracle = reference(features, weight, b, labels, temperature, kind)
    np.testing.assert_allclose(ours, oracle if bias else oracle[:, :-1], rtol=1e-9, atol=0)


def test_is_not_the_square_of_the_batch_gradient(head):
    features, weight, b, logits, labels = head
    squared_mean = head_gradients(features, weight, b, labels, 5.0).mean(0).square()[:, :-1]
    ours = DiagonalFisher(5.0, "true").update(features, logits, labels).compute()
    assert (ours > 2 * squared_mean).all()


def test_streaming_equals_one_batch(head):
    features, _, _, logits, _ = head
    whole, parts = DiagonalFisher().update(features, logits), DiagonalFisher()
    for index in torch.arange(N).split(7):
        parts.update(features[index], logits[index])
    assert parts.count == whole.count == N
    np.testing.assert_allclose(parts.compute(), whole.compute(), rtol=1e-13)


def test_true_fisher_stays_exact_for_confident_samples():
    logits = torch.tensor([[0.0, -60.0]], dtype=torch.float64)
    ours = DiagonalFisher(1.0, "model").update(torch.ones(1, 1, dtype=torch.float64), logits).compute()
    np.testing.assert_allclose(ours[:, 0], [np.exp(-60.0)] * 2, rtol=1e-12)


def test_all_reduce_alone_changes_nothing(head):
    features, _, _, logits, _ = head
    fisher = DiagonalFisher().update(features, logits)
    before = fisher.compute()
    assert torch.equal(fisher.all_reduce().compute(), before)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: DiagonalFisher(labels="guessed"), "labels must be one of"),
        (lambda: DiagonalFisher(temperature=0), "temperature must be positive"),
        (lambda: DiagonalFisher().compute(), "has seen no data"),
        (lambda: DiagonalFisher(labels="true").update(torch.rand(2, 3), torch.rand(2, 2)), "needs update"),
        (
            lambda: DiagonalFisher(labels="true").update(torch.rand(2, 3), torch.rand(2, 2), torch.tensor([0, 2])),
            r"labels must lie in \[0, 2\), got 0 to 2",
        ),
        (
            lambda: DiagonalFisher(labels="true").update(torch.rand(2, 3), torch.rand(2, 2), torch.tensor([0])),
            r"integers of shape \(2,\)",
        ),
        (
            lambda: (
                DiagonalFisher().update(torch.rand(2, 3), torch.rand(2, 2)).update(torch.rand(2, 4), torch.rand(2, 2))
            ),
            r"holds \(2, 3\), the batch has \(2, 4\)",
        ),
    ],
)
def test_misuse_is_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()
