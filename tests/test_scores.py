"""Scores against autograd, torch.func and SciPy, in float64."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp, softmax

from thinkback_utils import arrays, fisher, scores

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
    """Per-sample gradients by torch.func, from log-softmax: independent of the package's own
    reference.
    """

    def loss(w, b, h, y):
        return F.cross_entropy((w @ h + b)[None] / temperature, y[None])

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))
    gradient_w, gradient_b = per_sample(weight, bias, features, labels)
    return torch.cat([gradient_w, gradient_b[:, :, None]], 2)


def test_logit_scores_equal_scipy(head):
    logits = head[3].numpy()
    for temperature in TEMPERATURES:
        close(scores.msp(logits, temperature), -softmax(logits / temperature, 1).max(1), 1e-12)
        close(
            scores.energy(logits, temperature),
            -temperature * logsumexp(logits / temperature, 1),
            1e-12,
        )
    close(scores.max_logit(logits), -logits.max(1), 0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_thinkback_equals_autograd_sample_by_sample(head, temperature):
    features, weight, bias, logits = head
    close(
        scores.thinkback(features, logits, None, temperature),
        scores.thinkback_autograd(features, weight, bias, None, temperature),
    )
    for with_bias in (False, True):
        expected = (
            fisher.DiagonalFisher(temperature, bias=with_bias).update(features, logits).compute()
        )
        for damping in (0.0, 0.1):
            close(
                scores.thinkback(features, logits, expected, temperature, damping=damping),
                scores.thinkback_autograd(
                    features, weight, bias, expected, temperature, damping=damping
                ),
            )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_thinkback_equals_vmap_of_grad(head, temperature):
    features, weight, bias, logits = head
    squared = plain_gradients(features, weight, bias, logits.argmax(1), temperature).square()
    expected = fisher.DiagonalFisher(temperature, bias=True).update(features, logits).compute()
    # At T = 0.5 log-softmax itself has lost digits of p - 1, so the tolerance is that of the
    # independent oracle.
    tolerance = 1e-9 if temperature > 1 else 1e-5
    close(
        scores.thinkback(features, logits, None, temperature),
        squared[:, :, :-1].sum((1, 2)),
        tolerance,
    )
    close(
        scores.thinkback(features, logits, expected, temperature),
        (squared / expected).sum((1, 2)),
        tolerance,
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradnorm_equals_autograd(head, temperature):
    features, weight, bias, logits = head
    close(
        scores.gradnorm(features, logits, temperature),
        scores.gradnorm_autograd(features, weight, bias, temperature),
    )


def test_residual_of_a_confident_sample_keeps_its_digits():
    logits = torch.tensor([[0.0, -60.0, -70.0]], dtype=torch.float64)
    exact = np.exp(-60.0) + np.exp(
        -70.0
    )  # p_0 - 1 is minus this, far below float64's grid around 1
    close(scores.residual(logits, 1.0)[0, 0], -exact, 1e-14)
    assert logits.softmax(1)[0, 0] - 1 == 0


def test_temperature_cancels_outside_the_softmax(head):
    """In Eq. 6 the factor 1 / T^2 of the gradient divides out: only p changes with T."""
    features, _, _, logits = head
    scaled = scores.thinkback(
        features, 3 * logits, fisher.DiagonalFisher(3.0).update(features, 3 * logits).compute(), 3.0
    )
    plain = scores.thinkback(
        features, logits, fisher.DiagonalFisher(1.0).update(features, logits).compute(), 1.0
    )
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
        (
            {"features": torch.zeros(3, D, dtype=torch.int64)},
            r"features must be floating point, got torch.int64",
        ),
        (
            {"logits": np.zeros((3, K), dtype=np.int32)},
            r"logits must be floating point, got torch.int32",
        ),
        ({"features": torch.zeros(D)}, r"features must be a non-empty matrix"),
        ({"features": torch.zeros(4, D)}, r"features \(4, 7\) and logits \(3, 5\) disagree on N"),
        (
            {"fisher": torch.ones(K, D + 2)},
            r"features \(3, 7\), logits \(3, 5\) and inverse fisher \(5, 9\) disagree",
        ),
        (
            {"fisher": torch.ones(K + 1, D)},
            r"logits \(3, 5\) and inverse fisher \(6, 7\) disagree on K",
        ),
        ({"fisher": -torch.ones(K, D)}, r"must not be negative.*smallest fisher entry -1"),
        ({"fisher": torch.zeros(K, D), "eps": 0.0}, r"fisher has entries that are 0"),
        ({"logits": torch.zeros(3, 1)}, r"K = 1 class"),
        ({"temperature": -1.0}, r"temperature must be positive and finite, got -1.0"),
        ({"temperature": 0.0}, r"temperature must be positive"),
        ({"temperature": float("nan")}, r"temperature must be positive"),
        (
            {"fisher": torch.ones(K, D), "damping": -0.1},
            r"must not be negative, got eps=1e-16, damping=-0.1",
        ),
    ],
)
def test_bad_input_names_what_and_where(change, message):
    with pytest.raises(ValueError, match=message):
        scores.thinkback(**({"features": torch.rand(3, D), "logits": torch.rand(3, K)} | change))


def explicit(features, weight, bias, root_columns, temperature=5.0):
    """vec(g) of the network's own decision by autograd, (N, K D) or (N, K (D + 1)) with the bias."""
    labels = (features @ weight.T + bias).argmax(1)
    gradients = scores.head_gradients(features, weight, bias, labels, temperature)
    return gradients[:, :, :root_columns].flatten(1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_full_equals_explicit_inverse_sample_by_sample(temperature, with_bias, damping):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(200, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(K, D, generator=generator, dtype=torch.float64)
    bias = torch.randn(K, generator=generator, dtype=torch.float64)
    logits = features @ weight.T + bias
    g = explicit(features, weight, bias, D + with_bias, temperature)
    F = g.T @ g / len(g)
    floor = damping * F.trace() / len(F) * torch.eye(len(F), dtype=torch.float64)
    inverse = (
        torch.linalg.inv(F + floor) if damping else torch.linalg.pinv(F, hermitian=True, rtol=1e-12)
    )
    root = (
        fisher.FullFisher(temperature, bias=with_bias)
        .update(features, logits)
        .inverse_root(damping)
    )
    ours = scores.thinkback_full(features, logits, root, temperature)
    close(ours, torch.einsum("np,pq,nq->n", g, inverse, g), 1e-8)
    if not damping:  # the mean is the rank, and a sample's leverage is at most N
        assert root.shape[1] == (K - 1) * (D + with_bias)
        close(ours.mean(), root.shape[1])
        assert ours.max() <= len(g) * (1 + 1e-9)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_kronecker_equals_explicit_inverses(head, with_bias, damping):
    features, weight, bias, logits = head
    r = scores.head_gradients(features, weight, bias, logits.argmax(1), 5.0)[:, :, -1]
    h = torch.cat([features, torch.ones(N, 1)], 1) if with_bias else features

    def quadratic(x):
        M = x.T @ x / N
        damped = M + damping * M.trace() / len(M) * torch.eye(len(M), dtype=torch.float64)
        return torch.einsum(
            "np,pq,nq->n", x, torch.linalg.pinv(damped, hermitian=True, rtol=1e-12), x
        )

    roots = fisher.KroneckerFisher(bias=with_bias).update(features, logits).inverse_root(damping)
    close(scores.thinkback_kronecker(features, logits, roots), quadratic(r) * quadratic(h), 1e-8)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_averaged_is_the_mean_of_the_statistic_over_labels(head, temperature):
    """One label at a time, with explicit inverses; a nearly sure sample keeps its digits."""
    features, _, _, logits = head
    logits = logits.clone()
    logits[0] = torch.tensor([40.0, *[0.0] * (logits.shape[1] - 1)])
    A, B = (torch.randn(n, n).double() for n in (logits.shape[1], features.shape[1]))
    roots = scores.inverse_root(A @ A.T), scores.inverse_root(B @ B.T)
    p, total = (logits / temperature).softmax(1), 0
    for label in range(logits.shape[1]):
        r = scores.residual(logits, temperature, torch.full((len(logits),), label))
        total = total + p[:, label] * torch.einsum("nk,kj,nj->n", r, torch.linalg.inv(A @ A.T), r)
    expected = total * torch.einsum("nd,de,ne->n", features, torch.linalg.inv(B @ B.T), features)
    weights = scores.label_distances(roots[0]), roots[1]
    close(scores.thinkback_averaged(features, logits, weights, temperature), expected, 1e-6)


def test_kronecker_equals_full_if_residuals_and_features_are_independent(head):
    features, _, _, logits = head
    h, z = features.repeat(N, 1), logits.repeat_interleave(N, 0)  # every pair
    full = fisher.FullFisher().update(h, z).inverse_root(0.0)
    factors = fisher.KroneckerFisher().update(h, z).inverse_root(0.0)
    close(scores.thinkback_full(h, z, full), scores.thinkback_kronecker(h, z, factors), 1e-8)


def test_full_with_a_diagonal_fisher_is_the_diagonal_score(head):
    features, _, _, logits = head
    for with_bias in (False, True):
        expected = fisher.DiagonalFisher(bias=with_bias).update(features, logits).compute()
        for damping in (0.0, 0.1):
            root = scores.inverse_root(torch.diag(expected.flatten()), damping)
            diagonal = scores.thinkback(features, logits, expected, eps=0.0, damping=damping)
            close(scores.thinkback_full(features, logits, root), diagonal)


def both(features, logits, fit_features, fit_logits, damping=0.0, temperature=5.0):
    """The full and the Kronecker score of samples under Fishers of others."""
    full, factors = (kind(temperature) for kind in (fisher.FullFisher, fisher.KroneckerFisher))
    return (
        scores.thinkback_full(
            features,
            logits,
            full.update(fit_features, fit_logits).inverse_root(damping),
            temperature,
        ),
        scores.thinkback_kronecker(
            features,
            logits,
            factors.update(fit_features, fit_logits).inverse_root(damping),
            temperature,
        ),
    )


def test_coordinates_of_features_and_temperature_do_not_matter_undamped(head):
    """Any invertible map of the features cancels; so does 1 / T^2. Damped, what cancels is a common
    scale.
    """
    features, _, _, logits = head
    mixing = torch.eye(D, dtype=torch.float64) + 0.3 * torch.randn(
        D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    mixed = features @ mixing
    for ours, oracle in zip(
        both(mixed, logits, mixed, logits), both(features, logits, features, logits), strict=True
    ):
        close(ours, oracle, 1e-7)
    for damping in (0.0, 0.01, None):
        plain = both(features, logits, features, logits, damping, 1.0)
        for ours, oracle in zip(
            both(10 * features, 3 * logits, 10 * features, 3 * logits, damping, 3.0),
            plain,
            strict=True,
        ):
            close(ours, oracle, 1e-8)


def test_singular_factors_are_finite_and_continuous_in_the_damping(head):
    """A is singular always, B through a silent and a doubled feature: damping to 0 meets the
    pseudo-inverse.
    """
    features, _, _, logits = head
    features = torch.cat([0 * features[:, :1], features[:, 1:], features[:, 1:2]], 1)
    limit = both(features, logits, features, logits, 0.0)
    for damping, tolerance in ((1e-7, 1e-2), (1e-9, 1e-4), (1e-11, 1e-6)):
        for ours, oracle in zip(
            both(features, logits, features, logits, damping), limit, strict=True
        ):
            close(ours, oracle, tolerance)


def test_a_feature_silent_on_the_fit_data_is_unseen_undamped_and_bounded_damped(head):
    features, _, _, logits = head
    fit = features * (torch.arange(D) > 0)
    for awake, silent in zip(
        both(features, logits, fit, logits), both(fit, logits, fit, logits), strict=True
    ):
        close(awake, silent, 1e-7)
    full, kronecker = both(features, logits, fit, logits, None)
    before = both(fit, logits, fit, logits, None)
    assert (full > before[0]).all()
    assert (kronecker > before[1]).all()
    rarity = N * K * D * scores.thinkback(features, logits) / scores.thinkback(fit, logits).mean()
    assert (full <= rarity).all()


def test_long_arrays_are_scored_in_parts_and_come_back_as_their_kind(head):
    features, _, _, logits = head
    root = fisher.FullFisher().update(features, logits).inverse_root()
    roots = fisher.KroneckerFisher().update(features, logits).inverse_root()
    long = scores.thinkback_full(features.repeat(60, 1), logits.repeat(60, 1), root)
    close(long, scores.thinkback_full(features, logits, root).repeat(60), 1e-12)
    as_numpy = scores.thinkback_full(features.numpy(), logits.numpy(), root.numpy())
    assert isinstance(as_numpy, np.ndarray)
    assert isinstance(
        scores.thinkback_kronecker(features.numpy(), logits.numpy(), roots), np.ndarray
    )


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda h, z: scores.thinkback_full(h, z, torch.ones(K * (D + 2), 3)),
            r"features \(3, 7\), logits \(3, 5\) and root \(45, 3\) disagree; was the Fisher",
        ),
        (
            lambda h, z: scores.thinkback_full(h, z, torch.ones(K * D + 1, 3)),
            r"root \(36, 3\) disagree",
        ),
        (lambda h, z: scores.thinkback_full(h, z[:2], torch.ones(K * D, 3)), "disagree on N"),
        (
            lambda h, z: scores.thinkback_full(h, z, torch.ones(K * D, 3), 0.0),
            "temperature must be positive",
        ),
        (
            lambda h, z: scores.thinkback_kronecker(h, z, (torch.ones(K + 1, 2), torch.ones(D, 2))),
            r"logits \(3, 5\) and the root of A \(6, 2\) disagree on K",
        ),
        (
            lambda h, z: scores.thinkback_kronecker(h, z, (torch.ones(K, 2), torch.ones(D + 2, 2))),
            r"features \(3, 7\), logits \(3, 5\) and root \(9, 2\) disagree",
        ),
        (lambda h, z: scores.inverse_root(h), r"matrix \(3, 7\) must be square and symmetric"),
        (
            lambda h, z: scores.inverse_root(torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
            "square and symmetric",
        ),
        (
            lambda h, z: scores.inverse_root(torch.diag(torch.tensor([1.0, -1.0]))),
            r"eigenvalues from -1 to 1",
        ),
        (lambda h, z: scores.inverse_root(torch.zeros(2, 2)), "matrix is zero"),
        (
            lambda h, z: scores.inverse_root(torch.eye(2), -0.1),
            "damping must be finite and not negative, got -0.1",
        ),
        (
            lambda h, z: scores.inverse_root(torch.full((2, 2), float("nan"))),
            "matrix has 4 values that are not finite",
        ),
    ],
)
def test_bad_roots_and_matrices_are_named(action, message):
    with pytest.raises(ValueError, match=message):
        action(torch.rand(3, D), torch.rand(3, K))


class OnMps:
    """As a tensor on Apple's GPU, which has no float64: only its copy on the CPU can be doubled."""

    device = torch.device("mps")

    def __init__(self, values):
        self.values = values

    def cpu(self):
        return self.values

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_float64_is_made_where_the_device_has_it():
    assert torch.equal(arrays.doubled(OnMps(torch.ones(2))), torch.ones(2).double())
    assert arrays.doubled(torch.ones(2)).dtype == torch.float64


@pytest.mark.parametrize("huge", [1e200, 1e300])
def test_finite_but_huge_inputs_are_an_error_not_an_infinite_score(huge):
    h, z = np.full((2, 3), huge), np.array([[1.0, 0.0], [huge, 0.0]])
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])
    for score in (
        lambda: scores.thinkback(h, sure),
        lambda: scores.gradnorm(np.full((2, 3), 1e308), sure),
    ):
        with pytest.raises(ValueError, match="overflow float64, from finite but huge numbers"):
            score()
    assert np.isfinite(scores.energy(z)).all()


def test_what_is_no_array_of_numbers_is_named():
    frame = pd.DataFrame(np.eye(3))
    assert np.array_equal(scores.msp(frame), scores.msp(np.eye(3)))
    for wrong in (pd.DataFrame({"a": ["x"]}), [["x"]], object()):
        with pytest.raises(ValueError, match="logits must be an array of numbers"):
            scores.msp(wrong)
