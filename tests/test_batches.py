"""One rule for images: every form of them gives what the plain array gives, and what is none is
refused in words.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from refusals import refused
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from thinkback_utils.batches import Pixels, batches, normalization, unwrapped
from thinkback_utils.data import ImageSet
from thinkback_utils.features import extract
from thinkback_utils.passes import stream

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (7, 3, 5, 6), dtype=torch.uint8, generator=GENERATOR)
Y = torch.arange(7) % 4


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


class Text(nn.Module):
    """Two inputs; the second may be left out."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(50, 8), nn.Linear(8, 4)

    def forward(self, input_ids, attention_mask=None):
        w = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.fc((self.embed(input_ids) * w[..., None]).sum(1) / w.sum(1, keepdim=True))


class Both(nn.Module):
    """Two inputs, both needed; the second is a vector (B,), as labels are."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x, scale):
        return self.fc(x * scale[:, None])


class Pictures(Dataset):
    def __init__(self, form):
        self.form = form

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        picture, y = Image.fromarray(PIXELS[i].permute(1, 2, 0).numpy()), int(Y[i])
        forms = {"pair": (picture, y), "alone": picture, "named": {"image": picture, "label": y}}
        return forms[self.form]


torch.manual_seed(0)
NET, TEXT = Convolutional().eval(), Text().eval()
with torch.no_grad():
    LOGITS = NET(PIXELS.float() / 255)
IDS = torch.randint(50, (6, 9), generator=GENERATOR)
MASK = (torch.rand(6, 9, generator=GENERATOR) < 0.6).long()
MASK[:, 0] = 1
with torch.no_grad():
    MASKED, UNMASKED = TEXT(IDS, MASK), TEXT(IDS)


def pictures(form="RGB"):
    return [Image.fromarray(x.permute(1, 2, 0).numpy()).convert(form) for x in PIXELS]


FORMS = {
    "tensor": PIXELS,
    "floats": PIXELS.float() / 255,
    "float64": PIXELS.double() / 255,
    "NumPy, channels last": PIXELS.permute(0, 2, 3, 1).numpy(),
    "read-only": np.broadcast_to(PIXELS.numpy(), PIXELS.shape),
    "list of tensors": list(PIXELS),
    "list of arrays, channels last": list(PIXELS.permute(0, 2, 3, 1).numpy()),
    "list of pictures": pictures(),
    "(X, y)": (PIXELS, Y),
    "(X, y) of NumPy": (PIXELS.numpy(), Y.numpy()),
    "(X, y), float labels": (PIXELS, Y.float()),
    "ImageSet": ImageSet(PIXELS, Y),
    "data set": TensorDataset(PIXELS, Y),
    "data set of pictures": Pictures("pair"),
    "data set of pictures alone": Pictures("alone"),
    "data set of mappings": Pictures("named"),
    "loader": DataLoader(TensorDataset(PIXELS, Y), batch_size=3),
    "generator": (x for x in PIXELS.split(2)),
    "list of batches": list(PIXELS.split(3)),
    "tuple of batches": (PIXELS[:3], PIXELS[3:6], PIXELS[6:]),
    "list of pairs": list(zip(PIXELS.split(3), Y.split(3), strict=True)),
    "batches, channels last": list(PIXELS.permute(0, 2, 3, 1).split(3)),
    "mapping": {"pixel_values": PIXELS, "labels": Y},
    "mappings of Hugging Face": [{"pixel_values": PIXELS, "labels": Y}],
    "mappings of OpenOOD": [
        {"data": PIXELS, "label": Y, "image_name": ["a"] * 7, "soft_label": torch.rand(7, 4)}
    ],
    "a mapping of one array": [{"whatever": PIXELS}],
    "with names of files": [(PIXELS, Y, tuple("abcdefg"))],
    "with an empty batch": [PIXELS[:0], PIXELS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_gives_the_same(form):
    out = extract(NET, FORMS[form])
    torch.testing.assert_close(out.logits, LOGITS, rtol=1e-5, atol=1e-6)
    if out.labels is not None:
        assert torch.equal(out.labels, Y)
        assert out.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "form", ["(X, y)", "ImageSet", "data set of pictures", "loader", "mappings of OpenOOD"]
)
def test_labels_are_kept(form):
    assert torch.equal(extract(NET, FORMS[form]).labels, Y)
    assert extract(NET, PIXELS).labels is None


@pytest.mark.parametrize(
    "one", [PIXELS[0], PIXELS[0].permute(1, 2, 0).numpy(), pictures()[0], [PIXELS[0]]]
)
def test_one_image_is_a_batch_of_one(one):
    torch.testing.assert_close(extract(NET, one).logits, LOGITS[:1], rtol=1e-5, atol=1e-6)


def test_grey_images_get_their_channel():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    expected = extract(net, PIXELS[:, :1]).logits
    assert torch.equal(extract(net, PIXELS[:, 0]).logits, expected)
    assert torch.equal(extract(net, PIXELS[:, 0, :, :, None].numpy()).logits, expected)


def test_a_side_of_an_image_is_not_taken_for_its_channels():
    """The first convolution that is registered may be a later one, with as many channels as an
    image has columns.
    """
    torch.manual_seed(0)

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.stem = nn.Conv2d(16, 8, 1), nn.Conv2d(3, 16, 1)
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.late(self.stem(x)).mean((2, 3)))

    net, x = Late().eval(), torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(extract(net, x).logits, net(x).detach())


def test_rows_of_tables():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x = torch.rand(9, 6, dtype=torch.float64)
    expected = extract(net, x.float()).logits
    frame = pd.DataFrame(x.numpy(), columns=list("abcdef"))
    arrays = x, x.numpy(), x.tolist(), list(x)
    for rows in (*arrays, frame, (frame, pd.Series(range(9))), [frame], DataLoader(x, 4)):
        torch.testing.assert_close(extract(net, rows).logits, expected)
    assert torch.equal(extract(net, x[0]).logits, expected[:1])
    double = extract(net.double(), x.float().double()).logits
    assert torch.equal(extract(net, x.float()).logits, double)
    with refused(r"images and batches are numbers, got object"):
        extract(net.float(), pd.DataFrame({"a": ["x"]}))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(IDS, MASK)], MASKED),
        ([(IDS, MASK, torch.arange(6))], MASKED),
        ([(IDS, torch.arange(6))], UNMASKED),
        ([{"input_ids": IDS, "attention_mask": MASK, "labels": torch.arange(6)}], MASKED),
        ({"input_ids": IDS.numpy(), "attention_mask": MASK.tolist()}, MASKED),
        (TensorDataset(IDS, MASK, torch.arange(6)), MASKED),
        ([{"attention_mask": MASK, "input_ids": IDS, "text": ["a"] * 6}], MASKED),
        ((IDS, MASK), MASKED),
        ((IDS, MASK, torch.arange(6)), MASKED),
        (IDS, UNMASKED),
    ],
)
def test_several_inputs_reach_the_model(given, expected):
    torch.testing.assert_close(extract(TEXT, given, batch_size=4).logits, expected)


class Inside(nn.Module):
    """Takes whatever the model inside takes, by name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **entries):
        return self.model(**entries)


def test_every_entry_reaches_a_model_that_takes_any_name():
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.arange(6)}
    [seen] = stream(Inside(TEXT), [given])
    torch.testing.assert_close(seen.logits, MASKED)
    assert seen.labels.tolist() == list(range(6))


def test_a_vector_that_the_model_needs_is_no_label():
    torch.manual_seed(0)
    net, x, scale = Both(), torch.rand(5, 6), torch.arange(1.0, 6.0)
    for given in ([(x, scale)], [(x, scale, torch.arange(5))], [{"x": x, "scale": scale}]):
        torch.testing.assert_close(extract(net, given).logits, net(x, scale).detach())


def test_the_hook_takes_what_is_left():
    odd = [{"deep": {"ids": IDS, "mask": MASK}, "other": "text"}]
    out = extract(TEXT, odd, forward=lambda model, batch: model(*batch["deep"].values()))
    torch.testing.assert_close(out.logits, MASKED)

    def unpacked(model, batch):
        return model(*(batch.values() if isinstance(batch, dict) else batch))

    for whole in ((IDS, MASK), {"input_ids": IDS, "attention_mask": MASK}):
        out = extract(TEXT, whole, forward=unpacked, batch_size=4)
        torch.testing.assert_close(out.logits, MASKED)
    # arrays come as the model reads them
    doubled = extract(NET, PIXELS, forward=lambda model, x: model(x * 2)).logits
    expected = NET(PIXELS.float() / 127.5).detach()
    torch.testing.assert_close(doubled, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (
            NET,
            [(PIXELS, torch.rand(7, 4))],
            r"entries of shapes \(7, 3, 5, 6\), \(7, 4\), and the model takes 1; labels",
        ),
        (NET, (PIXELS, torch.rand(7, 4)), r"entries of shapes .*, \(7, 4\), and the model takes 1"),
        (NET, [(PIXELS, Y, Y)], r"\(7,\), \(7,\), and the model takes 1; .*forward=lambda"),
        (TEXT, [(IDS, MASK, MASK)], r"takes 1 to 2; labels would be a last vector \(6,\)"),
        (
            TEXT,
            [{"input_ids": IDS, "mask": MASK}],
            r"entries \['input_ids', 'mask'\], .* leave out \['mask'\]",
        ),
        (
            TEXT,
            [{"a": IDS, "b": MASK}],
            r"forward takes \['attention_mask', 'input_ids'\]; leave out \['a', 'b'\]",
        ),
        (NET, "folder/of/images", "got the text 'folder/of/images'; read the file first"),
        (NET, 5, "arrays, a data set or batches, got int"),
        (NET, [("a", "b")], r"a batch of \['str', 'str'\] holds no numbers"),
        (NET, [object()], "are numbers, got object"),
        (
            NET,
            [PIXELS[0], PIXELS[0, :, 1:]],
            r"shape, \(3, 4, 6\) and \(3, 5, 6\); bring them to one",
        ),
        (
            TEXT,
            {"input_ids": IDS, "attention_mask": MASK[:3]},
            r"same number of rows, got shapes \(6, 9\), \(3, 9\)",
        ),
        (NET, [(PIXELS, torch.eye(7))], 'several classes at once are for method="joint_energy"'),
        (NET, [torch.tensor(3.0)], "a batch is an array of samples, got the single number 3.0"),
    ],
)
def test_what_is_no_batch_is_refused(model, given, message):
    with refused(message):
        extract(model, given)


def test_a_model_may_change_its_input_but_not_the_callers():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(90, 4)

        def forward(self, x):
            return self.fc(x.sub_(0.5).flatten(1))

    torch.manual_seed(0)
    net, x = InPlace(), PIXELS.float() / 255
    kept = x.clone()
    expected = extract(net, PIXELS, head="fc").logits
    batch = {"deep": x}
    for given in (x, [x], [{"x": x}], x.numpy()):
        torch.testing.assert_close(extract(net, given).logits, expected)
        assert torch.equal(x, kept)
    hooked = extract(net, [batch], forward=lambda m, b: m(b["deep"])).logits
    torch.testing.assert_close(hooked, expected)
    assert torch.equal(x, kept)


def test_mean_and_std():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    offset, scale = (torch.tensor(value)[:, None, None] for value in (mean, std))
    x = (PIXELS.float() / 255 - offset) / scale
    expected = NET(x).detach()
    for images in (PIXELS, PIXELS.float() / 255, DataLoader(TensorDataset(PIXELS, Y), 3)):
        ours = extract(NET, images, mean=mean, std=std).logits
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    with refused(r"pixels in \[0, 1\], and the images go from -2\.\d+ .*normalised before"):
        extract(NET, x, mean=mean, std=std)
    with refused("mean and std have 1 channels"):
        extract(NET, PIXELS, mean=(0.5,), std=(0.5,))
    for bad in (None, (0, 1, 1), (1.0, 1.0)):
        with refused("mean and std"):
            Pixels(mean, bad)


def test_a_configuration_says_mean_and_std():
    net = Convolutional().eval()
    net.load_state_dict(NET.state_dict())
    net.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 5, 6)}
    expected = extract(NET, PIXELS, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).logits
    torch.testing.assert_close(extract(net, PIXELS).logits, expected)
    torch.testing.assert_close(extract(nn.DataParallel(net), PIXELS).logits, expected)
    # someone prepared them
    torch.testing.assert_close(extract(net, PIXELS.float() / 255).logits, LOGITS)

    class Processor:
        image_mean, image_std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]

    torch.testing.assert_close(extract(NET, PIXELS, **normalization(Processor())).logits, expected)
    assert normalization(object()) == {}


def test_wrappers_are_looked_through():
    compiled = torch.compile(NET, backend="eager")
    for wrapped in (compiled, nn.DataParallel(NET), nn.DataParallel(compiled)):
        assert unwrapped(wrapped) is NET
        out = extract(wrapped, PIXELS)
        torch.testing.assert_close(out.logits, LOGITS, rtol=1e-5, atol=1e-6)


def test_batches_are_of_the_size_asked_for_and_none_is_empty():
    assert [batch.size for batch in batches(PIXELS, NET, batch_size=3)] == [3, 3, 1]
    assert [len(item.logits) for item in stream(NET, (x for x in (PIXELS[:0], PIXELS[:2])))] == [2]
    assert list(batches([], NET)) == []
