"""The grid agrees with the scores of the package; the rule chooses as it says, and as on file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import development, family
from experiments.family import DAMPINGS, Candidate
from experiments.training import RECIPES
from thinkback_utils import data, scores
from thinkback_utils.data import ImageSet
from thinkback_utils.features import Features
from thinkback_utils.fisher import DiagonalFisher, FullFisher, KroneckerFisher
from thinkback_utils.methods import METHODS

RESULTS = Path(__file__).parents[1] / "results" / "development"
K, D, N = 3, 5, 400


def some(seed, n=N):
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(n, D, generator=generator)
    return Features(h, 4 * h @ torch.randn(D, K, generator=torch.Generator().manual_seed(9)))


FIT, NEW = some(0), some(1, 30)


def by_hand(candidate, damping):
    """The candidate from the public scores and Fishers, on inputs made here."""
    T, labels = candidate.temperature, candidate.labels

    def inputs(h):
        h = h.double() / h.double().norm(dim=1, keepdim=True) if candidate.unit else h.double()
        return torch.cat([h, torch.ones(len(h), 1).double()], 1) if candidate.bias else h

    fit, new = (inputs(FIT.features), FIT.logits), (inputs(NEW.features), NEW.logits)
    if candidate.form == "diagonal":
        fisher = DiagonalFisher(T, labels).update(*fit).compute()
        if damping == 0:
            return scores.thinkback(*new, fisher, T, eps=1e-16)
        return scores.thinkback(*new, fisher, T, eps=0.0, damping=damping or 1 / N)
    if candidate.form == "full":
        root = FullFisher(T, labels).update(*fit).inverse_root(damping)
        return scores.thinkback_full(*new, root, T)
    roots = KroneckerFisher(T, labels).update(*fit).inverse_root(damping)
    return scores.thinkback_kronecker(*new, roots, T)


@pytest.mark.parametrize("form", ["diagonal", "kronecker", "full"])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("labels", ["predicted", "model"])
def test_the_grid_is_the_scores(form, unit, labels):
    candidate = Candidate(form, unit, unit, labels, 3.0, None)
    found = family.statistics(candidate, FIT, {"new": NEW})["new"]
    for i, damping in enumerate(DAMPINGS):
        torch.testing.assert_close(found[:, i], by_hand(candidate, damping), rtol=1e-8, atol=0)


@pytest.mark.parametrize("labels", ["predicted", "model"])
def test_averaged_is_the_mean_over_labels(labels):
    candidate = Candidate("averaged", False, False, labels, 2.0, None)
    found = family.statistics(candidate, FIT, {"new": NEW})["new"]
    roots = KroneckerFisher(2.0, labels).update(FIT.features, FIT.logits).inverse_root(1e-2)
    p = (NEW.logits / 2).softmax(1)
    total = torch.zeros(len(NEW))
    for label in range(K):
        r = p - torch.eye(K)[label]
        total = total + p[:, label] * (r.double() @ roots[0]).square().sum(1)
    expected = total * (NEW.features.double() @ roots[1]).square().sum(1)
    torch.testing.assert_close(found[:, DAMPINGS.index(1e-2)], expected, rtol=1e-5, atol=0)


def at(form, damping=1e-2, unit=True, bias=True, T=2.0):
    made = family.Statistics(FIT, {"new": NEW}).of(
        Candidate(form, unit, bias, "predicted", T, damping)
    )
    return made["new"][:, DAMPINGS.index(damping)].numpy()


def test_without_a_fisher_of_the_residuals_doubt_is_gini():
    p = (NEW.logits.double() / 2).softmax(1).numpy()
    gini = 1 - (p**2).sum(1)
    np.testing.assert_allclose(at("gini"), gini, rtol=1e-9)
    h = torch.nn.functional.normalize(FIT.features.double())
    h = torch.cat([h, torch.ones(N, 1)], 1)
    root = scores.inverse_root(h.T @ h / N, 1e-2)
    x = torch.nn.functional.normalize(NEW.features.double())
    leverage = (torch.cat([x, torch.ones(len(x), 1)], 1) @ root).square().sum(1).numpy()
    np.testing.assert_allclose(at("averaged_plain"), gini * leverage, rtol=1e-6)
    r = scores.residual(NEW.logits, 2.0).square().sum(1).numpy()
    np.testing.assert_allclose(at("kronecker_plain"), r * leverage, rtol=1e-6)


def test_class_means_are_the_distance_to_the_nearest_mean():
    unit = [torch.nn.functional.normalize(x.features).double().numpy() for x in (FIT, NEW)]
    given = FIT.logits.argmax(1).numpy()
    means = np.stack([unit[0][given == k].mean(0) for k in range(K)])
    within = np.cov((unit[0] - means[given]).T, bias=True)
    precision = np.linalg.inv(within + 1e-2 * np.trace(within) / D * np.eye(D))
    away = unit[1][:, None] - means
    nearest = np.einsum("nkd,de,nke->nk", away, precision, away).min(1)
    np.testing.assert_allclose(at("gini_means"), at("gini") * nearest, rtol=1e-6)
    np.testing.assert_allclose(at("averaged_means"), at("doubt") * nearest, rtol=1e-6)
    np.testing.assert_allclose(at("averaged_both"), at("averaged") * nearest, rtol=1e-6)
    np.testing.assert_allclose(at("gini_both"), at("averaged_plain") * nearest, rtol=1e-6)


def test_every_candidate_differs_from_every_other():
    """A switch that a form does not read would make the same score twice."""
    made, seen = family.Statistics(FIT, {"new": NEW}), {}
    for candidate in family.candidates():
        column = DAMPINGS.index(candidate.damping)
        value = made.of(candidate)["new"][:, column].numpy()
        key = tuple(np.round(value / value.mean(), 9))
        assert key not in seen, (candidate, seen[key])
        seen[key] = candidate


def test_split_keeps_fit_held_out_and_hidden_apart():
    images = torch.arange(200).byte()[:, None, None, None].expand(-1, 3, 32, 32)
    parts = development.split(ImageSet(images, torch.arange(200) % 5, name="numbers"), hidden=(4,))
    three = (parts.fitted, parts.held_out, parts.hidden)
    seen = [set(part.images[:, 0, 0, 0].tolist()) for part in three]
    assert [len(s) for s in seen] == [144, 16, 40]
    assert set.union(*seen) == set(range(200))
    assert int(parts.fitted.labels.max()) == 3
    assert parts.fitted.name == "nine tenths of numbers without classes 4"


def record(figure, size, near=None, **fields):
    candidate = Candidate("kronecker", True, False, "predicted", 5.0, None)._replace(**fields)
    near = figure if near is None else near
    return candidate._asdict() | {"size": size, "far": figure, "near": near}


def test_the_rule_prefers_the_smaller_of_equals_and_then_the_better():
    best, close = record(0.9, 100), record(0.8995, 10, temperature=2.0)
    closer = record(0.8996, 10, temperature=3.0)
    assert development.choose([best, close, closer]).temperature == 3.0
    far = record(0.85, 1, temperature=7.0)
    assert development.choose([best, far]).temperature == 5.0
    elsewhere = [record(0.5, 10, temperature=2.0), record(0.9, 100)]
    both = [best, close, *elsewhere]
    assert development.choose(both).temperature == 5.0  # the mean over networks counts


def test_both_halves_count_alike_and_near_only_where_classes_were_hidden():
    records = [record(0.9, 1, near=0.6), {**record(0.7, 1), "near": None}]
    found = development.figures(records, "form")["kronecker",]
    assert found == pytest.approx((0.8, 0.6, 0.7))
    values = {"held_out": np.arange(10.0), "hidden": np.full(4, 20.0)}
    values |= {kind: np.full(4, 20.0) for kind in development.GROUPS["noise"]}
    values |= {kind: np.full(4, 4.5) for kind in development.GROUPS["changed"]}
    found = development.halves(values)
    assert (found["far"], found["near"]) == (0.75, 1.0)
    del values["hidden"]
    assert "near" not in development.halves(values)


def test_the_whole_chain_on_digits(tmp_path, monkeypatch):
    every = data.load("digits", "train")
    digits = ImageSet(every.images[::4], every.labels[::4], every.classes, every.name)
    monkeypatch.setattr(development.data, "load", lambda name, split: digits)
    recipe = RECIPES["smoke"].override(epochs=1)
    hidden = {"all": (), "some": (8, 9)}
    networks = {n: development.DevelopmentNetwork(h, recipe) for n, h in hidden.items()}
    monkeypatch.setattr(development, "NETWORKS", networks)
    few = [c for c in family.candidates() if c[1:5] == (True, False, "predicted", 5.0)]
    few = [c for c in few if c.form in ("diagonal", "kronecker")]
    monkeypatch.setattr(development, "candidates", lambda: iter(few))
    for name in ("COUNT", "HIDDEN_COUNT", "HELD_COUNT"):
        monkeypatch.setattr(development, name, 50)
    development.main(["--results", str(tmp_path), "--networks", "all", "some", "--device", "cpu"])
    rows = development.load(tmp_path / "development")
    assert development.chosen(tmp_path / "development", development.SECOND) in few
    assert len(rows) == 2 * len(few)
    assert {"hidden" in row for row in rows if row["network"] == "all"} == {False}
    assert all(0 <= row["far"] <= 1 for row in rows)
    assert {"near" in row for row in rows if row["network"] == "some"} == {True}


def test_the_choice_on_file_is_the_rules():
    made = development.choose(development.load(RESULTS))
    assert made == development.chosen(RESULTS, development.SECOND)


def test_the_method_of_the_package_is_the_choice():
    choice, method = development.chosen(RESULTS), METHODS["thinkback_averaged"]
    assert choice == development.default()
    found = family.statistics(choice, FIT, {"new": NEW})["new"][:, DAMPINGS.index(choice.damping)]
    state = method.fit([(FIT.features, FIT.logits)])
    expected = found / choice.temperature**2  # the grid leaves out 1 / T^2
    made = method(NEW.features, NEW.logits, state)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)
