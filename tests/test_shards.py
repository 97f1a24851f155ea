"""Many processes get what one gets, and after a kill nothing is lost or repeated."""

import io
import math
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from processes import torchrun
from refusals import refused
from safetensors.torch import save_file

from thinkback_utils import fit, score, shards
from thinkback_utils.detector import OODDetector
from thinkback_utils.methods import METHODS
from thinkback_utils.models import WideResNet

# it is untrained
pytestmark = pytest.mark.filterwarnings("ignore:thinkback. the model is hardly sure")
SIZES = (37, 23, 5)  # uneven: no number of processes divides their sum


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Three arrays of images and a small network."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        images = rng.integers(256, size=(size, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"part{i}.npz", images=images)
    torch.manual_seed(0)
    net = WideResNet(10, 1, 3).eval()
    with torch.no_grad():  # every class gets some images, so that nothing warns
        net.fc.bias -= net(torch.rand(50, 3, 8, 8)).mean(0)
    net.save(folder / "weights.safetensors")
    return folder


def command(job, words, out=None):
    """The arguments of a program that reads all three arrays."""
    words = f"--model {{job}}/weights.safetensors --device cpu {words}".split()
    arrays = (str(job / f"part{i}.npz") for i in range(len(SIZES)))
    return [*arrays, *(word.format(job=job, out=out) for word in words)]


@pytest.fixture(scope="module")
def detector(job):
    """The path of what one process has fitted."""
    fit.main(command(job, "--method thinkback --out {job}/alone"))
    return job / "alone"


@pytest.fixture(scope="module")
def scored_by(job):
    """A function that scores all images by a detector's file."""
    arrays = [np.load(job / f"part{i}.npz")["images"] for i in range(len(SIZES))]
    images = torch.from_numpy(np.concatenate(arrays)).permute(0, 3, 1, 2)
    model = WideResNet.load(job / "weights.safetensors")
    return lambda path: OODDetector.load(path, model).score(images)


def test_fit_of_four_processes_is_that_of_one(job, scored_by, tmp_path):
    """There are three batches, so one process has no data."""
    words = "--method thinkback_full --batch-size 32 --damping 0.1 --out {out}"
    torchrun(4, "thinkback_utils.fit", *command(job, words, tmp_path / "together"))
    fit.main(command(job, words, tmp_path / "alone"))
    many, one = (scored_by(tmp_path / name) for name in ("together", "alone"))
    torch.testing.assert_close(many, one, rtol=1e-12, atol=0)  # roots may differ by a sign


def test_scores_of_two_processes_are_those_of_one(job, detector, scored_by, tmp_path):
    words = "--detector {job}/alone --batch-size 4 --block 9 --out {out}"
    together, alone = (command(job, words, tmp_path / name) for name in ("together", "alone"))
    run = [sys.executable, "-m", "thinkback_utils.score", *together]
    environment = os.environ | {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(run, env=environment | {"RANK": str(i)}) for i in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    score.main(alone)
    many, one = (shards.read_blocks(tmp_path / name)["score"] for name in ("together", "alone"))
    torch.testing.assert_close(many, one, rtol=1e-12, atol=0)
    # in other batches, in float32
    torch.testing.assert_close(one, scored_by(detector), rtol=1e-4, atol=0)


def test_a_killed_process_loses_and_repeats_nothing(job, detector, tmp_path):
    words = "--detector {job}/alone --batch-size 4 --block 1 --out {out}"
    words = command(job, words, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "thinkback_utils.score", *words],
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "2"},
    )
    while not list(tmp_path.glob("block-*.npz")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("block-*.npz")}
    assert 0 < len(before) < sum(SIZES) / 2, "it was not killed half-way"
    with refused("run the same command again", FileNotFoundError):
        shards.read_blocks(tmp_path)
    score.main(words)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before, "a finished block was written again"
    assert len(shards.read_blocks(tmp_path)["score"]) == sum(SIZES)
    assert len(list(tmp_path.glob(".*.partial"))) <= 1  # of the killed one


def test_another_job_in_the_same_folder_is_refused(job, detector, tmp_path):
    words = command(job, "--detector {job}/alone --out {out}", tmp_path)
    score.main(words)
    with refused(r"another job.*block"):
        score.main([*words, "--block", "7"])


@pytest.mark.parametrize("world", [1, 2, 3, 7, 100])
def test_blocks_cover_every_sample_once(world):
    seen = [
        i for rank in range(world) for _, block in shards.blocks(65, rank, world, 4) for i in block
    ]
    assert sorted(seen) == list(range(65))


def png(pixels, kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def noise(height=6, width=6, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


WRITERS = {"folder": write_folder, "archive.tar": write_tar}


def test_sources_of_every_kind_hold_the_same_images(tmp_path):
    images = np.random.default_rng(1).integers(256, size=(4, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    write_tar(tmp_path / "b.tar", {f"{i}.PNG": png(image) for i, image in enumerate(images)})
    names = ["z0.png", "z1.png", "deep/z2.png", "deep/z3.png"]
    files = dict(zip(names, map(png, images), strict=True))
    folder = shards.open_sources([write_folder(tmp_path / "folder", files)], side=4)
    dataset = shards.open_sources([tmp_path / "a.npz", tmp_path / "b.tar"])
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert torch.equal(torch.stack([dataset[i] for i in range(8)]), torch.cat([expected, expected]))
    assert [folder.datasets[0].names[i] for i in (0, 2)] == ["deep/z2.png", "z0.png"]
    assert folder[0].shape == (3, 4, 4)


@pytest.mark.parametrize("kind", WRITERS)
def test_hidden_files_and_folders_are_no_images(tmp_path, kind):
    junk = "._a.png deep/._b.png __MACOSX/a.png __MACOSX/deep/._a.png .cache/c.png deep/.x/d.png"
    files = {
        "a.png": png(noise()),
        "deep/b.PNG": png(noise()),
        "deep/notes.txt": b"",
        **dict.fromkeys(junk.split(), b"\0\5\26"),
    }
    path = WRITERS[kind](tmp_path / kind, files)
    assert shards.ImageFiles(path).names == ["a.png", "deep/b.PNG"]
    dotted = WRITERS[kind](tmp_path / f".{kind}", {"./a.png": png(noise())})
    assert shards.ImageFiles(dotted).names[0].endswith("a.png")


@pytest.mark.parametrize("kind", WRITERS)
def test_16_bit_files_are_scaled_by_their_own_range(tmp_path, kind):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    path = WRITERS[kind](tmp_path / kind, {"a.png": png(ramp), "b.tif": png(ramp, "TIFF")})
    for image in shards.ImageFiles(path):
        assert (image.numpy() == np.round(ramp / 257)).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", WRITERS)
def test_images_of_several_sizes_name_two_and_the_remedy(tmp_path, kind, workers):
    files = {"a.png": png(noise(30, 40)), "b.png": png(noise(40, 30))}
    path = WRITERS[kind](tmp_path / kind, files)
    sources = shards.open_sources([path])
    for dataset in (sources, sources.datasets[0]):
        with refused(r"a\.png in .* 3 x 30 x 40 and b\.png in .* 3 x 40 x 30; .*--side"):
            next(iter(shards.Batches(dataset, [0, 1], 2, workers)))
    [batch] = shards.Batches(shards.open_sources([path], side=8), [0, 1], 2)
    assert batch.shape == (2, 3, 8, 8)


def test_arrays_of_several_sizes_too(tmp_path):
    for name, side in (("a", 6), ("b", 8)):
        np.savez(tmp_path / f"{name}.npz", images=noise(side, side)[None])
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    with refused(r"image 0 of .*a\.npz has 3 x 6 x 6 and image 0 of .*b\.npz has 3 x 8 x 8"):
        list(shards.Batches(shards.open_sources(paths), [0, 1], 2))
    [batch] = shards.Batches(shards.open_sources(paths, side=6), [0, 1], 2)
    assert torch.equal(batch[0], torch.from_numpy(noise()).permute(2, 0, 1))


@pytest.mark.parametrize("side", [0, -1])
def test_a_side_without_pixels_is_an_error(tmp_path, side):
    with refused(rf"^thinkback: side must be at least 1 pixel, got {side}"):
        shards.open_sources([tmp_path], side)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "content", [b"", b"no image", png(noise(40, 40))[:-200], png(np.float32([[0, 1]]), "TIFF")]
)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_broken_image_is_named(tmp_path, kind, content, workers):
    path = WRITERS[kind](tmp_path / kind, {"a.png": png(noise()), "b.tif": content})
    with refused(rf"{kind} holds a broken image, b\.tif: .*--skip-broken") as raised:
        list(shards.Batches(shards.open_sources([path]), [0, 1], 2, workers))
    assert "Traceback" not in str(raised.value)


def test_a_link_to_nothing_is_a_broken_image(tmp_path):
    write_folder(tmp_path, {"a.png": png(noise())})
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with refused(r"broken image, b\.png: "):
        shards.ImageFiles(tmp_path)[1]


@pytest.fixture
def broken(tmp_path):
    """Nine images in three sources, numbers 1, 4, 5 and 6 broken; all pixels are the number."""
    files = [png(np.full((6, 6, 3), i, np.uint8)) for i in range(9)]
    for i in (1, 4, 5, 6):
        files[i] = files[i][:40]
    first, second, third = (
        {f"{k}.png": files[3 * part + k] for k in range(3)} for part in range(3)
    )
    return [
        write_folder(tmp_path / "0", first),
        write_tar(tmp_path / "1.tar", second),
        write_folder(tmp_path / "2", third),
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out_and_named(broken, workers):
    sources = shards.open_sources(broken, skip_broken=True)
    batches = list(shards.Batches(sources, range(9), 2, workers))
    assert [int(image[0, 0, 0]) for batch in batches for image in batch] == [0, 2, 3, 7, 8]
    assert sorted(sources.skipped) == [1, 4, 5, 6]
    words = r"thinkback: .*1\.tar holds a broken image, 2\.png: [^;]*"
    assert re.fullmatch(words, sources.skipped[5])
    names = [sources.name(i).partition(" in ")[0] for i in (1, 4, 5, 6)]
    assert names == ["1.png", "1.png", "2.png", "0.png"]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_scores_keep_their_places_when_images_are_skipped(broken, tmp_path, world):
    """A block of which nothing is left, too: numbers 4 and 5."""
    shards.start(tmp_path / "scores", {"samples": 9, "block": 2})
    for rank in range(world):
        sources = shards.open_sources(broken, skip_broken=True)
        for number, indices in shards.blocks(9, rank, world, 2):
            arrays = shards.score_samples(level, sources, indices, BLANK, batch_size=2)
            shards.write_block(tmp_path / "scores", number, arrays)
    kept = shards.read_blocks(tmp_path / "scores")
    score = kept["score"]
    assert score.isnan().nonzero().flatten().tolist() == [1, 4, 5, 6]
    assert score[~score.isnan()].tolist() == [0, 2, 3, 7, 8]
    assert kept["rejected"].nonzero().flatten().tolist() == [3, 7, 8]
    assert kept["predicted"].tolist() == [0, -1, 2, 3, -1, -1, -1, 7, 8]


def level(batches):
    """A score for tests: the first pixel; without a batch an error, as of a detector."""
    first = torch.cat([batch[:, 0, 0, 0].double() for batch in batches])
    return {"score": first, "rejected": first >= 3, "predicted": first.long()}


BLANK = {"score": math.nan, "rejected": False, "predicted": -1}


def test_nothing_is_skipped_unless_asked(broken):
    with refused("broken image"):
        shards.score_samples(level, shards.open_sources(broken), range(9), BLANK, batch_size=2)


def test_what_is_no_source_says_so(tmp_path):
    with refused(r"no source .*absent", FileNotFoundError):
        shards.open_sources([tmp_path / "absent"])
    with refused("no image in"):
        shards.open_sources([tmp_path])
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with refused(r"holds pictures.npy, no array named images"):
        shards.open_sources([tmp_path / "x.npz"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refused(r"broken image, broken\.png"):
        shards.open_sources([tmp_path / "."])[0]


def test_no_source_at_all_says_so():
    with refused("no source is given"):
        shards.open_sources([])


def test_one_source_need_not_be_in_a_list(tmp_path):
    write_folder(tmp_path, {"a.png": png(noise())})
    assert len(shards.open_sources(str(tmp_path))) == len(shards.open_sources(tmp_path)) == 1


@pytest.mark.parametrize("suffix", ["npz", "tar"])
@pytest.mark.parametrize(
    "content", [b"", b"junk", b"junk" * 999, bytes(99), b"PK\3\4" + bytes(600)]
)
def test_junk_names_its_file(tmp_path, suffix, content):
    path = tmp_path / f"j.{suffix}"
    path.write_bytes(content)
    with refused(rf"j\.{suffix} cannot be read as .*; make it anew") as raised:
        shards.open_sources([path])
    assert raised.value.__cause__ is not None


def test_an_archive_that_is_cut_short_or_damaged_loses_no_image_silently(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": png(noise(seed=i)) for i in range(4)})
    whole = path.read_bytes()
    second = whole.index(b"1.png")
    end = whole.index(b"3.png") + 1024
    # also between two members
    damaged = [whole[:length] for length in (100, second, second + 512, end)]
    damaged.append(whole[:second] + b"x" + whole[second + 1 :])  # a header that is none
    for content in damaged:
        path.write_bytes(content)
        with refused(r"a\.tar (cannot be read|is damaged or cut short)"):
            shards.open_sources([path])


def test_a_compressed_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with refused("without compression"):
        shards.open_sources([tmp_path / "a.tar"])


def write_npy(path, array, version=(1, 0)):
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as member:
        np.lib.format.write_array(member, array, version=version)
    return path


@pytest.mark.filterwarnings("ignore:Stored array in format")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
def test_arrays_of_every_form_are_read(tmp_path, version, order):
    images = np.random.default_rng(0).integers(256, size=(5, 4, 6, 3), dtype=np.uint8)
    dataset = shards.open_sources([write_npy(tmp_path / "a.npz", order(images), version)])
    assert torch.equal(torch.stack(list(dataset)), torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.int64),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_say_what_they_are(tmp_path, images):
    found = rf"{images.dtype} \({images.shape[0]}, "
    with refused(rf"a\.npz must be uint8 \(N, H, W, 3\), got {found}.*store pixels from 0 to 255"):
        shards.open_sources([write_npy(tmp_path / "a.npz", images)])


def test_an_array_may_be_replaced_between_two_uses_but_not_in_one(tmp_path):
    old, new = noise(seed=1)[None], noise(seed=2)[None]
    path = write_npy(tmp_path / "a.npz", old)
    before = shards.open_sources([path])
    before[0].zero_()
    # what is given may be changed
    assert torch.equal(before[0].permute(1, 2, 0), torch.from_numpy(old[0]))
    write_npy(path, new)
    assert torch.equal(shards.open_sources([path])[0].permute(1, 2, 0), torch.from_numpy(new[0]))
    with refused(r"a\.npz was replaced while it was in use"):
        before[0]


def replaced(path, seed):
    """A source of one image, of the same name and length for every seed."""
    image = noise(seed=seed)
    if path.suffix == ".npz":
        write_npy(path, image[None])
    else:
        WRITERS["archive.tar" if path.suffix else "folder"](path, {"a.bmp": png(image, "BMP")})


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a"])
def test_scores_of_a_replaced_source_are_not_gone_on_with(tmp_path, name):
    paths = [tmp_path / name, tmp_path / "other.npz"]
    for path in paths:
        replaced(path, 0)

    def job():
        return {"samples": 2, "sources": shards.open_sources(paths).known_by()}

    shards.start(tmp_path / "scores", job())
    shards.start(tmp_path / "scores", job())  # the same again
    time.sleep(0.02)
    replaced(tmp_path / name, 1)
    change = f"the source {tmp_path / name} changed: it was .*"
    with refused(rf"scores of another job \({change}\); name another") as raised:
        shards.start(tmp_path / "scores", job())
    assert "other.npz" not in str(raised.value)


def test_the_order_of_sources_is_part_of_the_job(tmp_path):
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for seed, path in enumerate(paths):
        replaced(path, seed)
    shards.start(tmp_path / "scores", {"sources": shards.open_sources(paths).known_by()})
    with refused("another job"):
        shards.start(tmp_path / "scores", {"sources": shards.open_sources(paths[::-1]).known_by()})


def test_a_job_may_hold_tuples(tmp_path):
    for _ in range(2):
        shards.start(tmp_path, {"samples": 3, "mean": (0.5, 0.5)})
    assert os.listdir(tmp_path) == ["manifest.json"]


@pytest.fixture
def scored(tmp_path):
    """Ten scores in blocks of four."""
    shards.start(tmp_path, {"samples": 10, "block": 4})
    for number, indices in shards.blocks(10, 0, 1, 4):
        shards.write_block(tmp_path, number, {"score": torch.tensor(indices, dtype=torch.float64)})
    assert shards.read_blocks(tmp_path)["score"].tolist() == list(range(10))
    return tmp_path


def test_a_block_that_is_not_whole_is_found_and_made_again(scored):
    file = shards.block_file(scored, 1)
    whole = file.read_bytes()
    assert shards.block_done(scored, 1)
    for content in (b"", whole[:50], whole[:-1], whole[:70] + b"?" + whole[71:], b"junk" * 99):
        file.write_bytes(content)
        assert not shards.block_done(scored, 1)
        with refused(r"block-000001\.npz .*run the same command again, it makes"):
            shards.read_blocks(scored)
    file.unlink()
    assert not shards.block_done(scored, 1)


@pytest.mark.parametrize(
    "arrays", [{}, {"score": np.zeros(3)}, {"score": np.zeros(5)}, {"score": np.zeros((4, 1))}]
)
def test_a_block_of_another_length_is_found(scored, arrays):
    np.savez(shards.block_file(scored, 1), **arrays)
    assert not shards.block_done(scored, 1)
    with refused(r"block-000001\.npz is not whole, .*run the same command again"):
        shards.read_blocks(scored)


def test_blocks_hold_the_same_arrays(scored):
    np.savez(shards.block_file(scored, 1), score=np.zeros(4), alarm=np.zeros(4))
    with refused(r"block-000001\.npz holds \['alarm', 'score'\], and others \['score'\]"):
        shards.read_blocks(scored)


@pytest.mark.parametrize(("number", "length"), [(0, 3), (0, 5), (2, 4), (3, 4)])
def test_a_block_is_written_at_its_length_only(scored, number, length):
    with refused(rf"^thinkback: block {number} of .* samples, and its score \({length},\)"):
        shards.write_block(scored, number, {"score": torch.zeros(length)})


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"samples": 10, "block": 0}', '{"samples": "10", "block": 4}']
)
def test_a_damaged_manifest_names_itself(scored, content):
    (scored / "manifest.json").write_text(content, encoding="utf-8")
    with refused(r"manifest\.json is damaged, "):
        shards.read_blocks(scored)


def test_blocks_without_a_manifest_are_of_nobody_knows_what(scored):
    (scored / "manifest.json").unlink()
    with refused(r" holds no scores, it lacks manifest\.json", FileNotFoundError):
        shards.read_blocks(scored)
    with refused(r" holds block-000000\.npz but no manifest\.json"):
        shards.start(scored, {"samples": 10, "block": 4})


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_without_samples_is_an_error_at_once(size):
    with refused(rf"^thinkback: a block must have at least 1 sample, got {size}"):
        shards.blocks(10, 0, 1, size)


@pytest.mark.parametrize(("batch_size", "workers"), [(0, 0), (-1, 0), (1, -1)])
def test_a_batch_without_images_is_an_error_at_once(broken, batch_size, workers):
    with refused(r"^thinkback: (a batch|the number of workers) must "):
        shards.Batches(shards.open_sources(broken), range(9), batch_size, workers)


def test_fewer_blocks_than_processes_leave_some_without_work(broken):
    shares = [list(shards.blocks(9, rank, 4, 8)) for rank in range(4)]
    assert [len(share) for share in shares] == [1, 1, 0, 0]
    assert list(shards.Batches(shards.open_sources(broken), [], 4)) == []


@pytest.fixture
def environment(monkeypatch):
    """A function that sets variables of the processes of a job, and removes the others."""

    def given(variables):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_LOCALID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 1)),
        ({"SLURM_LOCALID": "3"}, (0, 1)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8)),
    ],
)
def test_the_place_of_a_process(environment, variables, place):
    environment(variables)
    assert shards.place() == place


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "3"}, "of RANK and WORLD_SIZE one is set"),
        ({"WORLD_SIZE": "3"}, "of RANK and WORLD_SIZE one is set"),
        ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK is 3 and WORLD_SIZE 3"),
        ({"RANK": "-1", "WORLD_SIZE": "3"}, "RANK must be a whole number, got '-1'"),
        ({"RANK": "", "WORLD_SIZE": "3"}, "RANK must be a whole number, got ''"),
    ],
)
def test_a_place_that_cannot_be_is_an_error(environment, variables, words):
    environment(variables)
    with refused(words):
        shards.place()


MODELS = """
import sys
from torch import nn
net = nn.Linear(3, 2).train()
class models:
    net = net
number = 3
def make(): return net
def nothing(): pass
def fails(): raise KeyError("the weights of epoch 9")
def leaves(): sys.exit(0)
def needs(path): return net
"""


@pytest.fixture
def mymodels(tmp_path, monkeypatch):
    (tmp_path / "mymodels.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "cut_short.py").write_text("def make(:", encoding="utf-8")
    (tmp_path / "lacking.py").write_text("import no_such_package", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)


@pytest.mark.parametrize("name", ["mymodels:make", "mymodels:net", "mymodels:models.net"])
def test_a_model_is_a_module_or_what_returns_one(mymodels, name):
    model = shards.load_model(name)
    assert isinstance(model, torch.nn.Linear)
    assert not model.training


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nomod:x", "No module named 'nomod'"),
        ("mymodels:nosuch", "module 'mymodels' has no attribute 'nosuch'"),
        ("mymodels:leaves", "SystemExit: 0"),
        ("cut_short:make", "SyntaxError: invalid syntax"),
        ("lacking:make", "No module named 'no_such_package'"),
    ],
)
def test_a_model_that_cannot_be_made_names_itself_and_the_cause(mymodels, name, cause):
    with refused(rf"^thinkback: model '{name}' cannot be made, .*{cause}") as raised:
        shards.load_model(name)
    assert raised.value.__cause__ is not None
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "kind"), [("mymodels:number", "int"), ("mymodels:nothing", "NoneType")]
)
def test_what_is_no_model_says_what_it_is(mymodels, name, kind):
    with refused(rf"^thinkback: {name} returned {kind}, not a torch\.nn\.Module"):
        shards.load_model(name)


def test_weights_that_are_cut_short_name_their_file(job, tmp_path):
    whole = (job / "weights.safetensors").read_bytes()
    path = tmp_path / "w.safetensors"
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with refused(r"w\.safetensors is cut short or no safetensors file"):
            shards.load_model(str(path))
    save_file({"x": torch.zeros(2)}, path, {"config": '{"depth": 10}'})
    with refused(r"w\.safetensors holds no weights of the network that it names") as raised:
        shards.load_model(str(path))
    assert "\n" not in str(raised.value)
    with refused(r"^thinkback: no weights at .*absent", FileNotFoundError):
        shards.load_model(str(tmp_path / "absent.safetensors"))


def test_an_error_of_the_function_keeps_its_traceback(mymodels):
    with pytest.raises(KeyError, match="the weights of epoch 9"):
        shards.load_model("mymodels:fails")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'path'"):
        shards.load_model("mymodels:needs")


def test_models_have_names():
    assert isinstance(shards.load_model("thinkback_utils.models:WideResNet"), WideResNet)
    wrong = {"nonsense": "neither", ".relative:make": "neither", "os:getcwd": "returned str"}
    for name, problem in wrong.items():
        with refused(problem):
            shards.load_model(name)
    assert set(METHODS) >= {"thinkback", "energy"}
