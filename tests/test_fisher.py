"""The three Fishers of the last layer against per-sample autograd."""

import numpy as np
import oracles
import pytest
import torch
from problems import PROBLEMS, N
from processes import torchrun
from refusals import refused

from thinkback_utils import reference
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher

ALL = [DiagonalFisher, FullFisher, KroneckerFisher]
PLAIN = PROBLEMS["T = 5"]
DATA = PLAIN.features, PLAIN.logits


def matrices(fisher):
    """What compute() returns, as a tuple."""
    computed = fisher.compute()
    return computed if isinstance(computed, tuple) else (computed,)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("kind", ["predicted", "true", "model"])
def test_all_three_equal_the_mean_outer_product_of_autograd_s_gradients(name, kind):
    """The diagonal of F; F; and A, the part of F between biases, whose input is 1."""
    case = PROBLEMS[name]
    data, T = (case.features, case.logits, case.labels), case.temperature
    classes = len(case.weight)
    whole = oracles.full_fisher(*case.layer, T, kind, case.labels)
    whole = whole.view(classes, -1, classes, whole.shape[1] // classes)  # (K, D + 1, K, D + 1)
    A = whole[:, -1, :, -1]
    for bias in (False, True):
        F = whole if bias else whole[:, :-1, :, :-1]
        F = F.reshape(F.shape[0] * F.shape[1], -1)
        B = case.inputs(bias).T @ case.inputs(bias) / N
        diagonal, full, factors = (fisher(T, kind, bias).update(*data).compute() for fisher in ALL)
        np.testing.assert_allclose(diagonal.flatten(), F.diagonal(), rtol=1e-9, atol=0)
        for ours, oracle in ((full, F), (factors[0], A), (factors[1], B)):
            np.testing.assert_allclose(ours, oracle, rtol=1e-9, atol=1e-12 * oracle.abs().max())
        # residuals sum to zero
        assert factors[0].sum(1).abs().max() < 1e-14 * factors[0].abs().max()


def test_full_is_the_product_of_the_factors_if_independent():
    """Every residual meets every feature: F = A ⊗ B to rounding."""
    h, z = DATA[0].repeat(N, 1), DATA[1].repeat_interleave(N, 0)
    A, B = KroneckerFisher().update(h, z).compute()
    F = FullFisher().update(h, z).compute()
    np.testing.assert_allclose(F, torch.kron(A, B), rtol=1e-11, atol=1e-14 * F.abs().max())


def test_is_not_the_square_of_the_batch_gradient():
    g = reference.head_gradients(*PLAIN.layer, PLAIN.labels, 5.0)
    ours = DiagonalFisher(5.0, "true").update(*DATA, PLAIN.labels).compute()
    assert (ours > 2 * g.mean(0).square()[:, :-1]).all()


@pytest.mark.parametrize("kind", ALL)
def test_streaming_equals_one_batch(kind):
    whole, parts = kind().update(*DATA), kind()
    for batch in zip(*(values.split(7) for values in DATA), strict=True):
        parts.update(*batch)
    assert parts.count == whole.count == N
    for ours, oracle in zip(matrices(parts), matrices(whole), strict=True):
        np.testing.assert_allclose(ours, oracle, rtol=1e-13, atol=1e-15 * oracle.abs().max())


def test_true_fisher_stays_exact_for_confident_samples():
    logits = torch.tensor([[0.0, -60.0]], dtype=torch.float64)
    ours = DiagonalFisher(1.0, "model").update(torch.ones(1, 1).double(), logits).compute()
    np.testing.assert_allclose(ours[:, 0], [np.exp(-60.0)] * 2, rtol=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_all_reduce_alone_changes_nothing(kind):
    fisher = kind().update(*DATA)
    before = matrices(fisher)
    assert all(map(torch.equal, matrices(fisher.all_reduce()), before))


PROCESS = """
import datetime, os, sys
import torch
import torch.distributed as dist
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher, summed

dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=100))
rank, found = dist.get_rank(), {}
generator = torch.Generator().manual_seed(rank)
h, z = torch.rand(5 + rank, 6, generator=generator), torch.randn(5 + rank, 4, generator=generator)


def error(action):
    try:
        return f"no error: {action()}"
    except ValueError as error:
        return str(error)


for kind in (DiagonalFisher, FullFisher, KroneckerFisher):
    fisher = kind() if rank == 1 else kind().update(h, z)  # process 1 has seen no data
    computed = fisher.all_reduce().compute()
    found[kind.__name__] = (fisher.count, computed if isinstance(computed, tuple) else (computed,))
found["numbers"] = summed(torch.tensor(0) if rank == 1 else torch.tensor([1, 2]))
found["nobody"] = error(lambda: DiagonalFisher().all_reduce())
found["shapes"] = error(lambda: DiagonalFisher().update(h[:, : 6 - rank], z).all_reduce())
mixed = DiagonalFisher() if rank else KroneckerFisher()
found["forms"] = error(lambda: mixed.update(h, z).all_reduce())
found["settings"] = error(lambda: DiagonalFisher(1.0 + rank).update(h, z).all_reduce())
found["sums"] = error(lambda: summed(torch.zeros(2 + rank)))
found["types"] = error(lambda: summed(torch.zeros(2, dtype=torch.float32 if rank else torch.int64)))
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What three real processes found, of which the second has seen no data."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "process.py").write_text(PROCESS, encoding="utf-8")
    torchrun(3, folder / "process.py", folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("kind", ALL)
def test_all_reduce_sums_over_processes_with_and_without_data(processes, kind):
    whole = kind()
    for rank in (0, 2):
        generator = torch.Generator().manual_seed(rank)
        h = torch.rand(5 + rank, 6, generator=generator)
        whole.update(h, torch.randn(5 + rank, 4, generator=generator))
    for found in processes:
        count, parts = found[kind.__name__]
        assert count == whole.count == 12
        for ours, oracle in zip(parts, matrices(whole), strict=True):
            torch.testing.assert_close(ours, oracle, rtol=1e-12, atol=1e-15)


def test_a_number_counts_in_every_place_of_a_sum(processes):
    assert [found["numbers"].tolist() for found in processes] == [[2, 4]] * 3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nobody", "none of 3 processes has seen data; call update(features, logits) first"),
        ("shapes", "the shapes of their Fishers: [(4, 6)], [(4, 5)], [(4, 4)]; give all the same "),
        ("forms", "the settings of their Fishers: ('KroneckerFisher', 5.0, 'predicted', False), ("),
        ("settings", "the settings of their Fishers: ('DiagonalFisher', 1.0, "),
        ("sums", "the shapes of what they add: (2,), (3,), (4,); "),
        ("types", "the types of what they add: torch.int64, torch.float32; "),
    ],
)
def test_processes_that_disagree_all_say_so_and_none_waits(processes, what, message):
    said = {found[what] for found in processes}
    assert len(said) == 1
    assert message in said.pop()


def test_automatic_damping_is_one_gradient_spread_over_all_axes():
    """(F + trace(F) / (N P) I)^-1, and so per factor of the Kronecker form."""
    full, factors = FullFisher().update(*DATA), KroneckerFisher().update(*DATA)
    assert full.automatic_damping == factors.automatic_damping == 1 / N
    roots = full.inverse_root(), *factors.inverse_root()
    for root, M in zip(roots, (full.compute(), *factors.compute()), strict=True):
        inverse = oracles.inverse(M, 1 / N)
        np.testing.assert_allclose(root @ root.T, inverse, rtol=1e-9, atol=1e-12 * inverse.max())


H, Z = torch.rand(2, 3), torch.rand(2, 2)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: DiagonalFisher(temperature=0), "temperature must be positive"),
        (lambda: DiagonalFisher(labels="guessed"), "labels must be one of"),
        (lambda: FullFisher(labels="guessed"), "labels must be one of"),
        (lambda: DiagonalFisher().compute(), "has seen no data"),
        (lambda: FullFisher().inverse_root(), "has seen no data"),
        (lambda: KroneckerFisher().compute(), "has seen no data"),
        (lambda: DiagonalFisher(labels="true").update(H, Z), "needs update"),
        (lambda: KroneckerFisher(labels="true").update(H, Z), "needs update"),
        (
            lambda: DiagonalFisher(labels="true").update(H, Z, torch.tensor([0, 2])),
            r"labels must lie in \[0, 2\), got 0 to 2",
        ),
        (
            lambda: DiagonalFisher(labels="true").update(H, Z, torch.tensor([0])),
            r"integers of shape \(2,\)",
        ),
        (
            lambda: DiagonalFisher().update(H, Z).update(torch.rand(2, 4), Z),
            r"holds \(2, 3\), the batch has \(2, 4\)",
        ),
        (
            lambda: FullFisher().update(H.repeat(1, 2), Z).update(torch.rand(2, 4), H),
            r"holds \(2, 6, 2, 6\), the batch has \(3, 4, 3, 4\)",
        ),
        (
            lambda: KroneckerFisher().update(H, Z).update(torch.rand(2, 4), Z),
            r"holds \(3, 3\), the batch has \(4, 4\)",
        ),
    ],
)
def test_misuse_is_named(action, message):
    with refused(message):
        action()
