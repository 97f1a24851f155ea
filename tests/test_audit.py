"""The audit's bounds: no curve beats them, and there are curves that come up to them."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import audit, evaluation
from thinkback_utils import metrics

PAPER = evaluation.paper_table()
PREVALENCES = (0.02, 1 / 6, 0.5, 0.9)


def random_curve(generator, shape):
    """A step ROC curve of one of several shapes, of at most 200 OOD and 300 ID images."""
    n_ood, n_id = generator.integers(2, 200), generator.integers(2, 300)
    if shape == "separated":
        ids = generator.normal(0, 1, n_id)
        oods = generator.normal(generator.uniform(0, 4), generator.uniform(0.2, 3), n_ood)
    elif shape == "clumps":  # groups of images of one kind at a few places: few and large steps
        places = generator.choice(20, 2 * generator.integers(1, 6), replace=False) + 0.0
        ids = generator.choice(places[::2], n_id) + 1e-3 * generator.random(n_id)
        oods = generator.choice(places[1::2], n_ood) + 1e-3 * generator.random(n_ood)
    elif shape == "ties":
        ids = generator.integers(0, 5, n_id) + 0.0
        oods = generator.integers(0, 7, n_ood) + 0.0
    else:  # "skewed": a few ID images on top of all, or at the very bottom of the OOD images
        ids = generator.beta(*generator.uniform(0.1, 3, 2), n_id)
        oods = generator.beta(*generator.uniform(0.1, 3, 2), n_ood)
    return metrics.roc(ids, oods)


@pytest.mark.parametrize("shape", ["separated", "clumps", "ties", "skewed"])
def test_no_curve_beats_the_bounds(shape, monkeypatch):
    """Finite curves too, with all their ties, once the largest step is declared."""
    monkeypatch.setattr(audit, "NODES", 100)  # fewer trapezoids: looser and quicker, as valid
    generator = np.random.default_rng(len(shape))
    for k in range(400):
        curve = random_curve(generator, shape)
        pi = PREVALENCES[k % 4]
        values = metrics.summary(curve, pi)
        digits = (12, 4, 2)[k % 3]
        rounded = {m: round(values[m], digits) for m in ("tpr10", "fpr95", "auroc")}
        step = float(np.diff(curve.tpr).max())
        printed = audit.Printed(**rounded, half_width=0.5 * 10.0**-digits, step=step)
        free = replace(printed, auroc=None).bounds(pi)
        low, high = printed.bounds(pi)
        assert free[0] - 1e-9 <= low <= values["aupr"] + 1e-9, (shape, k)
        assert values["aupr"] - 1e-9 <= high <= free[1] + 1e-9, (shape, k)


@pytest.mark.parametrize(
    "row", [(0.62, 0.43, 0.89), (0.78, 0.32, 0.92), (0.9635, 0.0672, 0.9844), (0.3, 0.8, 0.7)]
)
def test_curves_come_up_to_the_bounds(row, monkeypatch):
    """The curve has the row's numbers, and its average precision is the bound (100,000 steps)."""
    monkeypatch.setattr(audit, "NODES", 20_000)
    for auroc in (None, row[2]):
        printed = audit.Printed(*row[:2], auroc, half_width=0)
        for pi in PREVALENCES:
            for k, curve in enumerate(audit.extremal_curves(printed, pi, 100_000)):
                middle, f = (curve.tpr[1:-1] + curve.tpr[:-2]) / 2, curve.fpr[1:-1]
                ap = np.mean(pi * middle / (pi * middle + (1 - pi) * f))
                error = abs(ap - printed.bounds(pi)[k])
                near = 2e-3 if row[2] > 0.8 else 0.012
                assert error < (2e-5 if auroc is None or k == 0 else near), (row, auroc, pi, k)
                assert (np.diff(curve.fpr) >= 0).all()
                values = metrics.summary(curve, pi)
                assert abs(values["tpr10"] - row[0]) < 3e-4
                assert abs(values["fpr95"] - row[1]) < 3e-4
                assert auroc is None or abs(values["auroc"] - auroc) < 3e-5


@pytest.mark.parametrize(
    "record", [r for r in PAPER if r["method"] == "thinkback"], ids=lambda record: record["set"]
)
def test_where_it_decides_the_upper_bound_is_sharp(record):
    """At the left end of each Thinkback row's interval a curve is 0.02 points from the bound."""
    printed = audit.Printed(record["tpr10"], record["fpr95"], record["auroc"])
    pi = printed.prevalences(record["aupr"])[0]
    curve = audit.extremal_curves(printed, pi, 20_000)[1]
    assert 0 <= metrics.average_precision(curve, pi) - record["aupr"] + audit.ROUNDING + 2e-4 < 4e-4


def test_a_grid_of_step_curves_reaches_no_further(monkeypatch):
    """All staircases through a coarse lattice: the best of each AUROC stays inside, and near."""
    monkeypatch.setattr(audit, "NODES", 100)
    levels, pi, row = np.array([0, 0.1, 0.3, 1.0]), 1 / 6, (0.8, 0.3)
    first, second, third = np.meshgrid(
        np.linspace(0, 0.8, 25), np.linspace(0.8, 0.95, 25), np.linspace(0.95, 1, 9)
    )
    jumps = np.stack([first.ravel(), second.ravel(), third.ravel(), np.ones(first.size)])
    area = (np.diff(levels)[:, None] * (1 - jumps[:3])).sum(0)
    fine = (np.arange(1000) + 0.5) / 1000
    f = sum((fine[:, None] > jumps[i]) * (levels[i + 1] - levels[i]) for i in range(3))
    ap = (pi * fine[:, None] / (pi * fine[:, None] + (1 - pi) * f)).mean(0)
    for a, value in zip(area[::7], ap[::7], strict=True):
        low, high = audit.Printed(*row, 1 - float(a), half_width=0).bounds(pi)
        assert low - 1.5e-3 <= value <= high + 1.5e-3
    for a in np.quantile(area, [0.2, 0.5, 0.8]):
        high = audit.Printed(*row, 1 - float(a), half_width=0).bounds(pi)[1]
        assert ap[area >= a].max() > high - 0.02


def test_a_dense_convex_programme_finds_no_lower_curve():
    """The lower bound against SLSQP, which minimises over 60 layers of T from several starts."""
    from scipy.optimize import minimize

    row, auroc, pi, n = (0.7, 0.4), 0.88, 0.5, 60
    printed = audit.Printed(*row, auroc, half_width=0)
    t = (np.arange(n) + 0.5) / n
    low = np.where(t > 0.95, 0.4, np.where(t > 0.7, 0.1, 0.0))
    high = np.where(t <= 0.7, 0.1, np.where(t <= 0.95, 0.4, 1.0))
    rho = (1 - pi) / pi
    result = minimize(
        lambda f: np.mean(t / (t + rho * f)),
        (low + high) / 2,
        jac=lambda f: -rho * t / (t + rho * f) ** 2 / n,
        bounds=list(zip(low, high, strict=True)),
        constraints=[
            {
                "type": "eq",
                "fun": lambda f: f.mean() - 1 + auroc,
                "jac": lambda f: np.full(n, 1 / n),
            },
            {"type": "ineq", "fun": np.diff, "jac": lambda f: np.diff(np.eye(n), axis=0)},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert result.success
    assert abs(result.fun - printed.bounds(pi)[0]) < 1e-3


def test_bounds_grow_with_prevalence_and_interval_holds_the_truth():
    generator = np.random.default_rng(1)
    for _ in range(3):
        ids = generator.normal(0, 1, 3000)
        oods = generator.normal(generator.uniform(1, 3), generator.uniform(0.5, 2), 1000)
        for pi in (0.1, 0.5, 0.8):
            values = {m: round(v, 4) for m, v in metrics.ood_metrics(ids, oods, pi).items()}
            aupr = values.pop("aupr")
            printed = audit.Printed(**values, step=1 / 1000)
            low, high = printed.prevalences(aupr)
            assert low <= pi <= high
            wide = replace(printed, auroc=None).prevalences(aupr)
            assert wide[0] <= low < high <= wide[1]
            if low > 0:
                assert abs(printed.bounds(low)[1] - (aupr - audit.ROUNDING)) < 1e-6
            assert abs(printed.bounds(high)[0] - (aupr + audit.ROUNDING)) < 1e-6


def test_in_distribution_as_the_positive_class():
    """Swapping the classes of the numbers is swapping those of the scores."""
    generator = np.random.default_rng(2)
    for shape in ("separated", "clumps", "ties"):
        for _ in range(50):
            curve = random_curve(generator, shape)
            mirrored = metrics.Roc(1 - curve.tpr[::-1], 1 - curve.fpr[::-1], -curve.threshold)
            values = metrics.summary(curve)
            del values["aupr"]
            step = float(np.diff(curve.fpr).max())
            swapped = replace(audit.Printed(**values, half_width=1e-9).swapped(), step=step)
            low, high = swapped.bounds(5 / 6)
            assert low - 1e-6 <= metrics.average_precision(mirrored, 5 / 6) <= high + 1e-6
    again = audit.Printed(0.8, 0.3, 0.9).swapped().swapped()
    found = [again.tpr10, again.fpr95, again.at_fpr, again.at_tpr]
    assert np.allclose(found, [0.8, 0.3, 0.1, 0.95])


def test_means_over_draws_stay_inside():
    """Numbers averaged over unlike sets: with the scatter declared, the mean obeys the bounds."""
    generator = np.random.default_rng(3)
    for k in range(100):
        ids, pi, rows = generator.normal(0, 1, 400), PREVALENCES[k % 4], []
        for _ in range(5):
            oods = generator.normal(generator.uniform(1, 3), generator.uniform(0.3, 2), 200)
            rows.append(list(metrics.ood_metrics(ids, oods, pi).values()))
        mean = np.mean(rows, 0)
        scatter = float(np.abs(np.array(rows) - mean)[:, :2].max())
        printed = audit.Printed(*map(float, mean[:3]), step=1 / 200, scatter=scatter)
        low, high = printed.bounds(pi)
        assert low <= mean[3] <= high


def interpolated_precision(curve, pi):
    """Area under the running maximum, from the right, of precision."""
    t, f = curve.tpr[1:], curve.fpr[1:]
    precision = pi * t / np.maximum(pi * t + (1 - pi) * f, 1e-300)
    return float((np.diff(curve.tpr) * np.maximum.accumulate(precision[::-1])[::-1]).sum())


@pytest.mark.parametrize("shape", ["separated", "clumps", "ties", "skewed"])
def test_no_interpolated_curve_beats_its_bounds(shape, monkeypatch):
    monkeypatch.setattr(audit, "NODES", 50)
    generator, near = np.random.default_rng(len(shape)), []
    for k in range(200):
        curve, pi = random_curve(generator, shape), PREVALENCES[k % 4]
        values = metrics.summary(curve, pi)
        digits = (12, 4, 2)[k % 3]
        rounded = {m: round(values[m], digits) for m in ("tpr10", "fpr95", "auroc")}
        step = float(np.diff(curve.tpr).max())
        printed = audit.Printed(
            **rounded, half_width=0.5 * 10.0**-digits, step=step, interpolated=True
        )
        value = interpolated_precision(curve, pi)
        low, high = printed.bounds(pi)
        assert values["aupr"] - 1e-9 <= value
        assert low - 1e-9 <= value <= high + 1e-9, (shape, k)
        assert high <= replace(printed, auroc=None).bounds(pi)[1] + 1e-9
        near.append(high - value)
    assert min(near) < 0.05  # and some curve comes near


@pytest.mark.parametrize("name", ["SVHN Thinkback", "iSUN Thinkback"])
def test_an_interpolated_curve_comes_up_to_its_bound(name):
    row = audit.table()[name]
    printed = replace(row.curve, interpolated=True)
    curve = audit.extremal_curves(printed, 1 / 6, 20_000)[1]
    assert abs(interpolated_precision(curve, 1 / 6) - printed.bounds(1 / 6)[1]) < 5e-4
    values = metrics.summary(curve)
    for metric in ("tpr10", "fpr95", "auroc"):
        assert abs(values[metric] - getattr(printed, metric)) < 2e-4


def test_what_interpolation_and_scatter_leave_of_the_audit():
    """SVHN becomes possible by the first and by the least of the second, the other two do not."""
    rows = audit.table(step=1 / 2000)
    late = {title: row for title, row in rows.items() if row.excess(1 / 6) > 0}
    assert set(late) == {"Textures Thinkback", "SVHN Thinkback", "iSUN Thinkback"}
    still = {title for title, row in late.items() if row.excess(1 / 6, interpolated=True) > 0}
    assert still == {"Textures Thinkback", "iSUN Thinkback"}
    needed = {title: row.needed("scatter", 1 / 6) for title, row in late.items()}
    assert needed["SVHN Thinkback"] < 0.001 < 0.03 < needed["iSUN Thinkback"]
    assert 0.08 < needed["Textures Thinkback"] < 0.1
    row, w = rows["iSUN Thinkback"], needed["iSUN Thinkback"]
    assert row.excess(1 / 6, scatter=w - 1e-4) > 0 == row.excess(1 / 6, scatter=w + 1e-4)
    assert row.needed("step", 1 / 6) == np.inf
    assert row.needed("step", 1 / 2) == row.curve.step
    assert rows["Textures Softmax"].excess(1 / 2) < -0.1


def test_means_over_draws_stay_inside_interpolated_bounds():
    generator = np.random.default_rng(4)
    for k in range(60):
        ids, pi, rows = generator.normal(0, 1, 400), PREVALENCES[k % 4], []
        for _ in range(5):
            oods = generator.normal(generator.uniform(1, 3), generator.uniform(0.3, 2), 200)
            curve = metrics.roc(ids, oods)
            values = list(metrics.summary(curve).values())[:3]
            rows.append([*values, interpolated_precision(curve, pi)])
        mean = np.mean(rows, 0)
        scatter = float(np.abs(np.array(rows) - mean)[:, :2].max())
        printed = audit.Printed(*map(float, mean[:3]), scatter=scatter, interpolated=True)
        assert mean[3] <= printed.bounds(pi)[1]


def test_random_curves_pass_through_the_points():
    printed, levels = audit.Printed(0.8, 0.3), (np.arange(1000) + 0.5) / 1000
    f = audit.random_curves(printed, levels, 50, seed=1)
    assert (np.diff(f, axis=1) >= 0).all()
    assert (f[:, levels < 0.8] <= 0.1).all()
    assert (f[:, levels > 0.8] >= 0.1).all()
    assert (f[:, levels < 0.95] <= 0.3).all()
    assert (f[:, levels > 0.95] >= 0.3).all()


def test_binormal_curve_of_normal_scores():
    """Scores N(0, 1) and N(2, 1.5): FPR = Phi(-threshold), TPR = Phi((2 - threshold) / 1.5)."""
    from scipy.stats import norm

    levels = np.array([0.3, 0.8, 0.97])
    tpr10 = norm.cdf((2 + norm.ppf(0.1)) / 1.5)
    fpr95 = norm.cdf(1.5 * norm.ppf(0.95) - 2)
    found = audit.binormal(audit.Printed(float(tpr10), float(fpr95)), levels)
    assert np.allclose(found, norm.cdf(1.5 * norm.ppf(levels) - 2))


def test_rows_that_can_have_a_mix():
    rows = audit.table()
    wide = dict.fromkeys(rows, (0.0, 1.0))
    assert audit.possible(rows, wide, 0.5) == {"Softmax": 5, "Energy": 5, "Thinkback": 5}
    narrow = wide | {"SVHN Energy": (0.1, 0.2)}
    of_each = dict.fromkeys({row.test_set for row in rows.values()}, 0.15)
    assert audit.possible(rows, narrow, 0.5)["Energy"] == 4
    assert audit.possible(rows, narrow, of_each)["Energy"] == 5
    assert audit.answer(narrow, {"even": 0.5}).startswith("**Yes, perhaps**: 1 of 15 rows")


def test_perfect_and_hopeless_scores():
    assert audit.Printed(1, 0, 1, half_width=0).bounds(0.3) == pytest.approx((1, 1), abs=1e-6)
    low, high = audit.Printed(0, 1, half_width=0).bounds(0.5)
    assert 0 < low < high < 0.95
    high = audit.Printed(0, 1, half_width=0, step=1).bounds(0.5)[1]
    assert high == pytest.approx(0.95 / 1.1 + 0.05 / 2, abs=0.05)


@pytest.mark.parametrize(
    ("value", "n", "verdict"), [(0.62, 2000, True), (0.7823, 2000, False), (0.3333, 3, True)]
)
def test_shares(value, n, verdict):
    assert audit.is_share(value, n) == verdict


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((62.0, 0.43), "tpr10 is a fraction between 0 and 1, got 62.0; percent / 100?"),
        ((0.62, float("nan")), "fpr95 is a fraction between 0 and 1, got nan"),
        ((0.97, 0.43), "no ROC curve has TPR10 0.97 and FPR95 0.43 together"),
        ((0.62, 0.43, 0.5), r"auroc lies between 0\.\d+ and 0\.\d+, got 0.5"),
    ],
)
def test_numbers_of_no_curve_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        audit.Printed(*row)


def test_what_is_no_fraction_is_named():
    printed = audit.Printed(0.62, 0.43)
    with pytest.raises(ValueError, match=r"prevalence is a fraction between 0 and 1, got 1\.0"):
        printed.bounds(1.0)
    with pytest.raises(ValueError, match=r"aupr is a fraction between 0 and 1, got 59\.04"):
        printed.prevalences(59.04)
