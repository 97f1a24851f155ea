"""The adapters: the numbers of OODDetector, under the laws of each library, called as that library calls its own."""

import importlib
import importlib.util
import pickle
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from thinkback_utils import adapters
from thinkback_utils.adapters import ThinkbackDetector, ThinkbackEstimator, ThinkbackPostprocessor
from thinkback_utils.data import import_torchvision
from thinkback_utils.detector import OODDetector, conformal_threshold
from thinkback_utils.methods import METHODS

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(700, 1, 2, 3, generator=GENERATOR)
FIT, NEW, FAR = IMAGES[:400], IMAGES[400:], 5 + IMAGES[400:500].flip(2)


class Net(nn.Module):
    """Six features, four classes, and OpenOOD's way to ask for both."""

    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Softplus()), nn.Linear(6, 4)
        nn.init.eye_(self.body[1].weight)
        nn.init.eye_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x, return_feature=False):
        h = self.body(x)
        return (self.fc(h), h) if return_feature else self.fc(h)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def loader(*parts, batch_size=64):
    """Pairs (image, label) of all parts; the label is -1 for FAR, as pytorch-ood marks OOD data."""
    sets = [TensorDataset(x, torch.full((len(x),), -1 if x is FAR else 2)) for x in parts]
    return DataLoader(ConcatDataset(sets), batch_size=batch_size)


@pytest.fixture
def ood():
    import_torchvision()
    return pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed; the extra `peers` does that")


@pytest.mark.parametrize("method", METHODS)
def test_pytorch_ood_detector_scores_as_ooddetector(ood, net, method):
    expected = OODDetector(net, method=method, batch_size=64).fit(FIT).score(NEW)
    with torch.no_grad():
        features = net.body(IMAGES)
    detector = ThinkbackDetector(net.body, net.fc, method)
    assert isinstance(detector, ood.api.Detector)
    assert detector.requires_fit == (METHODS[method].fisher is not None)
    for fitted in (detector.fit(loader(FIT), "cpu"), detector.fit_features(features[:400], torch.zeros(400))):
        for scores in (fitted(NEW), fitted.predict_features(features[400:])):
            np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert not detector(NEW).requires_grad


def test_pytorch_ood_tools_take_it(ood, net):
    """Its metrics, its benchmark beside one of its own detectors, and its search, which refits each candidate."""
    detector = ThinkbackDetector(net.body, net.fc, damping=0.1).fit(loader(FAR, FIT, FAR))  # FAR is left out
    metrics = ood.metrics.OODMetrics()
    for x, y in loader(NEW, FAR):
        metrics.update(detector(x), y)
    scores = OODDetector(net, damping=0.1).fit(FIT).score(torch.cat([NEW, FAR]))
    truth = np.repeat([0, 1], [len(NEW), len(FAR)])
    np.testing.assert_allclose(detector(torch.cat([NEW, FAR])), scores, rtol=1e-5)
    assert metrics.compute()["AUROC"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)

    class Benchmark(importlib.import_module("pytorch_ood.benchmark").Benchmark):
        ood_names = ("far",)

        def train_set(self):
            return loader(FIT).dataset

        def test_sets(self, known=True, unknown=True):
            return [loader(NEW, FAR).dataset]

    rows = Benchmark().evaluate([detector, ood.detector.KNN(net.body, k=5).fit(loader(FIT))], {"batch_size": 99})
    assert [row["Detector"] for row in rows] == ["ThinkbackDetector", "KNN"]
    assert rows[0]["AUROC"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)

    grid = {"temperature": [0.2, 5.0], "damping": [1.0]}
    search = ood.utils.GridSearch(detector, loader(FIT), loader(NEW, FAR), grid)
    search.run()
    assert len({result["score"] for result in search.results_}) == 2
    assert detector.get_hyperparameters() == search.best_params_
    np.testing.assert_allclose(detector(NEW), OODDetector(net, **search.best_params_).fit(FIT).score(NEW), rtol=1e-5)


def test_pytorch_ood_errors_are_that_library_s(ood, net):
    detector = ThinkbackDetector(None, net.fc)
    with pytest.raises(ood.api.RequiresFittingException, match="thinkback: the detector is not fitted"):
        detector.predict_features(torch.rand(2, 6))
    for call in (lambda: detector.fit(loader(FIT)), lambda: detector(NEW)):
        with pytest.raises(ood.api.ModelNotSetException, match="thinkback: there is no encoder"):
            call()
    with pytest.raises(ValueError, match="'energy' has the options"):
        ThinkbackDetector(None, net.fc, "energy").set_hyperparameters(damping=1.0)
    with pytest.raises(ValueError, match="there is no image"):
        ThinkbackDetector(net.body, net.fc).fit(loader(FAR))


def test_without_pytorch_ood_the_others_work(monkeypatch):
    for name in ("pytorch_ood", "pytorch_ood.api"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("thinkback_utils.without", adapters.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    with pytest.raises(ImportError, match=r"thinkback: ThinkbackDetector needs pytorch-ood; pip install"):
        without.ThinkbackDetector(None, nn.Linear(2, 2))
    assert without.ThinkbackPostprocessor(Config()).state is None
    assert len(without.ThinkbackEstimator(4).fit(ROWS).predict(ROWS)) == len(ROWS)


class Config(dict):
    """What OpenOOD's configuration is: a dictionary whose keys are attributes too."""

    def __init__(self, **arguments):
        super().__init__(arguments)

    def __getattr__(self, key):
        return Config(postprocessor_args=self) if key == "postprocessor" else self[key]


class BasePostprocessor:
    """OpenOOD's: what its Evaluator insists on."""

    def __init__(self, config):
        raise AssertionError("the adapter has a constructor of its own")


class Evaluator:
    """What OpenOOD 1.5's evaluator does with a post-processor, in its order: check, set up, infer, concatenate."""

    def __init__(self, net, postprocessor, loaders):
        assert isinstance(postprocessor, BasePostprocessor)
        postprocessor.setup(net, loaders["id"], loaders["ood"])
        assert not postprocessor.APS_mode
        self.net, self.postprocessor, self.loaders = net, postprocessor, loaders

    def eval_ood(self, progress):
        known = self.postprocessor.inference(self.net, self.loaders["id"]["test"], progress)
        results = {}
        for name, batches in self.loaders["ood"]["far"].items():
            pred, conf, label = self.postprocessor.inference(self.net, batches, progress)
            label = -1 * np.ones_like(label)
            results[name] = [np.concatenate(pair) for pair in zip(known, (pred, conf, label), strict=True)]
        return results


def dicts(*parts):
    return [{"data": x, "label": y} for x, y in loader(*parts)]


@pytest.mark.parametrize("method", METHODS)
def test_openood_evaluator_finds_the_scores_of_ooddetector(net, method):
    class Thinkback(ThinkbackPostprocessor, BasePostprocessor):
        pass

    loaders = {"id": {"train": iter(dicts(FIT)), "test": dicts(NEW)}, "ood": {"far": {"far": dicts(FAR)}, "val": None}}
    net.train()
    pred, conf, label = Evaluator(net, Thinkback(Config(method=method)), loaders).eval_ood(False)["far"]
    assert not net.training
    both, detector = torch.cat([NEW, FAR]), OODDetector(net, method=method).fit(loader(FIT))
    scores = torch.cat([detector.score(loader(part)) for part in (NEW, FAR)])  # in the evaluator's own batches
    np.testing.assert_allclose(conf, -scores, rtol=1e-9)
    np.testing.assert_array_equal(pred, net(both).argmax(1))
    np.testing.assert_array_equal(label, np.repeat([2, -1], [len(NEW), len(FAR)]))
    assert (pred.dtype, conf.dtype, label.dtype) == (np.int64, np.float64, np.int64)


def test_openood_options_progress_and_errors(net, capsys):
    processor = ThinkbackPostprocessor(Config(temperature=2.0, damping=0.1))
    with pytest.raises(ValueError, match=r"thinkback: the post-processor is not fitted; call setup"):
        processor.postprocess(net, NEW)
    processor.setup(net, {"train": dicts(FIT)}, {})
    expected = OODDetector(net, temperature=2.0, damping=0.1).fit(FIT).score(NEW)
    np.testing.assert_allclose(processor.inference(net, dicts(NEW))[1], -expected, rtol=1e-5)
    assert "5/5" in capsys.readouterr().err
    processor.inference(net, dicts(NEW), progress=False)
    assert capsys.readouterr().err == ""
    assert ThinkbackPostprocessor(Config(method="energy")).state == ()
    with pytest.raises(ValueError, match=r"method must be one of .*got 'softmax'"):
        ThinkbackPostprocessor(Config(method="softmax"))


with torch.no_grad():
    torch.manual_seed(0)
    ROWS = torch.hstack(Net()(IMAGES, True)[::-1]).double().numpy()  # (700, 6 + 4)


@parametrize_with_checks(
    [ThinkbackEstimator(n_classes=1, alpha=0.25, method=method) for method in ("thinkback", "energy")]
)
def test_scikit_learn_s_own_checks(estimator, check):
    """One column of logits, because many checks bring two columns; an alpha for their 20 rows. None may fail."""
    check(estimator)


@pytest.mark.parametrize("method", METHODS)
def test_estimator_scores_and_refuses_as_ooddetector(method):
    class Head(nn.Module):  # rows as images: features and logits are columns, so no rounding comes between
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)
            self.fc.forward = lambda h: self.rows[:, 6:]

        def forward(self, rows):
            self.rows = rows
            return self.fc(rows[:, :6])

    rows = ROWS.astype(np.float32)
    fitted, held_out = train_test_split(rows[:500], test_size=0.5, random_state=0)
    detector = OODDetector(Head(), "fc", method).fit(fitted).calibrate(held_out, alpha=0.1)
    estimator = ThinkbackEstimator(4, method, alpha=0.1).fit(rows[:500])
    np.testing.assert_allclose(estimator.score_samples(rows), -detector.score(rows), rtol=1e-9)
    np.testing.assert_array_equal(estimator.predict(held_out) == -1, detector.predict(held_out))
    threshold = conformal_threshold(torch.from_numpy(-estimator.score_samples(held_out)), 0.1)
    np.testing.assert_array_equal(estimator.decision_function(rows) < 0, -estimator.score_samples(rows) >= threshold)
    assert -estimator.offset_ in -estimator.score_samples(held_out)  # the tie that is no alarm


def test_estimator_keeps_its_promise():
    rates = []
    for draw in range(200):
        x = np.random.default_rng(draw).normal(size=(40 + 400, 3))
        estimator = ThinkbackEstimator(1, alpha=0.1).fit(x[:40])
        rates.append(np.mean(estimator.predict(x[40:]) == -1))
    error = 4 * np.std(rates) / np.sqrt(len(rates))
    assert 0.1 - 1 / 21 - error < np.mean(rates) < 0.1 + error


def test_estimator_reads_one_column_as_the_logit_of_a_sigmoid():
    """Twice the squared gradient of the logistic loss of its own decision: (0, z) has two rows of equal gradient."""
    x, T = torch.from_numpy(ROWS[:, :6]), 5.0
    model = LogisticRegression().fit(x, x.sum(1) > x.sum(1).mean())
    z = model.decision_function(x)
    ours = -ThinkbackEstimator(1, "thinkback_eq5").fit(np.c_[x, z]).score_samples(np.c_[x, z])
    w = torch.from_numpy(model.coef_[0]).requires_grad_()
    for h, logit, score in zip(x[:9], z, ours, strict=False):
        loss = nn.functional.binary_cross_entropy_with_logits(
            (h @ w + model.intercept_[0]) / T, torch.tensor(float(logit > 0), dtype=torch.float64)
        )
        assert score == pytest.approx(2 * float(torch.autograd.grad(loss, w)[0].square().sum()), rel=1e-9)


def test_estimator_in_pipelines_searches_frames_and_files():
    frame = pd.DataFrame(ROWS, columns=[f"c{i}" for i in range(10)])
    pipeline = make_pipeline(FunctionTransformer(), ThinkbackEstimator(4)).set_output(transform="pandas").fit(frame)
    np.testing.assert_array_equal(pipeline.predict(frame), ThinkbackEstimator(4).fit_predict(ROWS))
    assert pipeline[-1].feature_names_in_[0] == "c0"
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.score_samples(frame), pipeline.score_samples(frame))
    far = np.random.default_rng(0).normal(size=(200, 10))
    rows, truth = np.vstack([ROWS, far]), np.repeat([1, -1], [len(ROWS), len(far)])
    folds = [(np.arange(300), np.arange(300, 900)), (np.arange(300, 700), np.r_[:300, 700:900])]  # fitted on inliers
    grid = {"temperature": [0.5, 5.0], "damping": [1e-3], "method": ["thinkback", "thinkback_full"]}
    search = GridSearchCV(ThinkbackEstimator(4), grid, scoring="roc_auc", cv=folds, refit=False, error_score="raise")
    results = search.fit(rows, truth).cv_results_
    assert len(set(results["mean_test_score"])) == 4
    chosen = ThinkbackEstimator(4, **results["params"][0]).fit(rows[:300])
    auroc = roc_auc_score(truth[300:], chosen.decision_function(rows[300:]))
    assert results["split0_test_score"][0] == pytest.approx(auroc)


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        ({}, ROWS, "thinkback: n_classes says how many of the last columns are logits; got 0"),
        ({"n_classes": 10}, ROWS, "10 feature.* minimum of 11 is required"),
        ({"n_classes": 4, "method": "softmax"}, ROWS, "method must be one of"),
        ({"n_classes": 4, "method": "msp", "damping": 1.0}, ROWS, "'msp' has the options .* not 'damping'"),
        ({"n_classes": 4, "alpha": 1.0}, ROWS, "alpha must lie between 0 and 1"),
        ({"n_classes": 4}, ROWS[:36], "takes at least 19 calibration scores, got 18"),
    ],
)
def test_estimator_s_errors_are_named(arguments, rows, message):
    with pytest.raises(ValueError, match=message):
        ThinkbackEstimator(**arguments).fit(rows)
