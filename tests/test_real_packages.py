"""Classifiers of other packages, a few of each kind of head; survey_models.py has all of them."""

import functools
import json

import numpy as np
import pytest
import survey_models
import torch
from refusals import refused

import thinkback_utils as tb
from thinkback_utils.adapters import ThinkbackDetector
from thinkback_utils.data import import_torchvision

REASON = "the extra `real` installs timm and transformers, `peers` pytorch-ood"
pytestmark = pytest.mark.filterwarnings(
    "ignore:thinkback.", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

FEW = {
    "torchvision": {"mobilenet_v3_small": "Linear"},
    "pytorch-ood": {"GRUClassifier": "Linear"},
    "timm": {
        "levit_128s": "Linear and Linear",
        "resnetv2_18": "Conv2d",
        "cait_xxs24_224": "Linear",
        "csatv2": "Linear",
    },
    "transformers": {
        "ViTForImageClassification": "Linear",
        "DeiTForImageClassificationWithTeacher": "Linear and Linear",
        "SegformerForSemanticSegmentation": "Conv2d",
        "UperNetForSemanticSegmentation": "Conv2d",
        "BertForSequenceClassification": "Linear",
        "GPT2ForSequenceClassification": "Linear",
        "BertForTokenClassification": "Linear",
        "Wav2Vec2ForSequenceClassification": "Linear",
        "VideoMAEForVideoClassification": "Linear",
    },
}


def imported(package):
    import_torchvision()  # which the packages would import plainly
    return pytest.importorskip(package, reason=REASON)


@pytest.fixture
def timm():
    return imported("timm")


@pytest.fixture
def small():
    return functools.partial(made_small, imported("transformers"))


@pytest.mark.parametrize("package", FEW)
def test_models_of_each_kind_work(package):
    imported(package.replace("-", "_"))
    cases = (
        {case.name: case for case in survey_models.CASES[package]()} if package != "timm" else {}
    )
    for name, head in FEW[package].items():
        row = survey_models.survey(cases.get(name) or survey_models.timm_case(name))
        assert (row.works, row.head) == (True, head), row


def made_small(transformers, name, **options):
    """A class of transformers in one small configuration, which is seeded."""
    torch.manual_seed(0)
    made = getattr(transformers, name)
    common = {"num_labels": 5, "vocab_size": 99, "pad_token_id": 0}
    return made(made.config_class(**common, **options)).eval()


TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def padded(length, n=6):
    """Sequences of 3 to 8 tokens, filled up with 0."""
    ids = torch.randint(3, 99, (n, length), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(length) < torch.arange(3, 3 + n)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_gpt2_reads_the_last_token_before_the_padding(small):
    model = small("GPT2ForSequenceClassification", n_embd=32, n_layer=2, n_head=4)
    batch = padded(8)
    seen = tb.features.extract(model, batch)
    with torch.no_grad():
        hidden = model.transformer(**batch).last_hidden_state
        returned = model(**batch).logits
    last = batch["attention_mask"].sum(1) - 1
    np.testing.assert_allclose(seen.features, hidden[torch.arange(6), last], rtol=1e-5)
    np.testing.assert_array_equal(seen.logits, returned)


def test_bert_scores_do_not_depend_on_padding_and_labels_are_read(small):
    model = small("BertForSequenceClassification", **TEXT)
    short = padded(8)
    long = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in short.items()}
    detector = tb.detector.OODDetector(model, damping=1.0).fit([short])
    np.testing.assert_allclose(detector.score(long), detector.score(short), rtol=1e-3)
    seen = tb.features.extract(model, [{**short, "labels": torch.arange(6) % 5}])
    assert seen.labels.tolist() == [0, 1, 2, 3, 4, 0]
    with torch.no_grad():
        pooled = model.bert(**short).pooler_output
    np.testing.assert_allclose(seen.features, pooled, rtol=1e-5, atol=1e-7)


def test_tokens_are_scored_each(small):
    model = small("BertForTokenClassification", **TEXT)
    batch = padded(8)
    scores = tb.detector.OODDetector(model, damping=1.0).fit([batch]).score([batch])
    assert scores.shape == (6, 8)
    with torch.no_grad():
        hidden, z = model.bert(**batch).last_hidden_state, model(**batch).logits
    pairs = [(hidden.flatten(0, 1), z.flatten(0, 1))]
    by_hand = tb.detector.OODDetector(damping=1.0).fit(pairs).score(pairs)
    np.testing.assert_allclose(scores.flatten(), by_hand, rtol=1e-4)


def test_deit_averages_two_heads(small):
    model = small("DeiTForImageClassificationWithTeacher", **TEXT, image_size=32, patch_size=8)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = tb.features.extract(model, [{"pixel_values": x}])
    with torch.no_grad():
        hidden, out = model.deit(x).last_hidden_state, model(x)
    logits = (out.cls_logits + out.distillation_logits) / 2
    np.testing.assert_allclose(seen.logits, logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen.features, hidden[:, :2].flatten(1) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "mobilenetv4_conv_small_035", "vit_tiny_patch16_224"]
)
def test_timm_names_the_same_features(timm, name):
    """Its ``forward_head(..., pre_logits=True)`` and ``get_classifier`` are the oracle."""
    torch.manual_seed(0)
    options = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **options).eval()
    x = torch.rand(6, 3, 64, 64)
    seen = tb.features.extract(model, x)
    with torch.no_grad():
        h, z = model.forward_head(model.forward_features(x), pre_logits=True), model(x)
    np.testing.assert_allclose(seen.features, h, rtol=1e-3, atol=1e-4 * float(h.abs().max()))
    np.testing.assert_allclose(seen.logits, z, rtol=1e-3, atol=1e-4 * float(z.abs().max()))
    (head,) = {item.head for item in tb.passes.stream(model, x)}
    assert model.get_submodule(head) is model.get_classifier()


def test_timm_knows_the_mean_and_std_of_its_images(timm):
    model = timm.create_model("resnet10t", num_classes=7).eval()
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    by_hand = tb.features.extract(model, (images / 255 - mean) / std).features
    found = tb.features.extract(model, images).features
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-5)


def test_pytorch_ood_s_adapter_takes_timm(timm):
    imported("pytorch_ood")
    model = timm.create_model("resnet10t", num_classes=7).eval()
    x = torch.rand(8, 3, 64, 64)
    loader = [(x, torch.arange(8) % 7)]
    whole = ThinkbackDetector(model, damping=1.0).fit(loader)
    pooled = torch.nn.Sequential(torch.nn.Identity(), model)
    pooled.forward = lambda x: model.forward_head(model.forward_features(x), pre_logits=True)
    parts = ThinkbackDetector(pooled, model.get_classifier(), damping=1.0).fit(loader)
    np.testing.assert_allclose(whole(x), parts(x), rtol=1e-3)
    with refused(r"^thinkback: the encoder gives \(8, 512, 2, 2\), the head reads 512 features"):
        ThinkbackDetector(model.forward_features, model.get_classifier()).fit(loader)


def test_committed_survey_states_every_reason():
    """What the book cites: packages and rules as here, reasons of failures, and their table."""
    whole = json.loads(survey_models.OUT.read_text(encoding="utf-8"))
    assert list(whole) == list(survey_models.CASES)
    for package, part in whole.items():
        assert part["rule"] == survey_models.RULES[package]
        assert {"command", "commit", "versions"} <= part["provenance"].keys()
        assert package in part["provenance"]["versions"]
        for row in part["models"]:
            assert row["works"] in (True, False, None), row
            assert bool(row["reason"]) == (row["works"] is not True), row
            assert bool(row["head"]) == (row["works"] is True), row
    tried = {
        package: [row["works"] for row in part["models"] if row["works"] is not None]
        for package, part in whole.items()
    }
    assert len(tried["torchvision"]) >= 86
    assert len(tried["timm"]) >= 180
    assert len(tried["transformers"]) >= 240
    for package, works in tried.items():
        assert sum(works) >= 0.95 * len(works), package
    table = survey_models.OUT.with_suffix(".md").read_text(encoding="utf-8")
    assert table == survey_models.table(whole)
