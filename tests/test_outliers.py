"""Validation outliers: the promises of each kind, and the split into kept and held-out classes."""

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import outliers
from experiments.outliers import ABOUT, OUTLIERS, held_out_classes, validation_outliers
from thinkback_utils import data
from thinkback_utils.data import ImageSet

# They owe the images their number, mean and contrast alone.
NOISES = ("gaussian", "rademacher", "blob", "uniform")
RANDOM = (*NOISES, "arithmetic_mean", "geometric_mean", "speckle")
FIXED = ("jigsaw", "pixelate", "rgb_ghost", "invert")
MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])  # of CIFAR-10's pixels


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return data.load("photo_crops").images[::3]  # (200, 3, 32, 32)


@pytest.fixture(scope="module")
def flat() -> torch.Tensor:
    """400 random images with CIFAR-10's mean and standard deviation: each pixel is mean +- std."""
    signs = np.random.default_rng(1).choice([-1, 1], (400, 3, 32, 32))
    return torch.from_numpy(np.round(MEAN[:, None, None] + STD[:, None, None] * signs)).byte()


def units(kind: str, images: torch.Tensor) -> np.ndarray:
    """What a network of CIFAR-10 reads."""
    return (OUTLIERS[kind](images, 0).numpy() - MEAN[:, None, None]) / STD[:, None, None]


def test_the_tables_name_the_same_kinds() -> None:
    assert list(OUTLIERS) == list(ABOUT)
    assert set(OUTLIERS) == {*RANDOM, *FIXED}
    assert all(make.__name__ == kind for kind, make in OUTLIERS.items())
    assert not set(OUTLIERS) & set(data.TITLES)


def test_all_kinds_come_as_image_sets(photos: torch.Tensor) -> None:
    before = photos.clone()
    made = validation_outliers(photos, seed=3)
    assert list(made) == list(OUTLIERS)
    for kind, image_set in made.items():
        assert image_set.images.shape == photos.shape
        assert image_set.images.dtype == torch.uint8
        assert image_set.images.is_contiguous()
        assert (image_set.labels, image_set.name) == (None, kind)
        assert torch.equal(image_set.images, OUTLIERS[kind](photos, 3))
    assert torch.equal(photos, before)


@pytest.mark.parametrize("kind", OUTLIERS)
def test_the_seed_decides(kind: str, photos: torch.Tensor) -> None:
    first, again, other = (OUTLIERS[kind](photos, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind in FIXED)


@pytest.mark.parametrize("kind", OUTLIERS)
def test_every_image_is_changed(kind: str, photos: torch.Tensor) -> None:
    made = OUTLIERS[kind](photos, 0)
    changed = (made != photos).float().mean((1, 2, 3))
    assert changed.min() > 0.05  # photo crops hold black and plain areas, where little can change
    assert changed.mean() > 0.65  # inversion keeps red
    assert len(made.unique(dim=0)) == len(made)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_knows_nothing_of_the_content(kind: str, flat: torch.Tensor) -> None:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(0))
    shuffled = flat.flatten(2)[:, :, order].view_as(flat)
    assert torch.equal(OUTLIERS[kind](flat, 0), OUTLIERS[kind](shuffled, 0))
    alike = np.corrcoef(units(kind, flat).ravel(), flat.numpy().ravel())[0, 1]
    assert abs(alike) < 0.15  # channels differ in mean


def test_noises_share_no_stream(flat: torch.Tensor) -> None:
    noises = np.corrcoef([units(kind, flat).ravel() for kind in NOISES])
    assert np.abs(noises - np.eye(len(NOISES))).max() < 0.01


def test_gaussian_noise_is_half_a_deviation_wide_and_clipped_at_one(flat: torch.Tensor) -> None:
    z = units("gaussian", flat)
    normal = np.random.default_rng(2).normal(0, 0.5, 1_000_000).clip(-1, 1)
    assert np.abs(z).max() < 1.02  # a grey level is 0.016 of a deviation
    assert z.mean((0, 2, 3)) == pytest.approx(np.zeros(3), abs=0.01)
    assert z.std() == pytest.approx(normal.std(), abs=0.005)
    assert (np.abs(z) > 0.98).mean() == pytest.approx((np.abs(normal) > 0.98).mean(), abs=0.01)


def test_rademacher_noise_has_two_equally_likely_levels(flat: torch.Tensor) -> None:
    z = units("rademacher", flat)
    assert np.abs(np.abs(z) - 1).max() < 0.02
    assert (z > 0).mean() == pytest.approx(0.5, abs=0.005)


def test_uniform_noise_fills_its_range(flat: torch.Tensor) -> None:
    histogram, _ = np.histogram(units("uniform", flat), bins=4, range=(-1.01, 1.01))
    assert histogram.sum() == flat.numel()
    assert histogram / flat.numel() == pytest.approx(np.full(4, 0.25), abs=0.01)


def test_blobs_are_smooth_overlap_in_their_channels_and_lie_on_a_flat_ground(
    flat: torch.Tensor,
) -> None:
    z = units("blob", flat)
    ground, blobs = z < -0.97, z > 0.48
    assert (ground | blobs).all()
    assert 0.1 < blobs.mean() < 0.4
    neighbours = (blobs[..., 1:] == blobs[..., :-1]).mean()
    assert neighbours > 0.85
    independent = blobs.mean() ** 2 + (1 - blobs.mean()) ** 2
    assert (blobs[:, 0] == blobs[:, 2]).mean() > independent + 0.05
    assert blobs[:, 0].mean((1, 2)).std() > 0.03  # not one blob for all


def test_noise_stands_in_the_contrast_of_its_images() -> None:
    plain = torch.full((3, 3, 32, 32), 77, dtype=torch.uint8)
    for kind in NOISES:
        assert torch.equal(OUTLIERS[kind](plain, 0), plain)


@pytest.mark.parametrize("kind", ["arithmetic_mean", "geometric_mean"])
def test_pairs(kind: str, photos: torch.Tensor) -> None:
    for seed in range(20):
        partners = outliers._partners(photos, seed, kind)
        assert (partners != torch.arange(len(photos))).all()
        assert (partners.min() >= 0) & (partners.max() < len(photos))
    assert len(outliers._partners(photos, 0, kind).unique()) > 100
    other = photos[outliers._partners(photos, 0, kind)].double()
    mean = (photos + other) / 2 if kind == "arithmetic_mean" else (photos * other).sqrt()
    assert (OUTLIERS[kind](photos, 0) - mean).abs().max() <= 0.5 + 1e-4
    one, two = OUTLIERS[kind](photos[:2], 0)  # two can only pair up
    assert torch.equal(one, two)


def test_the_two_means_pair_other_images(photos: torch.Tensor) -> None:
    pairs = [outliers._partners(photos, 0, kind) for kind in ("arithmetic_mean", "geometric_mean")]
    assert (pairs[0] == pairs[1]).float().mean() < 0.05


@pytest.mark.parametrize("kind", ["arithmetic_mean", "geometric_mean"])
def test_the_mean_of_an_image_with_its_twin_is_the_image(kind: str) -> None:
    image = torch.arange(256).repeat(12).view(1, 3, 32, 32).byte()
    twins = image.repeat(5, 1, 1, 1)
    assert torch.equal(OUTLIERS[kind](twins, 0), twins)


def test_the_geometric_mean_is_the_darker(
    photos: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    partners = outliers._partners(photos, 0, "arithmetic_mean")
    monkeypatch.setattr(outliers, "_partners", lambda *_: partners)
    assert (outliers.geometric_mean(photos) <= outliers.arithmetic_mean(photos).float() + 1).all()


def test_jigsaw_moves_pixels_and_keeps_them() -> None:
    place = torch.arange(1024).view(1, 1, 32, 32)
    # Red and green together name the place.
    image = torch.cat([place // 256, place % 256, place % 7], 1).byte()
    made = outliers.jigsaw(image)
    colors, kept = (x.flatten(2).squeeze(0).T.unique(dim=0) for x in (image, made))
    assert torch.equal(colors, kept)
    came = made[0, 0].int() * 256 + made[0, 1]
    corners = {(0, 0): (8, 0), (8, 0): (0, 0), (0, 16): (16, 0)}
    corners |= {(16, 0): (16, 16), (16, 16): (0, 24), (16, 24): (0, 16)}
    for (y, x), (source_y, source_x) in corners.items():
        assert divmod(int(came[y, x]), 32) == (source_y, source_x)


def test_speckle_grows_with_brightness() -> None:
    levels = torch.tensor([0, 40, 80]).byte().view(3, 1, 1, 1).expand(3, 3, 32, 32)
    made = outliers.speckle(levels).double()
    assert (made[0] == 0).all()
    black = (made[1] == 0).double().mean()
    assert black == pytest.approx(0.16, abs=0.02)  # what a normal puts below -1
    assert made[2].std() == pytest.approx(2 * made[1].std().item(), rel=0.05)
    assert made[2].median() == pytest.approx(80, abs=5)


def test_pixelate_leaves_36_cells_and_their_colour(photos: torch.Tensor) -> None:
    made = outliers.pixelate(photos)
    assert max(len(image.flatten(1).T.unique(dim=0)) for image in made) <= 36
    assert (made.float().mean((2, 3)) - photos.float().mean((2, 3))).abs().max() < 12
    image = Image.fromarray(photos[5].permute(1, 2, 0).numpy())
    by_hand = image.resize((6, 6), 4).resize((32, 32), 4)
    assert np.array_equal(made[5].permute(1, 2, 0).numpy(), np.asarray(by_hand))


def test_rgb_ghost_moves_channels_whole(photos: torch.Tensor) -> None:
    made = outliers.rgb_ghost(photos)
    for new, old in ((0, 1), (1, 2), (2, 0)):
        a, b = made[:, new].flatten(1), photos[:, old].flatten(1)
        assert torch.equal(a.sort().values, b.sort().values)
        assert torch.equal(a, b) == (new != 0)
    assert torch.equal(made[:, 0].flip(2), photos[:, 1])


def test_inverted_channels_are_exact(photos: torch.Tensor) -> None:
    made = outliers.invert(photos)
    assert torch.equal(made[:, 0], photos[:, 0])
    assert (made[:, 1:].int() + photos[:, 1:].int() == 255).all()


@pytest.mark.parametrize("kind", OUTLIERS)
def test_bad_images_are_refused(kind: str) -> None:
    good = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for bad, found in (
        (good.float(), r"float32 \(4, 3, 32, 32\)"),
        (good.permute(0, 2, 3, 1), r"uint8 \(4, 32, 32, 3\)"),
        (good[..., :16], r"\(4, 3, 32, 16\)"),
        (good[:0], r"\(0, 3, 32, 32\)"),
    ):
        message = rf"^thinkback: outliers are made from images uint8 .*{found}"
        with pytest.raises(ValueError, match=message):
            OUTLIERS[kind](bad, 0)


def test_a_single_image_and_a_negative_seed_are_refused() -> None:
    good = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^thinkback: arithmetic_mean mixes pairs .* got only 1"):
        validation_outliers(good[:1])
    with pytest.raises(ValueError, match=r"^thinkback: the seed .* not be negative, got -1"):
        validation_outliers(good, seed=-1)


def labelled(classes: tuple[str, ...] = ("plane", "car", "bird", "cat", "deer")) -> ImageSet:
    labels = torch.arange(50) * 3 % 5
    images = labels.byte().view(-1, 1, 1, 1).expand(-1, 3, 32, 32)  # every pixel is the old label
    return ImageSet(images, labels, classes, name="five")


def test_held_out_classes() -> None:
    kept, out = held_out_classes(labelled(), ["cat", 1, "car"])
    assert (kept.classes, out.classes) == (("plane", "bird", "deer"), ("car", "cat"))
    assert (len(kept), len(out)) == (30, 20)
    for part, old in ((kept, [0, 2, 4]), (out, [1, 3])):
        assert part.labels is not None
        assert part.labels.dtype == torch.int64
        assert torch.tensor(old)[part.labels].tolist() == part.images[:, 0, 0, 0].tolist()
        assert part.name == "five"


def test_held_out_classes_of_a_set_without_names() -> None:
    kept, out = held_out_classes(labelled(()), (4,))
    assert (kept.classes, out.classes) == (("0", "1", "2", "3"), ("4",))


@pytest.mark.parametrize(
    ("image_set", "classes", "message"),
    [
        (ImageSet(labelled().images, name="bare"), [0], ".* the set 'bare' has none"),
        (labelled(), ["dog"], "set 'five' has no class 'dog'; it has plane, car, bird, cat, deer"),
        (labelled(), [-1], "set 'five' has no class -1"),
        (labelled(), "cat", "set 'five' has no class 'c'"),
        (labelled(), [], "hold out 1 to 3 of 5 classes, got 0"),
        (labelled(), range(4), "hold out 1 to 3 of 5 classes, got 4"),
    ],
)
def test_bad_splits_are_refused(
    image_set: ImageSet, classes: list[str | int], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^thinkback: {message}"):
        held_out_classes(image_set, classes)
