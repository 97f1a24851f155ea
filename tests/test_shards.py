"""Many processes see what one sees: the same Fisher, the same scores, nothing lost or repeated after a kill."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from thinkback_utils import fit, score, shards
from thinkback_utils.detector import OODDetector
from thinkback_utils.methods import METHODS
from thinkback_utils.models import WideResNet

pytestmark = pytest.mark.filterwarnings("ignore:thinkback. the model is hardly sure")  # it is untrained
SIZES = (37, 23, 5)  # uneven: no number of processes divides their sum


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Three arrays of images and a small network."""
    folder = tmp_path_factory.mktemp("job")
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        np.savez(folder / f"part{i}.npz", images=rng.integers(256, size=(size, 8, 8, 3), dtype=np.uint8))
    torch.manual_seed(0)
    net = WideResNet(10, 1, 3).eval()
    with torch.no_grad():  # every class gets some images, so that nothing warns
        net.fc.bias -= net(torch.rand(50, 3, 8, 8)).mean(0)
    net.save(folder / "weights.safetensors")
    return folder


def sources(job):
    return [str(job / f"part{i}.npz") for i in range(len(SIZES))]


def command(module, job, *arguments):
    common = ["--model", str(job / "weights.safetensors"), "--batch-size", "4", "--device", "cpu"]
    return [module, *sources(job), *common, *map(str, arguments)]


def torchrun(count, arguments):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    subprocess.run([*run, *arguments], check=True, capture_output=True, env=environment)


def one_process(job, method):
    path = job / f"{method}-alone.safetensors"
    fit.main(command("", job, "--method", method, "--out", path)[1:])
    return path


@pytest.mark.parametrize(("count", "method"), [(2, "thinkback_full"), (4, "thinkback")])
def test_fit_of_many_processes_is_that_of_one(job, tmp_path, count, method):
    out = tmp_path / "detector.safetensors"
    torchrun(count, command("thinkback_utils.fit", job, "--method", method, "--damping", 0.1, "--out", out))
    fit.main(command("", job, "--method", method, "--damping", 0.1, "--out", tmp_path / "alone.safetensors")[1:])
    images = torch.cat([torch.from_numpy(np.load(path)["images"]) for path in sources(job)]).permute(0, 3, 1, 2)
    model = WideResNet.load(job / "weights.safetensors")
    scores = [OODDetector.load(path, model).score(images) for path in (out, tmp_path / "alone.safetensors")]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-12, atol=0)  # roots may differ by a sign


@pytest.mark.parametrize("count", [2, 4])
def test_scores_of_many_processes_are_those_of_one(job, tmp_path, count):
    detector = one_process(job, "thinkback")
    together, alone = (
        command("thinkback_utils.score", job, "--detector", detector, "--block", 9, "--out", tmp_path / name)
        for name in ("together", "alone")
    )
    ranks = [
        os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"} for rank in range(count)
    ]
    processes = [subprocess.Popen([sys.executable, "-m", *together], env=environment) for environment in ranks]
    assert [process.wait() for process in processes] == [0] * count
    score.main(alone[1:])
    many, one = (shards.read_blocks(tmp_path / name)["score"] for name in ("together", "alone"))
    torch.testing.assert_close(many, one, rtol=1e-12, atol=0)
    images = torch.cat([torch.from_numpy(np.load(path)["images"]) for path in sources(job)]).permute(0, 3, 1, 2)
    direct = OODDetector.load(detector, WideResNet.load(job / "weights.safetensors")).score(images)
    torch.testing.assert_close(one, direct, rtol=1e-4, atol=0)  # in other batches, in float32


def test_a_killed_process_loses_and_repeats_nothing(job, tmp_path):
    detector = one_process(job, "thinkback")
    arguments = command("thinkback_utils.score", job, "--detector", detector, "--block", 1, "--out", tmp_path)
    process = subprocess.Popen([sys.executable, "-m", *arguments], env=os.environ | {"RANK": "0", "WORLD_SIZE": "2"})
    while not list(tmp_path.glob("block-*.npz")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("block-*.npz")}
    assert 0 < len(before) < sum(SIZES) / 2, "it was not killed half-way"
    with pytest.raises(FileNotFoundError, match="run the same command again"):
        shards.read_blocks(tmp_path)
    score.main(arguments[1:])
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished block was written again"
    assert len(shards.read_blocks(tmp_path)["score"]) == sum(SIZES)
    assert not list(tmp_path.glob(".*.partial")) or len(list(tmp_path.glob(".*.partial"))) == 1  # of the killed one


def test_another_job_in_the_same_folder_is_refused(job, tmp_path):
    detector = one_process(job, "thinkback")
    arguments = command("", job, "--detector", detector, "--out", tmp_path)[1:]
    score.main(arguments)
    with pytest.raises(ValueError, match=r"another job.*block"):
        score.main([*arguments, "--block", "7"])


@pytest.mark.parametrize("world", [1, 2, 3, 7, 100])
def test_blocks_cover_every_sample_once(world):
    seen = [i for rank in range(world) for _, block in shards.blocks(65, rank, world, 4) for i in block]
    assert sorted(seen) == list(range(65))


def test_sources_of_every_kind_hold_the_same_images(tmp_path):
    images = np.random.default_rng(1).integers(256, size=(4, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for i, image in enumerate(images):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png")
            (tmp_path / "folder" / ("deep" if i > 1 else ".") / f"z{i}.png").write_bytes(content.getvalue())
            member = tarfile.TarInfo(f"{i}.PNG")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    dataset = shards.open_sources([tmp_path / "a.npz", tmp_path / "b.tar"])
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert torch.equal(torch.stack([dataset[i] for i in range(8)]), torch.cat([expected, expected]))
    folder = shards.open_sources([tmp_path / "folder"], side=4)
    assert [shards.ImageFiles(tmp_path / "folder").names[i] for i in (0, 2)] == ["deep/z2.png", "z0.png"]
    assert folder[0].shape == (3, 4, 4)


def test_what_is_no_source_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no source .*absent"):
        shards.open_sources([tmp_path / "absent"])
    with pytest.raises(ValueError, match="no image in"):
        shards.open_sources([tmp_path])
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds pictures.npy, no array named images"):
        shards.open_sources([tmp_path / "x.npz"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken image, broken\.png"):
        shards.open_sources([tmp_path / "."])[0]


def test_models_have_names():
    assert isinstance(shards.load_model("thinkback_utils.models:WideResNet"), WideResNet)
    for name, problem in (("nonsense", "neither"), ("os:getcwd", "returned str")):
        with pytest.raises(ValueError, match=problem):
            shards.load_model(name)
    assert set(METHODS) >= {"thinkback", "energy"}
