"""The chapter's sentences and tables come from what was tuned and run, on a made-up world."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import make_features

from experiments import comparison, development, tuning
from experiments.comparison import DEFAULT, LADDER, Comparison
from experiments.evaluation import ID_TEST, ID_TRAIN
from experiments.run import Run
from thinkback_utils.features import Bundle
from thinkback_utils.files import write_json


def make_results(root: Path) -> Path:
    """Results of both commands on made-up features, of two development networks and one other."""
    layer, made = make_features()
    kinds = [kind for kinds in development.GROUPS.values() for kind in kinds]
    for name, network in development.NETWORKS.items():
        sets = {development.FITTED: made(1200, 4.0), development.HELD_OUT: made(60, 2.5)}
        sets |= {kind: made(20, 0.5) for kind in kinds}
        if network.hidden:
            sets[development.HIDDEN] = made(30, 1.0)
        folder = root / "development" / name
        folder.mkdir(parents=True)
        Bundle(sets, layer.weight, layer.bias).save(folder / "bundle.npz")
        development.save_records(folder / "candidates.csv", development.measure(sets))
        write_json(folder / "candidates.json", {"methods": development.peers(sets)})
    choice = development.choose(development.load(root / "development"))
    write_json(root / "development" / development.SECOND, choice._asdict())
    tuning.run(root)
    here = Run(root / "wrn40-2-cifar10" / "seed0")
    here.folder.mkdir(parents=True)
    here.weights.write_bytes(b"weights")
    suite = {ID_TRAIN: made(1200, 4.0), ID_TEST: made(80, 2.5)}
    suite |= {"svhn": made(40, 0.2), "places9_crop": made(30, 0.5), "cifar100": made(30, 1.0)}
    Bundle(suite, layer.weight, layer.bias).save(here.folder / "bundle.npz")
    tuning.main(["--results", str(root), "--suite", "wrn40-2"])
    return root


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return Comparison(make_results(tmp_path_factory.mktemp("results")))


def test_standing_is_ordered_by_the_mean_of_both_halves(compared):
    frame = compared.standing()
    assert set(frame.index) == set(tuning.TUNED)
    assert frame["mean"].is_monotonic_decreasing
    np.testing.assert_allclose(frame["far"], frame["WRN-40-2, far"])
    published = compared.standing("published")
    assert DEFAULT in published.index
    assert set(published.index) - {DEFAULT} == set(tuning.TUNED) - set(tuning.OURS)


def test_the_answer_names_both_halves_and_who_leads(compared):
    frame, text = compared.standing(), compared.answer()
    for value in (frame.loc[DEFAULT, "far"], frame["near"].max(), frame.loc["energy", "near"]):
        assert f"{100 * value:.1f}\N{NO-BREAK SPACE}%" in text
    assert f"of {len(frame)}" in text


def test_differences_have_no_interval_over_a_single_network(compared):
    frame = compared.differences(["energy", "knn"])
    value, low, high = frame.loc[0, "WRN-40-2"]
    assert low <= value <= high
    assert frame.loc[0, "networks"][0] == value
    assert np.isnan(frame.loc[0, "networks"][1])
    assert "[" not in compared.differences_table(["energy"]).loc[0, "mean over networks"]
    with pytest.raises(ValueError, match="thinkback: no tuned score 'nonsense'"):
        compared.differences(["nonsense"])


def test_every_step_of_the_ladder_is_in_the_family(compared):
    frame = compared.ladder()
    assert list(frame["step"]) == list(LADDER)
    columns = [c for c in frame if ", " in c]
    assert len(columns) == 4
    assert frame[columns].notna().all(axis=None)
    assert frame[columns].stack().between(0, 100).all()


def test_the_goal_is_reached_by_a_score_that_nothing_beats(compared, monkeypatch):
    frame = compared.standing()
    frame.loc[:, ["far", "near"]] = 0.8
    monkeypatch.setattr(Comparison, "standing", lambda self: frame)
    assert "**reached.**" in compared.goal()
    frame.loc["energy", "near"] = 0.9
    assert "**not reached.**" in compared.goal()
    assert "\N{MINUS SIGN}10.0 to Energy" in compared.goal()


def test_words_name_the_choice_and_the_default(compared):
    assert "The rule takes *" in compared.choice_words()
    assert "> **Takeaway.**" in compared.takeaway()
    assert set(compared.prediction()) == {"far", "near"}
    assert all(-1 <= value <= 1 for pair in compared.prediction().values() for value in pair)
    assert len(compared.settings()) == len(tuning.TUNED)


def test_kinds_of_outliers_are_means_over_networks(compared):
    frame = compared.kinds(development.default())
    assert list(frame.columns) == [comparison.TITLE, "Energy"]
    assert frame.index[-1] == "hidden classes"
    folder = compared.results / "development" / "wrn16-2-seven"
    record = comparison.read_json(folder / "candidates.json")["methods"]["energy"]
    assert frame.loc["hidden classes", "Energy"] == pytest.approx(100 * record["hidden"])


def test_a_network_without_the_suite_says_which_command_runs_it(compared):
    with pytest.raises(FileNotFoundError, match=r"thinkback: no tuned .*seed7.*--suite wrn40-2"):
        Comparison(compared.results, 7).standing()


def test_what_a_detector_needs_is_a_row():
    one = {"title": "A", "bytes": 4000, "needs": {"labels": True, "images": False}}
    record = {"peers": {"a": one}, "ours": {"energy": one, "thinkback": one}}
    frame = comparison.needs(record)
    assert list(frame.index) == ["A", "Energy", "Thinkback"]
    assert list(frame["needs"]) == ["labels", "\N{EN DASH}", "training data"]
    assert list(frame["keeps (kB)"]) == [4.0] * 3


def test_the_numbers_of_images_are_those_of_the_record(compared):
    assert compared.suite_words() == (
        "- **WRN-40-2**: fitted on 1,200 images, tested on 80 of CIFAR-10 and 30 to 40 of each set."
    )


if __name__ == "__main__":
    make_results(Path(sys.argv[1]))
