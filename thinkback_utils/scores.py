"""Scores g(x) as pure functions of penultimate features and logits, from one forward pass.

Shapes: N samples, D features, K classes. Every score is float64 (N,), higher = more
out-of-distribution, and comes back as the kind of array that went in (torch or NumPy). A function
here says what a score means and checks its arrays; the formula in code is the function of the same
name in :mod:`kernels`, and what it must equal is in :mod:`reference`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import kernels
from .arrays import Array, as_given, as_matrix, as_pair, as_weights, doubled, positive
from .reference import gradnorm_autograd as gradnorm_autograd
from .reference import head_gradients as head_gradients
from .reference import thinkback_autograd as thinkback_autograd

CHUNK = 1024  # samples whose gradients, K D numbers each, are in memory at once


def msp(logits: Array, temperature: float = 1.0) -> Array:
    """Maximum softmax probability, negated: ``-max_k softmax(z / T)_k``.

    Args:
        logits: z, float (N, K).
        temperature: T > 0; 1 is the published baseline.

    Returns:
        float64 (N,) in [-1, -1/K], higher = more OOD.

    Raises:
        ValueError: on an empty, integer, non-finite or wrongly shaped array, or T <= 0.

    Source: Hendrycks & Gimpel (2017), the row "Softmax" of the paper.

    >>> msp(np.array([[0.0, 0.0], [9.0, 0.0]])).round(3)
    array([-0.5, -1. ])
    """
    return as_given(kernels.msp(as_matrix("logits", logits), positive(temperature)), logits)


def max_logit(logits: Array) -> Array:
    """Largest logit, negated: ``-max_k z_k``, float64 (N,), higher = more OOD.

    Arguments and errors as in :func:`msp`. Source: Hendrycks et al. (2022).
    """
    return as_given(kernels.max_logit(as_matrix("logits", logits)), logits)


def energy(logits: Array, temperature: float = 1.0) -> Array:
    """Free energy ``-T log sum_k exp(z_k / T)``, float64 (N,), higher = more OOD.

    Arguments and errors as in :func:`msp`. Source: Liu et al. (2020), the paper's row "Energy".

    >>> energy(np.array([[0.0, 0.0]])).round(4)  # -log 2
    array([-0.6931])
    """
    return as_given(kernels.energy(as_matrix("logits", logits), positive(temperature)), logits)


def joint_energy(logits: Array) -> Array:
    """Energies of independent sigmoids, added: ``-sum_k log(1 + exp z_k)``, higher = more OOD.

    For networks that answer yes or no for each class by itself (multi-label), where every other
    score here would take two sure answers for doubt.

    Args:
        logits: z, float (N, K).

    Returns:
        float64 (N,).

    Raises:
        ValueError: as :func:`msp`.

    Source: Wang et al., "Can multi-label classification networks know what they don't know?"
    (2021).

    >>> joint_energy(np.array([[0.0, 0.0]])).round(4)  # -2 log 2
    array([-1.3863])
    """
    return as_given(kernels.joint_energy(as_matrix("logits", logits)), logits)


def gradnorm(features: Array, logits: Array, temperature: float = 1.0) -> Array:
    """GradNorm in closed form: ``-||h||_1 ||p - 1/K||_1 / T``, float64 (N,), higher = more OOD.

    The L1 norm of the gradient that the *uniform* label causes in the last layer's weight.
    In-distribution inputs have the larger norm, hence the sign. Source: Huang et al. (2021), Eq. 8;
    see :func:`gradnorm_autograd`.
    """
    h, z = as_pair(features, logits)
    return as_given(kernels.gradnorm(h, z, positive(temperature)), logits, features=h)


def thinkback(
    features: Array,
    logits: Array,
    fisher: Tensor | NDArray[np.floating] | None = None,
    temperature: float = 5.0,
    eps: float = 1e-16,
    damping: float = 0.0,
) -> Array:
    """Squared gradient of the network's own decision, weighed by what training data causes.

    The gradient of ``-log softmax(z / T)_yhat`` in the last layer's weight is the outer product
    ``r h^T`` with ``r = (softmax(z / T) - onehot(yhat)) / T``, so no backward pass is needed:

    - without ``fisher`` (Eq. 5): ``sum_kd r_k^2 h_d^2 = ||r||^2 ||h||^2``;
    - with it (Eq. 6-7): ``sum_kd r_k^2 h_d^2 / (eps + E_kd)``, E the expected squared gradient on
      training data.

    Args:
        features: h, float (N, D), the input of the last linear layer.
        logits: z, float (N, K).
        fisher: E, (K, D), or (K, D + 1) with the bias column last; from
            ``DiagonalFisher(...).compute()``.
        temperature: T > 0; the paper's choice is 5.
        eps: absolute floor under E, 1e-16 in the paper. A feature that is silent on the fit data
            but not at test time adds r_k^2 h_d^2 / eps, beside which no other weight counts.
        damping: relative floor, in units of mean(E); 0 in the paper, 1e-3 limits silent features.

    Returns:
        float64 (N,), non-negative, higher = more OOD.

    Raises:
        ValueError: on arrays that are empty, integer, non-finite or disagree on N, D or K; T <= 0;
            a negative floor.

    Source: Yang & Rossi (2021), Eq. 5-7; see :func:`thinkback_autograd`.

    >>> h, z = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> thinkback(h, z, temperature=1.0)  # ||(-1/2, 1/2)||^2 times 5^2
    array([12.5])
    """
    if fisher is not None:
        inverse = inverse_diagonal(fisher, eps, damping)  # 1 / (eps + E)
        return thinkback_diagonal(features, logits, inverse, temperature)
    h, z = as_pair(features, logits)
    score = kernels.thinkback(h, z, positive(temperature))  # ||r||^2 ||h||^2
    return as_given(score, logits, features=h)


def thinkback_diagonal(
    features: Array, logits: Array, inverse: Tensor | NDArray[np.floating], temperature: float = 5.0
) -> Array:
    """:func:`thinkback` with the Fisher inverted beforehand: ``sum_kd r_k^2 h_d^2 V_kd``.

    One inverse serves any number of batches. The sum over d is a linear layer, V its weight, on
    squared features; the whole costs as much as the classifier's own last layer in float64.

    Args:
        features, logits, temperature: as in :func:`thinkback`.
        inverse: V, float (K, D), or (K, D + 1) with the bias column last, from
            :func:`inverse_diagonal`.

    Returns:
        float64 (N,), non-negative, higher = more OOD.

    Raises:
        ValueError: on bad arrays as in :func:`thinkback`, or an inverse of other K or D.

    >>> h, z = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> thinkback_diagonal(h, z, np.ones((2, 2)), temperature=1.0)
    array([12.5])
    """
    h, z = as_pair(features, logits)
    V = as_weights("inverse", inverse, h)
    _same_classes("inverse fisher", V, z)
    _same_inputs("inverse fisher", V, V.shape[1], h, z)
    score = kernels.thinkback_diagonal(h, z, V, positive(temperature))
    return as_given(score, logits, features=h, inverse=V)


def thinkback_full(
    features: Array, logits: Array, root: Tensor | NDArray[np.floating], temperature: float = 5.0
) -> Array:
    """Squared gradient ``g = vec(r h^T)``, weighed by the whole Fisher: ``g^T F^-1 g``.

    :func:`thinkback` is the same with the diagonal of F, as if the weights moved independently (the
    paper's Eq. 3). Here a direction counts by how rarely training data push along it, whatever axes
    one measures it in: without damping no invertible linear map of the features, and no common
    factor of the residuals, changes the score. Its mean over the data that F was fitted on is then
    the rank of F, its maximum there at most N.

    Args:
        features: h, float (N, D); pass ``h / ||h||`` here and to the Fisher to compare directions
            instead of lengths.
        logits: z, float (N, K).
        root: float (K D, R), or (K (D + 1), R) with the bias, from
            ``FullFisher(...).inverse_root()``.
        temperature: T > 0, that of the Fisher.

    Returns:
        float64 (N,), non-negative, higher = more OOD. A sample costs K D R multiplications.

    Raises:
        ValueError: on bad arrays as in :func:`thinkback`, or a root of other K or D.

    >>> h, z = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> root = inverse_root(np.diag([4.0, 1.0, 1.0, 1.0]))
    >>> thinkback_full(h, z, root, temperature=1.0)  # 9/16 + 4 + 9/4 + 4
    array([10.8125])
    """
    h, z = as_pair(features, logits)
    W, T = as_weights("root", root, h), positive(temperature)
    _same_inputs("root", W, len(W) / z.shape[1], h, z)
    parts = zip(h.split(CHUNK), z.split(CHUNK), strict=True)
    score = torch.cat([kernels.thinkback_full(*part, W, T) for part in parts])
    return as_given(score, logits, features=h, root=W)


def thinkback_kronecker(
    features: Array,
    logits: Array,
    roots: tuple[Tensor | NDArray[np.floating], Tensor | NDArray[np.floating]],
    temperature: float = 5.0,
) -> Array:
    """The score of :func:`thinkback_full` under ``F = A ⊗ B``: ``(r^T A^-1 r) (h^T B^-1 h)``.

    How unusual the residual is times how unusual the feature is: equal to the full score where
    training residuals and features are independent. Invariances as there.

    Args:
        features, logits, temperature: as in :func:`thinkback_full`.
        roots: of A, float (K, R), and of B, float (D, R') or (D + 1, R') with the bias, from
            ``KroneckerFisher(...).inverse_root()``; or :func:`inverse_root` of any other two
            matrices.

    Returns:
        float64 (N,), non-negative, higher = more OOD. A sample costs K R + D R' multiplications.

    Raises:
        ValueError: on bad arrays as in :func:`thinkback`, or roots of other K or D.

    >>> h, z = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> A, B = np.array([[0.25, -0.25], [-0.25, 0.25]]), np.diag([9.0, 16.0])
    >>> thinkback_kronecker(h, z, (inverse_root(A), inverse_root(B)), temperature=1.0).round(6)
    array([2.])
    """
    h, z = as_pair(features, logits)
    A, B = _roots(roots, h, z)
    score = kernels.thinkback_kronecker(h, z, (A, B), positive(temperature))
    return as_given(score, logits, features=h, root_A=A, root_B=B)


def thinkback_averaged(
    features: Array,
    logits: Array,
    weights: tuple[Tensor | NDArray[np.floating], Tensor | NDArray[np.floating]],
    temperature: float = 5.0,
) -> Array:
    """:func:`thinkback_kronecker` averaged over all labels by their probability, higher = more OOD.

    ``sum_y p_y (r_y^T A^-1 r_y) (h^T B^-1 h)`` with ``r_y = (p - onehot(y)) / T`` and
    ``p = softmax(z / T)``: a sample counts by all that its doubt would move. A mean of squared
    distances to the mean is half the mean of those between pairs, so the first factor is
    ``p^T C p / (2 T^2)``, C from :func:`label_distances`: no term is negative, and a nearly sure
    sample loses no digit.

    Args:
        features, logits, temperature: as in :func:`thinkback_kronecker`.
        weights: C, float (K, K), and the root of B, as there.

    Returns:
        float64 (N,), non-negative, higher = more OOD. A sample costs K^2 + D R' multiplications.

    Raises:
        ValueError: as there.

    Source: the label average is that of ExGrad (Igoe et al. 2022), here under the Fisher of the
    training data; p^T C p is the quadratic entropy of Rao (1982).

    >>> h, z = np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]])
    >>> weights = label_distances(inverse_root(np.eye(2))), inverse_root(np.diag([9.0, 16.0]))
    >>> thinkback_averaged(h, z, weights, temperature=1.0).round(6)
    array([1.])
    """
    h, z = as_pair(features, logits)
    C, B = _roots(weights, h, z)
    score = kernels.thinkback_averaged(h, z, (C, B), positive(temperature))
    return as_given(score, logits, features=h, distances=C, root_B=B)


def label_distances(root: Tensor | NDArray[np.floating]) -> Tensor:
    """``C_jk = (e_j - e_k)^T A^-1 (e_j - e_k)``: how unusual a change of label from j to k is.

    Args:
        root: of A, float (K, R), from ``KroneckerFisher(...).inverse_root()``.

    Returns:
        float64 (K, K), symmetric, zero on its diagonal.

    >>> label_distances(np.eye(2))
    tensor([[0., 2.],
            [2., 0.]], dtype=torch.float64)
    """
    A = as_matrix("root", root)
    gram = (A - A.mean(0)) @ (A - A.mean(0)).T  # what all rows share would only cost digits
    length = gram.diagonal()
    return (length[:, None] + length - 2 * gram).clamp(min=0).fill_diagonal_(0)


def inverse_diagonal(
    fisher: Tensor | NDArray[np.floating], eps: float = 1e-16, damping: float = 0.0
) -> Tensor:
    """``1 / (eps + damping * mean(E) + E)``: what a squared gradient counts in :func:`thinkback`.

    Args:
        fisher, eps, damping: as in :func:`thinkback`.

    Returns:
        float64, the shape of E; scoring never sees E again.

    Raises:
        ValueError: on a Fisher that is no matrix, not finite or negative; a negative floor; zeros
            without a floor.

    >>> inverse_diagonal(np.array([[4.0, 0.0]]), eps=0.0, damping=0.5)
    tensor([[0.2000, 1.0000]], dtype=torch.float64)
    """
    expected = as_matrix("fisher", fisher)
    if eps < 0 or damping < 0 or bool(expected.min() < 0):
        raise ValueError(
            f"thinkback: eps, damping and fisher must not be negative, got eps={eps},"
            f" damping={damping}, smallest fisher entry {expected.min().item():.3g}"
        )
    floor = eps + damping * expected.mean() + expected
    if bool(floor.min() == 0):
        raise ValueError(
            "thinkback: fisher has entries that are 0 and eps and damping are 0 too; set one of"
            " them"
        )
    return 1 / floor


def inverse_root(matrix: Tensor | NDArray[np.floating], damping: float = 0.0) -> Tensor:
    """W with ``W W^T = (M + damping * mean eigenvalue of M * I)^-1``.

    Then ``x^T M^-1 x = ||x W||^2``. One eigendecomposition; scoring never sees M again.

    Args:
        matrix: M, symmetric and positive semi-definite, float64 (P, P).
        damping: added to all eigenvalues, in units of their mean, which is the mean of M's
            diagonal: for a diagonal M this is the ``damping`` of :func:`thinkback`. 0 is the
            pseudo-inverse: eigenvalues below 1e-12 of the largest, where float64 sums are noise,
            are left out, and their directions do not count. For residuals, which always
            sum to zero, that is exact; a feature that is silent on the fit data is not seen. With
            damping it counts, and the more the smaller the damping.

    Returns:
        float64 (P, R); R is P, or the rank of M without damping.

    Raises:
        ValueError: on a matrix that is not square, symmetric and positive semi-definite, or zero; a
            negative damping.

    >>> inverse_root(np.diag([4.0, 0.0])).T.abs()
    tensor([[0.5000, 0.0000]], dtype=torch.float64)
    """
    M = as_matrix("matrix", matrix)
    if M.shape[0] != M.shape[1] or bool((M - M.T).abs().max() > 1e-9 * M.abs().max()):
        raise ValueError(f"thinkback: matrix {tuple(M.shape)} must be square and symmetric")
    if not 0 <= damping < float("inf"):
        raise ValueError(f"thinkback: damping must be finite and not negative, got {damping}")
    values, vectors = torch.linalg.eigh(M)  # ascending
    if not bool(M.any()):
        raise ValueError(
            "thinkback: matrix is zero: no sample causes a gradient where the network is certain of"
            " all of them, or all features are 0; raise the temperature, or fit on other data"
        )
    if values[0] < -1e-9 * values[-1]:
        raise ValueError(
            "thinkback: matrix must be positive semi-definite, got eigenvalues from "
            f"{values[0].item():.3g} to {values[-1].item():.3g}; was it summed in float64?"
        )
    values = values.where(values > 1e-12 * values[-1], 0.0) + damping * M.diagonal().mean()
    root: Tensor = vectors[:, values > 0] * values[values > 0].rsqrt()
    return root


def residual(logits: Tensor, temperature: float, labels: Tensor | None = None) -> Tensor:
    """Gradient of the loss in the logits, ``(softmax(z / T) - onehot(label)) / T``, float64 (N, K).

    The label's own entry is minus the sum of the others: subtracting 1 from a probability near 1
    would lose every digit of a confident sample's residual, and training samples are confident.

    Args:
        logits: z, float (N, K).
        temperature: T > 0.
        labels: int64 (N,); the network's own decision ``argmax z`` when None.
    """
    return kernels.residual(doubled(logits), positive(temperature), labels)


def _roots(roots: tuple[object, object], h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    A, B = (as_weights("root", root, h) for root in roots)
    _same_classes("the root of A", A, z)
    _same_inputs("root", B, len(B), h, z)
    return A, B


def _same_classes(name: str, weights: Tensor, logits: Tensor) -> None:
    if len(weights) != logits.shape[1]:
        raise ValueError(
            f"thinkback: logits {tuple(logits.shape)} and {name} {tuple(weights.shape)} disagree on"
            " K; was the Fisher fitted on another model?"
        )


def _same_inputs(
    name: str, weights: Tensor, columns: float, features: Tensor, logits: Tensor
) -> None:
    """Weights read ``columns`` inputs of a sample: its features, and perhaps a 1 for the bias."""
    if columns not in (features.shape[1], features.shape[1] + 1):
        raise ValueError(
            f"thinkback: features {tuple(features.shape)}, logits {tuple(logits.shape)} and {name} "
            f"{tuple(weights.shape)} disagree; was the Fisher fitted on another model?"
        )
