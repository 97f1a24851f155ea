"""Chapter 7's scores over temperatures: they are the package's, on the images they should be of."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bookmaking import sweep
from experiments import variants
from experiments.run import Run
from thinkback_utils import metrics, scores
from thinkback_utils.features import Bundle, Features

GENERATOR = torch.Generator().manual_seed(0)


def made(n, shift=0.0):
    h = torch.rand(n, 6, generator=GENERATOR) + shift
    return Features(h.half().float(), torch.randn(n, 3, generator=GENERATOR), torch.zeros(n).long())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    here = Run(Path(tmp_path_factory.mktemp("results"), "small", "seed0"))
    here.folder.mkdir(parents=True)
    sets = {"cifar10-train": made(11_000), "cifar10-test": made(40), "cifar100": made(20)}
    sets |= {"svhn": made(30, 0.5), "textures10": made(20, 0.5)}
    head = torch.randn(3, 6, generator=GENERATOR), torch.zeros(3)
    Bundle(sets, *head).save(here.folder / "bundle.npz")
    low = {f"{name}@bfloat16": made(10) for name in ("cifar10-test", "svhn", "textures10")}
    Bundle({variants.AUGMENTED: made(100), **low}, *head).save(here.folder / "variants.npz")
    return here


@pytest.fixture(scope="module")
def stored(run):
    return sweep.Sweep(run, n_validation=1000)


def test_images_are_divided(stored):
    assert stored.far == ["svhn", "textures10"]  # no near set
    assert len(stored.fit[0]) == 10_000
    assert {name: len(h) for name, (h, _) in stored.validation.items()} == {
        "training images": 1000,
        "test images": 20,
    }
    joined = torch.cat([stored.fit[0], stored.validation["training images"][0]])
    assert torch.equal(joined.sum(1).sort()[0], stored.train.features.double().sum(1).sort()[0])
    assert len(stored.H) == 40 + 30 + 20
    assert len(stored.titles) == 2


@pytest.mark.parametrize("n", [0, 11_000])
def test_validation_leaves_images_to_fit_on(run, n):
    with pytest.raises(ValueError, match="n_validation is from 1 to 10999"):
        sweep.Sweep(run, n_validation=n)


def test_scores_are_the_packages(stored):
    E = sweep.fisher(2.0, *stored.fit)
    expected = scores.thinkback(stored.H, stored.Z, E, 2.0, 1e-8, 0.1)
    assert torch.equal(stored.six(2.0, 1e-8, 0.1), expected)
    known = stored.validation["test images"]
    assert torch.equal(stored.five(2.0, known), scores.thinkback(*known, None, 2.0))
    criteria = stored.criteria([2.0, 3.0], known)
    assert criteria.loc[2.0, "std, Eq. 5"] == pytest.approx(float(stored.five(2.0, known).std()))
    assert list(criteria.index) == [2.0, 3.0]


def test_measures_are_of_each_far_set(stored):
    values = stored.five(1.0)
    table = stored.measure(values, slice(20, None))
    inside, first, _ = values.split([40, 30, 20])
    expected = metrics.summary(metrics.roc(inside[20:], first))
    np.testing.assert_allclose(table[0], [100 * value for value in expected.values()])
    assert stored.auroc(values) == pytest.approx(stored.measure(values)[:, 2].mean())
    assert sweep.column("fpr95") == 1
    with pytest.raises(ValueError, match="metric 'auc' is none of tpr10, fpr95, auroc, aupr"):
        sweep.column("auc")


def test_fits_and_precision(run, stored):
    extra = run.bundle("variants.npz")
    fits = sweep.fits(stored, extra.sets[variants.AUGMENTED])
    assert len(fits) == 8
    assert (fits["silent"] == 0).all()
    assert fits["std, T = 1"].notna().sum() == 3  # of several draws
    whole = fits.loc["all training images", "AUROC, T = 1"]
    E = sweep.fisher(1.0, *sweep.arrays(stored.train))
    assert whole == pytest.approx(stored.auroc(scores.thinkback(stored.H, stored.Z, E, 1.0)))
    precise = sweep.precision(stored, extra)
    assert list(precise["images"]) == [90, 90, 90, 30, 30]
    assert abs(precise.loc["p − 1 in float32", "AUROC, T = 1"]) < 0.5
    assert (precise["zeros, T = 5"] == 0).sum() >= 2
