"""Scores against autograd, torch.func and SciPy, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp, softmax

from thinkback_utils import fisher, scores

N, D, K = 40, 7, 5
TEMPERATURES = (0.5, 1.0, 5.0, 100.0)


@pytest.fixture(scope="module")
def head():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(N, D, generator=generator, dtype=torch.float64)
    weight = 2 * torch.randn(K, D, generator=generator, dtype=torch.float64)
    bias = torch.randn(K, generator=generator, dtype=torch.float64)
    return features, weight, bias, features @ weight.T + bias


def close(a, b, rtol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=0)


def plain_gradients(features, weight, bias, labels, temperature):
    """Per-sample gradients by torch.func, from log-softmax: independent of the package's own reference."""

    def loss(w, b, h, y):
        return F.cross_entropy((w @ h + b)[None] / temperature, y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))
    gradient_w, gradient_b = per_sample(weight, bias, features, labels)
    return torch.cat([gradient_w, gradient_b[:, :, None]], 2)


def test_logit_scores_equal_scipy(head):
    logits = head[3].numpy()
    for temperature in TEMPERATURES:
        close(scores.msp(logits, temperature), -softmax(logits / temperature, 1).max(1), 1e-12)
        close(scores.energy(logits, temperature), -temperature * logsumexp(logits / temperature, 1), 1e-12)
    close(scores.max_logit(logits), -logits.max(1), 0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_thinkback_equals_autograd_sample_by_sample(head, temperature):
    features, weight, bias, logits = head
    close(
        scores.thinkback(features, logits, None, temperature),
        scores.thinkback_autograd(features, weight, bias, None, temperature),
    )
    for with_bias in (False, True):
        expected = fisher.DiagonalFisher(temperature, bias=with_bias).update(features, logits).compute()
        for damping in (0.0, 0.1):
            close(
                scores.thinkback(features, logits, expected, temperature, damping=damping),
                scores.thinkback_autograd(features, weight, bias, expected, temperature, damping=damping),
            )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_thinkback_equals_vmap_of_grad(head, temperature):
    features, weight, bias, logits = head
    squared = plain_gradients(features, weight, bias, logits.argmax(1), temperature).square()
    expected = fisher.DiagonalFisher(temperature, bias=True).update(features, logits).compute()
    # At T = 0.5 log-softmax itself has lost digits of p - 1, so the tolerance is that of the independent oracle.
    tolerance = 1e-9 if temperature > 1 else 1e-5
    close(scores.thinkback(features, logits, None, temperature), squared[:, :, :-1].sum((1, 2)), tolerance)
    close(scores.thinkback(features, logits, expected, temperature), (squared / expected).sum((1, 2)), tolerance)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradnorm_equals_autograd(head, temperature):
    features, weight, bias, logits = head
    close(
        scores.gradnorm(features, logits, temperature),
        scores.gradnorm_autograd(features, weight, bias, temperature),
    )


def test_residual_of_a_confident_sample_keeps_its_digits():
    logits = torch.tensor([[0.0, -60.0, -70.0]], dtype=torch.float64)
    exact = np.exp(-60.0) + np.exp(-70.0)  # p_0 - 1 is minus this, far below float64's grid around 1
    close(scores.residual(logits, 1.0)[0, 0], -exact, 1e-14)
    assert logits.softmax(1)[0, 0] - 1 == 0


def test_temperature_cancels_outside_the_softmax(head):
    """In Eq. 6 the factor 1 / T^2 of the gradient divides out: only p changes with T."""
    features, _, _, logits = head
    scaled = scores.thinkback(
        features, 3 * logits, fisher.DiagonalFisher(3.0).update(features, 3 * logits).compute(), 3.0
    )
    plain = scores.thinkback(features, logits, fisher.DiagonalFisher(1.0).update(features, logits).compute(), 1.0)
    close(scaled, plain)


def test_mean_normalised_score_of_the_fit_data_is_the_number_of_weights(head):
    features, _, _, logits = head
    expected = fisher.DiagonalFisher().update(features, logits).compute()
    close(scores.thinkback(features, logits, expected, eps=0.0).mean(), K * D)


def test_kind_and_dtype_follow_the_input(head):
    features, _, _, logits = head
    as_numpy = scores.thinkback(features.numpy(), logits.numpy())
    assert isinstance(as_numpy, np.ndarray)
    assert as_numpy.dtype == np.float64
    as_torch = scores.thinkback(features.float(), logits.float())
    assert as_torch.dtype == torch.float64
    close(as_torch, as_numpy, 1e-5)


def test_dead_unit_explodes_without_damping_only(head):
    features, _, _, logits = head
    features = features.clone()
    features[:, 0] = 0
    expected = fisher.DiagonalFisher().update(features, logits).compute()
    alive = features.clone()
    alive[:, 0] = 0.1
    ratio = scores.thinkback(alive, logits, expected) / scores.thinkback(features, logits, expected)
    assert ratio.min() > 1e8
    tame = scores.thinkback(alive, logits, expected, damping=0.1) / scores.thinkback(
        features, logits, expected, damping=0.1
    )
    assert tame.max() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": torch.full((3, D), float("nan"))},
            r"features has 21 values that are not finite.*row 0, column 0",
        ),
        ({"logits": torch.full((3, K), float("inf"))}, r"logits has 15 values that are not finite"),
        ({"features": torch.zeros(0, D)}, r"features must be a non-empty matrix.*\(0, 7\)"),
        ({"features": torch.zeros(3, D, dtype=torch.int64)}, r"features must be floating point, got torch.int64"),
        ({"logits": np.zeros((3, K), dtype=np.int32)}, r"logits must be floating point, got torch.int32"),
        ({"features": torch.zeros(D)}, r"features must be a non-empty matrix"),
        ({"features": torch.zeros(4, D)}, r"features \(4, 7\) and logits \(3, 5\) disagree on N"),
        ({"fisher": torch.ones(K, D + 2)}, r"features \(3, 7\) and fisher \(5, 9\) disagree on D; was the Fisher"),
        ({"fisher": torch.ones(K + 1, D)}, r"logits \(3, 5\) and fisher \(6, 7\) disagree on K; was the Fisher"),
        ({"fisher": -torch.ones(K, D)}, r"must not be negative.*smallest fisher entry -1"),
        ({"fisher": torch.zeros(K, D), "eps": 0.0}, r"fisher has entries that are 0"),
        ({"logits": torch.zeros(3, 1)}, r"K = 1 class"),
        ({"temperature": -1.0}, r"temperature must be positive and finite, got -1.0"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"temperature": float("nan")}, r"temperature must be positive"),
        ({"fisher": torch.ones(K, D), "damping": -0.1}, r"must not be negative, got eps=1e-16, damping=-0.1"),
    ],
)
def test_bad_input_names_what_and_where(change, message):
    with pytest.raises(ValueError, match=message):
        scores.thinkback(**({"features": torch.rand(3, D), "logits": torch.rand(3, K)} | change))
