"""The adapters: the numbers of OODDetector, called as each library calls its own."""

import importlib
import importlib.util
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refused
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
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

pytestmark = [  # what fit says of toy networks
    pytest.mark.filterwarnings(f"ignore:thinkback. {remark}")
    for remark in (
        "classes never predicted",
        "the model is (hardly sure|right for)",
        "the promise holds on average",
    )
]
PAGE = Path(__file__).parents[1] / "book" / "how_to_run.md"
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(700, 1, 2, 3, generator=GENERATOR)
FIT, NEW, FAR = IMAGES[:400], IMAGES[400:], 5 + IMAGES[400:500].flip(2)


class Net(nn.Module):
    """Six features, four classes, and OpenOOD's way to ask for both."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Softplus())
        self.fc = nn.Linear(6, 4)
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
    return pytest.importorskip("pytorch_ood", reason="needs the extra `peers`")


@pytest.mark.parametrize("method", METHODS)
def test_pytorch_ood_detector_scores_as_ooddetector(ood, net, method):
    expected = OODDetector(net, method=method, batch_size=64).fit(FIT).score(NEW)
    with torch.no_grad():
        features = net.body(IMAGES)
    detector = ThinkbackDetector(net.body, net.fc, method)
    assert isinstance(detector, ood.api.Detector)
    assert detector.requires_fit == (METHODS[method].fisher is not None)
    for fitted in (
        detector.fit(loader(FIT), "cpu"),
        detector.fit_features(features[:400], torch.zeros(400)),
    ):
        for scores in (fitted(NEW), fitted.predict_features(features[400:])):
            np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert not detector(NEW).requires_grad
    whole = ThinkbackDetector(net.train(), method=method)  # which it runs in evaluation mode
    assert whole.requires_fit == detector.requires_fit
    scores = whole.fit(loader(FIT, FAR), "cpu")(NEW)
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert scores.dtype == torch.float64
    assert net.training


@pytest.mark.parametrize("name", ["WideResNet", "ResNet18", "GRUClassifier", "resnet18"])
def test_the_printed_call_for_pytorch_ood_runs(ood, name):
    """On that library's own networks and on torchvision's; the head is found."""
    torch.manual_seed(0)
    if name == "GRUClassifier":
        model, x = ood.model.GRUClassifier(10, n_vocab=30), torch.randint(30, (24, 7))
    elif name == "resnet18":
        model, x = import_torchvision().models.resnet18(num_classes=10), torch.rand(24, 3, 32, 32)
    else:
        arguments = {"depth": 10} if name == "WideResNet" else {}
        model, x = getattr(ood.model, name)(num_classes=10, **arguments), torch.rand(24, 3, 32, 32)
    train_loader = DataLoader(TensorDataset(x, torch.arange(24) % 10), batch_size=8)
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| pytorch-ood"))
    call = row.split("`")[3]
    assert call.startswith("ThinkbackDetector(")
    names = {"model": model, "train_loader": train_loader}
    detector = eval(call, {"ThinkbackDetector": ThinkbackDetector} | names)
    scores = detector(x)
    assert scores.shape == (24,)
    assert scores.isfinite().all()
    with torch.no_grad():
        model.eval()
        by_hand = METHODS["thinkback_averaged"]
        h, z = _before_fc(model, x), model(x)
    state = by_hand.fit([(h, z)], **by_hand.options)
    np.testing.assert_allclose(scores, by_hand(h, z, state, **by_hand.options), rtol=1e-3)


def _before_fc(model, x):
    if hasattr(model, "features"):
        return model.features(x)
    return nn.Sequential(*list(model.children())[:-1])(x).flatten(1)


def test_pytorch_ood_tools_take_it(ood, net):
    """Its metrics, its benchmark beside one of its own detectors, and its search."""
    detector = ThinkbackDetector(net.body, net.fc, damping=0.1)
    detector.fit(loader(FAR, FIT, FAR))  # FAR is left out
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

    rows = Benchmark().evaluate(
        [detector, ood.detector.KNN(net.body, k=5).fit(loader(FIT))], {"batch_size": 99}
    )
    assert [row["Detector"] for row in rows] == ["ThinkbackDetector", "KNN"]
    assert rows[0]["AUROC"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)

    grid = {"temperature": [0.2, 5.0], "damping": [1.0]}
    found = []
    for tried in (detector, ThinkbackDetector(net, damping=0.1)):  # features kept, and not
        search = ood.utils.GridSearch(tried, loader(FIT), loader(NEW, FAR), grid)
        search.run()
        assert len({result["score"] for result in search.results_}) == 2
        assert tried.get_hyperparameters() == search.best_params_
        expected = OODDetector(net, **search.best_params_).fit(FIT).score(NEW)
        np.testing.assert_allclose(tried(NEW), expected, rtol=1e-5)
        found.append(search.results_)
    assert [r["params"] for r in found[0]] == [r["params"] for r in found[1]]
    np.testing.assert_allclose(*([r["score"] for r in results] for results in found), atol=1e-6)


def test_pytorch_ood_grid_search_knows_what_to_try(ood, net):
    search = ood.utils.GridSearch(ThinkbackDetector(net, method="energy"), None, loader(NEW, FAR))
    assert search.run()["temperature"] in search.space["temperature"]
    with pytest.raises(ValueError, match="empty hyperparameter_space"):
        ood.utils.GridSearch(ThinkbackDetector(net, method="max_logit"), None, loader(NEW, FAR))


def test_pytorch_ood_s_own_benchmark_takes_it(ood):
    """CIFAR10_ODIN with toy images in the place of its downloads."""
    benchmark = importlib.import_module("pytorch_ood.benchmark").CIFAR10_ODIN
    sets, unknown = importlib.import_module("pytorch_ood.dataset.img"), ood.utils.ToUnknown()
    transform = import_torchvision().transforms.ToTensor()
    toy = benchmark.__new__(benchmark)
    toy.train_in, toy.test_in = (
        TensorDataset(torch.rand(n, 3, 32, 32, generator=GENERATOR), torch.arange(n) % 10)
        for n in (60, 20)
    )
    ways = {"size": (32, 32, 3), "transform": transform, "target_transform": unknown, "seed": 1}
    names = "UniformNoise", "GaussianNoise"
    toy.test_oods = [getattr(sets, name)(9, **ways) for name in names]
    toy.ood_names = [type(part).__name__ for part in toy.test_oods]
    torch.manual_seed(0)
    model = ood.model.WideResNet(num_classes=10, depth=10).eval()
    train_loader = DataLoader(toy.train_set(), batch_size=30)
    whole = ThinkbackDetector(model, damping=1.0)
    parts = ThinkbackDetector(model.features, model.fc, damping=1.0)
    peers = ood.detector.KNN(model.features, k=5), ood.detector.MaxSoftmax(model)
    detectors = [detector.fit(train_loader) for detector in (whole, parts, *peers)]
    rows = toy.evaluate(detectors, {"batch_size": 20})
    names = [*["ThinkbackDetector"] * 2, "KNN", "MaxSoftmax"]
    assert [row["Detector"] for row in rows] == names * 2
    assert [row["Dataset"] for row in rows] == ["UniformNoise"] * 4 + ["GaussianNoise"] * 4
    assert all(0 <= row["AUROC"] <= 1 for row in rows)
    assert rows[0].keys() == rows[2].keys()


@pytest.mark.filterwarnings("default")
def test_what_fit_remarks_reaches_the_line_that_called_an_adapter(ood, net):
    wrong = [(FIT, torch.full((400,), 3))]
    named = {"train": [{"data": FIT, "label": wrong[0][1]}]}
    words = "thinkback: the model is right for .* of the labelled fit images"
    for fit in (
        lambda: ThinkbackDetector(net).fit(wrong),
        lambda: ThinkbackDetector(net.body, net.fc).fit(wrong),
        lambda: ThinkbackPostprocessor().setup(net, named, {}),
    ):
        with pytest.warns(UserWarning, match=words) as found:
            fit()
        assert {str(warning.filename) for warning in found} == {__file__}


def test_pytorch_ood_label_maps_leave_out_images_with_unknown_pixels(ood, net):
    """As that library marks segmentation: an image with OOD pixels is none to fit on."""
    y = torch.zeros(700, 2, 3)
    y[400:, 0, 1] = -1
    batches = DataLoader(TensorDataset(IMAGES, y), batch_size=64)
    expected = ThinkbackDetector(net).fit(DataLoader(TensorDataset(FIT, y[:400]), batch_size=64))
    np.testing.assert_allclose(ThinkbackDetector(net).fit(batches)(NEW), expected(NEW), rtol=1e-9)


def test_pytorch_ood_errors_are_that_library_s(ood, net):
    whole = ThinkbackDetector(net)
    with refused("^thinkback: the detector is not fitted", ood.api.RequiresFittingException):
        whole(NEW)
    for call in (
        lambda: whole.predict_features(torch.rand(2, 6)),
        lambda: whole.fit_features(torch.rand(2, 6), NEW),
    ):
        with refused(r"ThinkbackDetector\(None, head\)", ood.api.ModelNotSetException):
            call()
    with refused("^thinkback: there is neither encoder nor head", ood.api.ModelNotSetException):
        ThinkbackDetector(None)
    with refused("^thinkback: without its head, a whole classifier is needed"):
        ThinkbackDetector(net.body.forward)
    unpooled = ThinkbackDetector(nn.Identity(), nn.Linear(3, 4))
    with refused(r"^thinkback: the encoder gives \(64, 1, 2, 3\), the head reads 3 features"):
        unpooled.fit(loader(FIT))
    assert ThinkbackDetector(net, "fc").fit(loader(FIT))(NEW).shape == (300,)
    detector = ThinkbackDetector(None, net.fc)
    with refused("^thinkback: the detector is not fitted", ood.api.RequiresFittingException):
        detector.predict_features(torch.rand(2, 6))
    for call in (lambda: detector.fit(loader(FIT)), lambda: detector(NEW)):
        with refused("^thinkback: there is no encoder", ood.api.ModelNotSetException):
            call()
    with refused("'energy' has the options"):
        ThinkbackDetector(None, net.fc, "energy").set_hyperparameters(damping=1.0)
    with refused("there is no image"):
        ThinkbackDetector(net.body, net.fc).fit(loader(FAR))


def test_without_pytorch_ood_the_others_work(monkeypatch):
    for name in ("pytorch_ood", "pytorch_ood.api"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("thinkback_utils.without", adapters.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    with refused(r"^thinkback: ThinkbackDetector needs pytorch-ood; pip install", ImportError):
        without.ThinkbackDetector(None, nn.Linear(2, 2))
    assert without.ThinkbackPostprocessor(config_of()).state is None
    assert len(without.ThinkbackEstimator(4).fit(ROWS).predict(ROWS)) == len(ROWS)


class Config(dict):
    """As OpenOOD has it: keys of a dictionary are attributes too; a missing one is a KeyError."""

    def __getattr__(self, key):
        return self[key]


def config_of(**arguments):
    return Config(postprocessor=Config(postprocessor_args=Config(arguments)))


class BasePostprocessor:
    """OpenOOD's: what its Evaluator insists on."""

    def __init__(self, config):
        raise AssertionError("the adapter has a constructor of its own")


class Thinkback(ThinkbackPostprocessor, BasePostprocessor):
    """As the book says to pass OpenOOD's check of the type."""


class Evaluator:
    """What OpenOOD's evaluator does, in its order: check, set up, search, infer, concatenate."""

    def __init__(self, net, postprocessor, loaders):
        assert isinstance(postprocessor, BasePostprocessor)
        postprocessor.setup(net, loaders["id"], loaders["ood"])
        self.net, self.postprocessor, self.loaders = net, postprocessor, loaders
        if self.postprocessor.APS_mode and not self.postprocessor.hyperparam_search_done:
            self.hyperparam_search()

    def hyperparam_search(self):
        self.tried = {}
        first, *others = self.postprocessor.args_dict.values()
        combinations = [[x] for x in first]
        for values in others:
            combinations = [[*c, x] for x in values for c in combinations]
        for hyperparam in combinations:
            self.postprocessor.set_hyperparam(hyperparam)
            known = self.postprocessor.inference(self.net, self.loaders["id"]["val"])
            far = self.postprocessor.inference(self.net, self.loaders["ood"]["val"])
            conf, label = (np.concatenate(pair) for pair in zip(known[1:], far[1:], strict=True))
            self.tried[tuple(hyperparam)] = roc_auc_score(label >= 0, conf)
        self.postprocessor.set_hyperparam(list(max(self.tried, key=self.tried.get)))
        assert self.postprocessor.get_hyperparam() is not None
        self.postprocessor.hyperparam_search_done = True

    def eval_ood(self, progress):
        known = self.postprocessor.inference(self.net, self.loaders["id"]["test"], progress)
        results = {}
        for name, batches in self.loaders["ood"]["far"].items():
            pred, conf, label = self.postprocessor.inference(self.net, batches, progress)
            label = -1 * np.ones_like(label)
            pairs = zip(known, (pred, conf, label), strict=True)
            results[name] = [np.concatenate(pair) for pair in pairs]
        return results


def dicts(*parts):
    return [{"data": x, "label": y} for x, y in loader(*parts)]


@pytest.mark.parametrize("method", METHODS)
def test_openood_evaluator_finds_the_scores_of_ooddetector(net, method):
    loaders = {
        "id": {"train": iter(dicts(FIT)), "test": dicts(NEW)},
        "ood": {"far": {"far": dicts(FAR)}, "val": None},
    }
    net.train()
    evaluator = Evaluator(net, Thinkback(config_of(method=method)), loaders)
    pred, conf, label = evaluator.eval_ood(False)["far"]
    assert not net.training
    both, detector = torch.cat([NEW, FAR]), OODDetector(net, method=method).fit(loader(FIT))
    # in the evaluator's own batches
    scores = torch.cat([detector.score(loader(part)) for part in (NEW, FAR)])
    np.testing.assert_allclose(conf, -scores, rtol=1e-9)
    np.testing.assert_array_equal(pred, net(both).argmax(1))
    np.testing.assert_array_equal(label, np.repeat([2, -1], [len(NEW), len(FAR)]))
    assert (pred.dtype, conf.dtype, label.dtype) == (np.int64, np.float64, np.int64)


@pytest.mark.parametrize("method", ["thinkback_averaged", "thinkback", "energy"])
def test_openood_searches_parameters(net, method):
    """Each combination scores as a detector fitted with it, though training data pass once."""

    sweep = {"temperature_list": [0.3, 4.0]}
    if method != "energy":
        sweep["damping_list"] = [1e-3, 1.0, 10.0]
    config = config_of(method=method)
    config.postprocessor |= {"APS_mode": True, "postprocessor_sweep": sweep}
    near = NEW[:100] + 0.5 * torch.rand(100, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    unknown = [{"data": near, "label": torch.full((100,), -1)}]
    loaders = {
        "id": {"train": iter(dicts(FIT)), "test": dicts(NEW), "val": dicts(NEW)},
        "ood": {"far": {"far": dicts(FAR)}, "val": unknown},
    }
    evaluator = Evaluator(net, Thinkback(config), loaders)
    truth = np.repeat([1, 0], [300, 100])
    for values, auroc in evaluator.tried.items():
        options = dict(zip(("temperature", "damping"), values, strict=False))
        scores = OODDetector(net, method=method, **options).fit(FIT).score(torch.cat([NEW, near]))
        assert auroc == pytest.approx(roc_auc_score(truth, -scores), abs=1e-6), options
    assert len(set(evaluator.tried.values())) > 1
    best = evaluator.postprocessor.get_hyperparam()
    assert evaluator.tried[tuple(best)] == max(evaluator.tried.values())
    # as its script keeps them between runs
    again = pickle.loads(pickle.dumps(ThinkbackPostprocessor(None)))
    assert (again.APS_mode, again.hyperparam_search_done) == (False, False)
    assert pickle.loads(pickle.dumps(_plain(evaluator.postprocessor))).get_hyperparam() == best
    evaluator.eval_ood(False)


def _plain(postprocessor):
    plain = ThinkbackPostprocessor(None)
    plain.__dict__.update(postprocessor.__dict__, config=None)
    return plain


def test_openood_errors_of_the_search(net):
    def config(**values):
        return Config(postprocessor=Config(postprocessor_args={}, **values))

    with refused(r"^thinkback: APS_mode searches the values in postprocessor_sweep"):
        ThinkbackPostprocessor(config(APS_mode=True))
    with refused("temperature must be finite"):
        ThinkbackPostprocessor(config(postprocessor_sweep={"temperature_list": [1.0, -1.0]}))
    with refused("not 'k'"):
        ThinkbackPostprocessor(config(postprocessor_sweep={"k_list": [1]}))
    processor = ThinkbackPostprocessor(config(postprocessor_sweep={"temperature_list": [1.0, 2.0]}))
    processor.setup(net, {"train": dicts(FIT)}, {})
    with refused(r"^thinkback: a value is needed for each of \['temperature_list'\], got \[\]"):
        processor.set_hyperparam([])
    processor.set_hyperparam([7.0])  # which setup did not know
    with refused(r"^thinkback: the post-processor is not fitted; call setup"):
        processor.postprocess(net, NEW)
    with refused("^thinkback: there is no image, data_loader is empty"):
        ThinkbackPostprocessor().inference(net, [])


def test_openood_options_progress_and_errors(net, capsys):
    processor = ThinkbackPostprocessor(config_of(temperature=2.0, damping=0.1))
    with refused(r"^thinkback: the post-processor is not fitted; call setup"):
        processor.postprocess(net, NEW)
    processor.setup(net, {"train": dicts(FIT)}, {})
    expected = OODDetector(net, temperature=2.0, damping=0.1).fit(FIT).score(NEW)
    np.testing.assert_allclose(processor.inference(net, dicts(NEW))[1], -expected, rtol=1e-5)
    assert "5/5" in capsys.readouterr().err
    processor.inference(net, dicts(NEW), progress=False)
    assert capsys.readouterr().err == ""
    assert ThinkbackPostprocessor(config_of(method="energy")).state == ()
    with refused(r"method must be one of .*got 'softmax'"):
        ThinkbackPostprocessor(config_of(method="softmax"))


with torch.no_grad():
    torch.manual_seed(0)
    ROWS = torch.hstack(Net()(IMAGES, True)[::-1]).double().numpy()  # (700, 6 + 4)


@pytest.mark.filterwarnings("ignore:thinkback.")  # of rows that are no logits
@parametrize_with_checks(
    [
        ThinkbackEstimator(),
        ThinkbackEstimator(n_classes=1, alpha=0.25, method="thinkback"),
        ThinkbackEstimator(n_classes=1, alpha=0.25, method="energy"),
    ]
)
def test_scikit_learn_s_own_checks(estimator, check):
    """With default arguments; and with one column of logits and an alpha for 20 rows."""
    check(estimator)


def test_estimator_of_logits_alone():
    """All columns are logits and features; one column z stands for (0, z)."""
    logits, by_hand = ROWS[:, 6:], METHODS["thinkback_averaged"]
    twice = np.hstack([logits, logits])
    expected = ThinkbackEstimator(4).fit(twice).score_samples(twice)
    ours = ThinkbackEstimator().fit(logits).score_samples(logits)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    z = torch.tensor(logits[:, :1])
    pair = torch.cat([0 * z, z], 1)
    two = by_hand(z, pair, by_hand.fit([(z, pair)]))
    # so that both halves of X hold much the same
    one = ThinkbackEstimator().fit(np.repeat(logits[:, :1], 2, axis=0))
    np.testing.assert_allclose(one.score_samples(logits[:, :1]), -two, rtol=0.2)


def test_estimator_of_few_rows_rejects_nothing_and_says_so():
    words = "thinkback: alpha=0.05 takes at least 19 .* got 18; nothing .* 37"
    with pytest.warns(UserWarning, match=words) as found:
        estimator = ThinkbackEstimator(4).fit(ROWS[:36])
    assert estimator.offset_ == -np.inf
    assert (estimator.predict(1e3 * ROWS) == 1).all()
    assert {str(warning.filename) for warning in found} == {__file__}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "thinkback: alpha")
        assert np.isfinite(ThinkbackEstimator(4).fit(ROWS[:37]).offset_)


def test_estimator_calibrates_on_other_rows():
    estimator = ThinkbackEstimator(4, alpha=0.1).fit(ROWS[:300])
    fitted = estimator.score_samples(ROWS)
    assert estimator.calibrate(ROWS[300:500]) is estimator
    np.testing.assert_array_equal(estimator.score_samples(ROWS), fitted)  # what was fitted stays
    expected = conformal_threshold(torch.from_numpy(-fitted[300:500]), 0.1)
    np.testing.assert_array_equal(estimator.decision_function(ROWS) < 0, -fitted >= expected)
    with pytest.warns(UserWarning, match="takes at least 9 rows to calibrate on, got 8"):
        estimator.calibrate(ROWS[300:308])
    with pytest.raises(ValueError, match="10 features"):
        estimator.calibrate(ROWS[:, :9])
    with pytest.raises(NotFittedError):
        ThinkbackEstimator(4).calibrate(ROWS)


def test_estimator_is_copied_pickled_and_strict_about_columns():
    frame = pd.DataFrame(ROWS, columns=[f"c{i}" for i in range(10)])
    estimator = ThinkbackEstimator(4, damping=0.5).fit(frame)
    assert (estimator.n_features_in_, estimator.feature_names_in_[9]) == (10, "c9")
    assert clone(estimator).get_params() == estimator.get_params()
    assert not hasattr(clone(estimator), "offset_")
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict(frame), estimator.predict(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(frame[frame.columns[::-1]])
    with pytest.raises(TypeError, match="data was passed"):
        ThinkbackEstimator(4).fit(csr_matrix(ROWS))
    with pytest.raises(ValueError, match="NaN"):
        estimator.predict(np.nan * frame)
    assert set(np.unique(estimator.predict(frame))) <= {-1, 1}
    np.testing.assert_array_equal(estimator.fit_predict(frame), estimator.fit(frame).predict(frame))


@pytest.mark.parametrize("method", METHODS)
def test_estimator_scores_and_refuses_as_ooddetector(method):
    class Head(nn.Module):
        """Rows as images: features and logits are columns, so no rounding comes between."""

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
    known, found = -estimator.score_samples(held_out), -estimator.score_samples(rows)
    threshold = conformal_threshold(torch.from_numpy(known), 0.1)
    np.testing.assert_array_equal(estimator.decision_function(rows) < 0, found >= threshold)
    assert -estimator.offset_ in known  # the tie that is no alarm


def test_estimator_keeps_its_promise():
    rates = []
    for draw in range(100):
        x = np.random.default_rng(draw).normal(size=(40 + 400, 3))
        estimator = ThinkbackEstimator(1, alpha=0.1).fit(x[:40])
        rates.append(np.mean(estimator.predict(x[40:]) == -1))
    error = 5 * np.std(rates) / np.sqrt(len(rates))
    assert 0.1 - 1 / 21 - error < np.mean(rates) < 0.1 + error


def test_estimator_reads_one_column_as_the_logit_of_a_sigmoid():
    """Twice the squared gradient of the logistic loss: (0, z) has two rows of equal gradient."""
    x, T = torch.from_numpy(ROWS[:, :6]), 5.0
    model = LogisticRegression().fit(x, x.sum(1) > x.sum(1).mean())
    z = model.decision_function(x)
    ours = -ThinkbackEstimator(1, "thinkback_eq5").fit(np.c_[x, z]).score_samples(np.c_[x, z])
    w = torch.from_numpy(model.coef_[0]).requires_grad_()
    for h, logit, score in zip(x[:9], z, ours, strict=False):
        z_of_w = (h @ w + model.intercept_[0]) / T
        loss = nn.functional.softplus(-z_of_w if logit > 0 else z_of_w)
        (gradient,) = torch.autograd.grad(loss, w)
        assert score == pytest.approx(2 * float(gradient.square().sum()), rel=1e-9)


def test_estimator_in_pipelines_searches_frames_and_files():
    frame = pd.DataFrame(ROWS, columns=[f"c{i}" for i in range(10)])
    pipeline = make_pipeline(FunctionTransformer(), ThinkbackEstimator(4))
    pipeline.set_output(transform="pandas").fit(frame)
    np.testing.assert_array_equal(pipeline.predict(frame), ThinkbackEstimator(4).fit_predict(ROWS))
    assert pipeline[-1].feature_names_in_[0] == "c0"
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.score_samples(frame), pipeline.score_samples(frame))
    far = np.random.default_rng(0).normal(size=(200, 10))
    rows, truth = np.vstack([ROWS, far]), np.repeat([1, -1], [len(ROWS), len(far)])
    first = np.arange(300), np.arange(300, 900)  # fitted on inliers
    folds = [first, (np.arange(300, 700), np.r_[:300, 700:900])]
    grid = {"temperature": [0.5, 5.0], "damping": [1e-3], "method": ["thinkback", "thinkback_full"]}
    search = GridSearchCV(
        ThinkbackEstimator(4), grid, scoring="roc_auc", cv=folds, refit=False, error_score="raise"
    )
    results = search.fit(rows, truth).cv_results_
    assert len(set(results["mean_test_score"])) == 4
    chosen = ThinkbackEstimator(4, **results["params"][0]).fit(rows[:300])
    auroc = roc_auc_score(truth[300:], chosen.decision_function(rows[300:]))
    assert results["split0_test_score"][0] == pytest.approx(auroc)


LOGITS = "thinkback: n_classes says how many of the last columns are logits.* got"


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        ({"n_classes": 0}, ROWS, f"{LOGITS} 0"),
        ({"n_classes": "4"}, ROWS, f"{LOGITS} '4'"),
        ({"n_classes": 10}, ROWS, "10 feature.* minimum of 11 is required"),
        ({"n_classes": 4, "method": "softmax"}, ROWS, "method must be one of"),
        ({"n_classes": 4, "method": "msp", "damping": 1.0}, ROWS, "has .* not 'damping'"),
        ({"n_classes": 4, "alpha": 1.0}, ROWS, "alpha must lie between 0 and 1"),
        ({"n_classes": 4}, ROWS[:1], "1 sample"),
    ],
)
def test_estimator_s_errors_are_named(arguments, rows, message):
    with pytest.raises(ValueError, match=message):
        ThinkbackEstimator(**arguments).fit(rows)
