"""Scores against autograd, torch.func, SciPy and explicit inverses, and against each other."""

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from problems import PROBLEMS, N
from refusals import refused
from scipy.special import logsumexp, softmax

from thinkback_utils import arrays, fisher, reference, scores

PLAIN = PROBLEMS["T = 5"]
FEATURES, LOGITS = PLAIN.features, PLAIN.logits
K, D = PLAIN.weight.shape


def close(a, b, rtol=1e-9, atol=0.0):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def diagonal(T, h, z, fit=None, with_bias=False, **floors):
    E = fisher.DiagonalFisher(T, bias=with_bias).update(*(fit or (h, z))).compute()
    return scores.thinkback(h, z, E, T, **floors)


def full(T, h, z, fit=None, with_bias=False, damping=0.0):
    root = fisher.FullFisher(T, bias=with_bias).update(*(fit or (h, z))).inverse_root(damping)
    return scores.thinkback_full(h, z, root, T)


def roots(T, fit, with_bias, damping):
    return fisher.KroneckerFisher(T, bias=with_bias).update(*fit).inverse_root(damping)


def kronecker(T, h, z, fit=None, with_bias=False, damping=0.0):
    return scores.thinkback_kronecker(h, z, roots(T, fit or (h, z), with_bias, damping), T)


def averaged(T, h, z, fit=None, with_bias=False, damping=0.0):
    A, B = roots(T, fit or (h, z), with_bias, damping)
    return scores.thinkback_averaged(h, z, (scores.label_distances(A), B), T)


def logit_scores_of_scipy(case):
    z, T = case.logits.numpy(), case.temperature
    yield scores.msp(z, T), -softmax(z / T, 1).max(1), 1e-12
    yield scores.energy(z, T), -T * logsumexp(z / T, 1), 1e-12
    yield scores.max_logit(z), -z.max(1), 0
    yield scores.joint_energy(z), -np.logaddexp(0, z).sum(1)


def autograd(case):
    h, z, T = case.features, case.logits, case.temperature
    yield scores.thinkback(h, z, None, T), reference.thinkback_autograd(*case.layer, None, T)
    yield scores.gradnorm(h, z, T), reference.gradnorm_autograd(*case.layer, T)
    for with_bias in (False, True):
        E = fisher.DiagonalFisher(T, bias=with_bias).update(h, z).compute()
        for floors in ({}, {"damping": 0.1}, {"eps": 1e-3}):
            oracle = reference.thinkback_autograd(*case.layer, E, T, **floors)
            yield scores.thinkback(h, z, E, T, **floors), oracle


def vmap_of_grad(case):
    """Through log-softmax, which loses digits of p - 1: close by the largest gradient."""
    y, T = case.logits.argmax(1), case.temperature
    g = oracles.head_gradients_vmap(*case.layer, y, T)
    yield case.gradients, g, 1e-9, 1e-13 * g.abs().max()
    r = scores.residual(case.logits, T)
    yield torch.einsum("nk,nd->nkd", r, case.inputs(True)), case.gradients


def explicit_inverses(case):
    h, z, T = case.features, case.logits, case.temperature
    drawn = [
        (chance, reference.head_gradients(*case.layer, y, T)[:, :, -1])
        for y, chance in oracles.labels_of_kind("model", z, T)
    ]
    for with_bias in (False, True):
        g = (case.gradients if with_bias else case.gradients[:, :, :-1]).flatten(1)
        r, x = case.gradients[:, :, -1], case.inputs(with_bias)
        F, A, B = (v.T @ v / N for v in (g, r, x))
        for damping in (0.0, 1e-3, 1.0):
            options = {"with_bias": with_bias, "damping": damping}
            yield full(T, h, z, **options), oracles.quadratic(g, F, damping), 1e-6
            first, second = (oracles.quadratic(v, M, damping) for v, M in ((r, A), (x, B)))
            yield kronecker(T, h, z, **options), first * second, 1e-6
            mean = sum(chance * oracles.quadratic(r_y, A, damping) for chance, r_y in drawn)
            yield averaged(T, h, z, **options), mean * second, 1e-6


def mean_over_the_fit_data(case):
    """The number of weights; or the rank, of which a sample's leverage is at most N."""
    h, z, T = case.features, case.logits, case.temperature
    yield diagonal(T, h, z, eps=0.0).mean(), case.weight.numel()
    whole, rank = full(T, h, z), (len(case.weight) - 1) * h.shape[1]
    yield whole.mean(), rank, 1e-6
    yield whole.clamp(max=N), whole, 1e-6


def diagonal_is_full_under_a_diagonal_fisher(case):
    h, z, T = case.features, case.logits, case.temperature
    for with_bias in (False, True):
        E = fisher.DiagonalFisher(T, bias=with_bias).update(h, z).compute()
        ours = scores.thinkback_full(h, z, scores.inverse_root(torch.diag(E.flatten()), 0.1), T)
        yield ours, scores.thinkback(h, z, E, T, eps=0.0, damping=0.1)


def kronecker_is_full_if_residuals_and_features_are_independent(case):
    T, every = case.temperature, 30
    h = case.features[:every].repeat(every, 1)
    z = case.logits[:every].repeat_interleave(every, 0)  # each residual meets each feature
    yield full(T, h, z), kronecker(T, h, z), 1e-6


def bias_is_the_weight_of_a_feature_that_is_always_1(case):
    for form in (diagonal, full, kronecker, averaged):
        ours = form(case.temperature, case.features, case.logits, with_bias=True, damping=0.1)
        yield ours, form(case.temperature, case.inputs(True), case.logits, damping=0.1)


def only_p_changes_with_temperature(case):
    """Under a Fisher, the factor 1 / T^2 of the gradient cancels, and so do units of features."""
    h, z, T = case.features, case.logits, case.temperature
    for form in (diagonal, full, kronecker, averaged):
        for damping in (1e-3, None) if form in (full, kronecker) else (1e-3,):
            scaled = form(3 * T, 10 * h, 3 * z, damping=damping)
            yield scaled, form(T, h, z, damping=damping), 1e-7


def coordinates_of_features_cancel_undamped(case):
    h, z, T = case.features, case.logits, case.temperature
    width, generator = h.shape[1], torch.Generator().manual_seed(4)
    noise = torch.randn(width, width, generator=generator, dtype=torch.float64)
    mixed = h @ (torch.eye(width, dtype=torch.float64) + 0.3 * noise)
    for form in (full, kronecker, averaged):
        yield form(T, mixed, z), form(T, h, z), 1e-6


def temperature_to_infinity(case):
    """Softmax tends to 1 / K: what is left is the length of the features."""
    h, z, T, classes = case.features, case.logits, 1e9, len(case.weight)
    length = h.square().sum(1)
    yield T**2 * scores.thinkback(h, z, None, T), (1 - 1 / classes) * length, 1e-6
    yield scores.msp(z, T), torch.full((N,), -1 / classes), 1e-6
    yield scores.energy(z, T) + T * np.log(classes), -z.mean(1), 1e-5, 1e-5


def unit_features(case):
    """Of directions, Eq. 5 is the squared residual alone."""
    h, z, T = case.features, case.logits, case.temperature
    alone = scores.residual(z, T).square().sum(1)
    yield scores.thinkback(F.normalize(h), z, None, T), alone
    yield scores.thinkback(h, z, None, T), alone * h.square().sum(1)


def two_classes(case):
    """The residual is (q, -q) / T, q the probability of the class not chosen."""
    h, z, T = case.features, case.logits[:, :2], case.temperature
    q = torch.sigmoid(-(z[:, 0] - z[:, 1]).abs() / T)
    yield scores.thinkback(h, z, None, T), 2 * (q / T).square() * h.square().sum(1)
    yield scores.msp(z, T), q - 1, 1e-12
    A, B = torch.eye(2, dtype=torch.float64), torch.eye(h.shape[1], dtype=torch.float64)
    weights = scores.label_distances(A), B  # p^T C p / 2 = 2 q (1 - q)
    oracle = 2 * q * (1 - q) / T**2 * h.square().sum(1)
    yield scores.thinkback_averaged(h, z, weights, T), oracle


IDENTITIES = [
    logit_scores_of_scipy,
    autograd,
    vmap_of_grad,
    explicit_inverses,
    mean_over_the_fit_data,
    diagonal_is_full_under_a_diagonal_fisher,
    kronecker_is_full_if_residuals_and_features_are_independent,
    bias_is_the_weight_of_a_feature_that_is_always_1,
    only_p_changes_with_temperature,
    coordinates_of_features_cancel_undamped,
    temperature_to_infinity,
    unit_features,
    two_classes,
]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.__name__)
def test_identity(identity, name):
    pairs = list(identity(PROBLEMS[name]))
    assert pairs
    for pair in pairs:
        close(*pair)


def test_residual_of_a_confident_sample_keeps_its_digits():
    logits = torch.tensor([[0.0, -60.0, -70.0]], dtype=torch.float64)
    exact = np.exp(-60.0) + np.exp(-70.0)  # 1 - p_0, far below float64's grid around 1
    close(scores.residual(logits, 1.0)[0, 0], -exact, 1e-14)
    assert logits.softmax(1)[0, 0] - 1 == 0


def test_kind_and_dtype_follow_the_input():
    as_numpy = scores.thinkback(FEATURES.numpy(), LOGITS.numpy())
    assert isinstance(as_numpy, np.ndarray)
    assert as_numpy.dtype == np.float64
    as_torch = scores.thinkback(FEATURES.float(), LOGITS.float())
    assert as_torch.dtype == torch.float64
    close(as_torch, as_numpy, 1e-4)


def test_a_feature_silent_on_the_fit_data_explodes_without_damping_only():
    fit = FEATURES * (torch.arange(D) > 0), LOGITS
    awake = fit[0] + 0.1 * (torch.arange(D) == 0)
    ratio = diagonal(5.0, awake, LOGITS, fit) / diagonal(5.0, *fit)
    assert ratio.min() > 1e8
    damped = diagonal(5.0, awake, LOGITS, fit, damping=0.1) / diagonal(5.0, *fit, damping=0.1)
    assert damped.max() < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"features": torch.full((3, D), torch.nan)},
            "features has 21 values that are not finite.*row 0, column 0",
        ),
        ({"logits": torch.full((3, K), torch.inf)}, "logits has 15 values that are not finite"),
        ({"features": torch.zeros(0, D)}, r"features must be a non-empty matrix.*\(0, 7\)"),
        ({"features": torch.zeros(D)}, "features must be a non-empty matrix"),
        (
            {"features": torch.zeros(3, D).long()},
            "features must be floating point, got torch.int64",
        ),
        ({"logits": np.zeros((3, K), np.int32)}, "logits must be floating point, got torch.int32"),
        ({"features": torch.zeros(4, D)}, r"features \(4, 7\) and logits \(3, 5\) disagree on N"),
        (
            {"fisher": torch.ones(K, D + 2)},
            r"features \(3, 7\), logits \(3, 5\) and inverse fisher \(5, 9\) disagree",
        ),
        (
            {"fisher": torch.ones(K + 1, D)},
            r"logits \(3, 5\) and inverse fisher \(6, 7\) disagree on K",
        ),
        ({"fisher": -torch.ones(K, D)}, "must not be negative.*smallest fisher entry -1"),
        ({"fisher": torch.zeros(K, D), "eps": 0.0}, "fisher has entries that are 0"),
        ({"logits": torch.zeros(3, 1)}, "K = 1 class"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1.0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": torch.nan}, "temperature must be positive"),
        (
            {"fisher": torch.ones(K, D), "damping": -0.1},
            "must not be negative, got eps=1e-16, damping=-0.1",
        ),
    ],
)
def test_bad_input_names_what_and_where(change, message):
    with refused(message):
        scores.thinkback(**({"features": torch.rand(3, D), "logits": torch.rand(3, K)} | change))


def test_singular_factors_are_finite_and_continuous_in_the_damping():
    """A is singular always, B through a silent and a doubled feature."""
    h = torch.cat([0 * FEATURES[:, :1], FEATURES[:, 1:], FEATURES[:, 1:2]], 1)
    for form in (full, kronecker):
        limit = form(5.0, h, LOGITS)
        for damping, tolerance in ((1e-7, 1e-2), (1e-9, 1e-4), (1e-11, 1e-6)):
            close(form(5.0, h, LOGITS, damping=damping), limit, tolerance)


def test_a_feature_silent_on_the_fit_data_is_unseen_undamped_and_bounded_damped():
    fit = FEATURES * (torch.arange(D) > 0), LOGITS
    for form in (full, kronecker):
        close(form(5.0, FEATURES, LOGITS, fit), form(5.0, *fit), 1e-7)
        damped = form(5.0, FEATURES, LOGITS, fit, damping=None)
        assert (damped > form(5.0, *fit, damping=None)).all()
    length = scores.thinkback(FEATURES, LOGITS) / scores.thinkback(*fit).mean()
    assert (full(5.0, FEATURES, LOGITS, fit, damping=None) <= N * K * D * length).all()


def test_long_arrays_are_scored_in_parts_and_come_back_as_their_kind():
    root = fisher.FullFisher().update(FEATURES, LOGITS).inverse_root()
    once = scores.thinkback_full(FEATURES, LOGITS, root)
    long = scores.thinkback_full(FEATURES.repeat(30, 1), LOGITS.repeat(30, 1), root)
    close(long, once.repeat(30), 1e-12)
    given = FEATURES.numpy(), LOGITS.numpy()
    assert isinstance(scores.thinkback_full(*given, root.numpy()), np.ndarray)
    pair = fisher.KroneckerFisher().update(FEATURES, LOGITS).inverse_root()
    assert isinstance(scores.thinkback_kronecker(*given, pair), np.ndarray)


ROOT = torch.ones(K * D, 3)


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
        (lambda h, z: scores.thinkback_full(h, z[:2], ROOT), "disagree on N"),
        (lambda h, z: scores.thinkback_full(h, z, ROOT, 0.0), "temperature must be positive"),
        (
            lambda h, z: scores.thinkback_kronecker(h, z, (torch.ones(K + 1, 2), torch.ones(D, 2))),
            r"logits \(3, 5\) and the root of A \(6, 2\) disagree on K",
        ),
        (
            lambda h, z: scores.thinkback_kronecker(h, z, (torch.ones(K, 2), torch.ones(D + 2, 2))),
            r"features \(3, 7\), logits \(3, 5\) and root \(9, 2\) disagree",
        ),
    ],
)
def test_bad_roots_are_named(action, message):
    with refused(message):
        action(torch.rand(3, D), torch.rand(3, K))


@pytest.mark.parametrize(
    ("matrix", "damping", "message"),
    [
        (torch.rand(3, D), 0.0, r"matrix \(3, 7\) must be square and symmetric"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 0.0, "square and symmetric"),
        (torch.diag(torch.tensor([1.0, -1.0])), 0.0, "eigenvalues from -1 to 1"),
        (torch.zeros(2, 2), 0.0, "matrix is zero"),
        (torch.eye(2), -0.1, "damping must be finite and not negative, got -0.1"),
        (torch.full((2, 2), torch.nan), 0.0, "matrix has 4 values that are not finite"),
    ],
)
def test_bad_matrices_are_named(matrix, damping, message):
    with refused(message):
        scores.inverse_root(matrix, damping)


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
        with refused("overflow float64, from finite but huge numbers"):
            score()
    assert np.isfinite(scores.energy(z)).all()


def test_what_is_no_array_of_numbers_is_named():
    frame = pd.DataFrame(np.eye(3))
    assert np.array_equal(scores.msp(frame), scores.msp(np.eye(3)))
    for wrong in (pd.DataFrame({"a": ["x"]}), [["x"]], object()):
        with refused("logits must be an array of numbers"):
            scores.msp(wrong)
