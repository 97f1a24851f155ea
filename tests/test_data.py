"""Image sets: the cache, every download against a server on this machine, the embedded sets."""

import ast
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from thinkback_utils import data
from thinkback_utils.data import (
    ARCHIVES,
    EMBEDDED_SETS,
    PAPER_SETS,
    STAND_INS,
    TITLES,
    UnavailableError,
    load,
)
from thinkback_utils.files import locking

RNG = np.random.default_rng(0)


def md5(content):
    return hashlib.md5(content).hexdigest()


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def pixels(count, height=32, width=32):
    return RNG.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save(path, **arrays):
    np.savez(path, **arrays)


@dataclass
class Server:
    """What the loopback server hands out, how it behaves, and the Range headers it was sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: int | None = None  # bytes of the body after which it hangs up, once
    pause: float = 0.0  # seconds in the middle of the body
    seen: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server(monkeypatch):
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers["Range"]
            body = state.files.get(self.path.partition("?")[0].lstrip("/"))
            state.seen.append(wanted)
            if body is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            stop = len(body) if state.break_after is None else start + state.break_after
            state.break_after = None
            half = (start + stop) // 2
            self.wfile.write(body[start:half])
            time.sleep(state.pause)
            self.wfile.write(body[half:stop])

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    state.address = f"http://127.0.0.1:{listener.server_port}"
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join(timeout=5)


def offer(name, body, size, server, monkeypatch, checksum=None):
    """Let the server hand out that archive of a set; returns the archive's file name."""
    archive = ARCHIVES[name]
    server.files[archive.file] = body
    url = f"{server.address}/{archive.file}?dl=1"
    monkeypatch.setitem(
        ARCHIVES, name, replace(archive, url=url, md5=checksum or md5(body), size=size)
    )
    return archive.file


def isun(count=12):
    images = pixels(count)
    return images, tar_gz(
        {f"iSUN/iSUN_patches/{i:02d}.png": encode(image) for i, image in enumerate(images)}
    )


def stored(folder):
    return {path.name for path in folder.iterdir()}


def test_load_reads_the_cache(tmp_path, monkeypatch):
    images, labels = pixels(5), np.array([0, 1, 2, 0, 1], np.uint8)
    save(
        tmp_path / "cifar10-train.npz",
        images=images,
        labels=labels,
        classes=np.array(["a", "b", "c"]),
    )
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    loaded = load("cifar10", split="train")
    assert loaded.images.shape == (5, 3, 32, 32)
    assert loaded.images.dtype == torch.uint8
    assert torch.equal(loaded.images.permute(0, 2, 3, 1), torch.from_numpy(images))
    assert loaded.labels is not None
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == labels.tolist()
    assert (loaded.classes, loaded.name, len(loaded)) == (("a", "b", "c"), "cifar10", 5)


def test_a_set_without_labels_has_none(tmp_path):
    save(tmp_path / "sun_resize.npz", images=pixels(3))
    loaded = load("sun_resize", root=tmp_path)
    assert loaded.labels is None
    assert loaded.classes == ()


def test_the_file_of_a_split_comes_before_the_bare_file_which_is_a_test_split(tmp_path):
    save(tmp_path / "cifar100.npz", images=pixels(4))
    assert len(load("cifar100", root=tmp_path)) == 4
    save(tmp_path / "cifar100-test.npz", images=pixels(2))
    assert len(load("cifar100", root=tmp_path)) == 2
    assert data._find("cifar100", "train", tmp_path) is None


def test_any_file_in_the_data_root_loads_by_its_name(tmp_path):
    save(tmp_path / "my_photos.npz", images=pixels(2))
    assert load("my_photos", root=tmp_path).name == "my_photos"


@pytest.mark.parametrize(
    "arrays",
    [
        {"pictures": np.zeros((2, 32, 32, 3), np.uint8)},
        {"images": np.zeros((2, 32, 32, 3), np.float32)},
        {"images": np.zeros((2, 3, 32, 32), np.uint8)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(3, np.int64)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(2)},
        {"images": np.array([None, None])},
    ],
)
def test_a_file_of_another_form_is_an_error_that_names_it(tmp_path, arrays):
    save(tmp_path / "svhn.npz", **arrays)
    with refused(r"svhn\.npz"):
        load("svhn", root=tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "svhn.npz").write_bytes(content)
    with refused(r"svhn\.npz cannot be read"):
        load("svhn", root=tmp_path)


def test_names(tmp_path):
    assert {*PAPER_SETS, *STAND_INS, *EMBEDDED_SETS, "cifar10", "cifar100", "digits"} == set(TITLES)
    assert set(PAPER_SETS) < set(ARCHIVES)
    with refused(r"^thinkback: unknown set 'mnist'; known sets: cifar10, .*letters$"):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("name", "split"), [("svhn", "train"), ("letters", "train"), ("cifar10", "val")]
)
def test_a_split_that_a_set_lacks_is_an_error_that_names_it(tmp_path, name, split):
    save(tmp_path / "svhn.npz", images=pixels(1))
    with refused(rf"^thinkback: set '{name}' has no split '{split}'; it has .*test$"):
        load(name, split=split, root=tmp_path)


def test_a_stand_in_must_lie_in_the_data_root(tmp_path):
    with refused(
        r"'textures10'.*no address.*Put textures10\.npz in that folder", UnavailableError
    ) as caught:
        load("textures10", root=tmp_path)
    assert isinstance(caught.value, FileNotFoundError)


def test_offline_the_error_says_what_was_tried_and_what_to_do(tmp_path, server, monkeypatch):
    monkeypatch.setitem(
        ARCHIVES, "isun", replace(ARCHIVES["isun"], url="http://127.0.0.1:9/iSUN.tar.gz")
    )
    with pytest.raises(UnavailableError) as caught:
        load("isun", root=tmp_path / "new", progress=False)
    message = str(caught.value)
    for part in (
        "thinkback: set 'isun'",
        "isun.npz",
        "http://127.0.0.1:9/iSUN.tar.gz",
        "THINKBACK_DATA",
    ):
        assert part in message
    assert f"{tmp_path / 'new'}" in message
    assert "Put iSUN.tar.gz" in message
    assert "kept" not in message


def test_an_address_that_is_gone_leaves_nothing(tmp_path, server, monkeypatch):
    server.files.pop(offer("isun", isun()[1], 12, server, monkeypatch))
    with refused("404", UnavailableError):
        load("isun", root=tmp_path, progress=False)
    assert stored(tmp_path) == set()


def test_a_wrong_checksum_deletes_the_download(tmp_path, server, monkeypatch):
    body = isun()[1]
    offer("isun", body[:-1] + b"?", 12, server, monkeypatch, checksum=md5(body))
    with refused(rf"'isun'.*md5 .*, not {md5(body)}; it was deleted", UnavailableError):
        load("isun", root=tmp_path, progress=False)
    assert stored(tmp_path) == set()


def together(count, work):
    """Run the same work in several threads, which meet at locks; the first error comes back."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()


def test_of_many_that_load_an_absent_set_one_downloads_it(tmp_path, server, monkeypatch):
    images, body = isun()
    offer("isun", body, 12, server, monkeypatch)
    server.pause = 0.3

    def work():
        loaded = load("isun", root=tmp_path / "new", progress=False)
        assert np.array_equal(loaded.images.permute(0, 2, 3, 1), images)

    together(4, work)
    assert server.seen == [None]
    assert stored(tmp_path / "new") == {"isun.npz"}


def test_of_many_that_go_on_with_a_broken_download_one_appends(tmp_path, server, monkeypatch):
    body = isun()[1]
    part = tmp_path / f"{offer('isun', body, 12, server, monkeypatch)}.part"
    part.write_bytes(body[:1000])
    server.pause = 0.3
    together(3, lambda: load("isun", root=tmp_path, progress=False))
    assert server.seen == ["bytes=1000-"]
    assert stored(tmp_path) == {"isun.npz"}


def test_another_set_need_not_wait(tmp_path, server, monkeypatch):
    offer("isun", isun()[1], 12, server, monkeypatch)
    with locking(tmp_path / "svhn"):
        assert len(load("isun", root=tmp_path, progress=False)) == 12


def test_what_another_process_makes_meanwhile_is_taken(tmp_path, server, monkeypatch):
    offer("isun", isun()[1], 12, server, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        with locking(tmp_path / "isun"):
            waiting = pool.submit(load, "isun", root=tmp_path, progress=False)
            time.sleep(0.2)
            save(tmp_path / "isun.npz", images=pixels(2))
        assert len(waiting.result()) == 2
    assert server.seen == []


def test_a_killed_process_does_not_keep_a_set_from_the_others(tmp_path, server, monkeypatch):
    offer("isun", isun()[1], 12, server, monkeypatch)
    lock = str(tmp_path / ".isun.lock")
    code = f"import os, filelock; filelock.FileLock({lock!r}).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode != 0
    assert stored(tmp_path) == {".isun.lock"}
    assert len(load("isun", root=tmp_path, progress=False)) == 12
    assert stored(tmp_path) == {"isun.npz"}


def test_a_set_that_is_there_needs_no_lock(tmp_path, monkeypatch):
    save(tmp_path / "isun.npz", images=pixels(2))

    def refuse(path):
        raise AssertionError(f"{path} was locked")

    monkeypatch.setattr(data, "locking", refuse)
    assert len(load("isun", root=tmp_path)) == 2


def test_a_data_root_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with refused(
        r"^thinkback: set 'isun'.*nothing can be put there.*THINKBACK_DATA", UnavailableError
    ):
        load("isun", root=tmp_path / "file", progress=False)


def test_a_full_data_root_says_so(tmp_path, monkeypatch):
    def full(kind, root):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(ARCHIVES, "svhn", replace(ARCHIVES["svhn"], read=full))
    with refused(
        r"^thinkback: set 'svhn'.*could not download and unpack.*No space", UnavailableError
    ):
        load("svhn", root=tmp_path, progress=False)
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_in_the_next_call(tmp_path, server, monkeypatch, ranges):
    images, body = isun()
    offer("isun", body, 12, server, monkeypatch)
    server.break_after, server.ranges = 4000, ranges
    with refused(rf"broke after 4,000 of {len(body):,} bytes.*next call", UnavailableError):
        load("isun", root=tmp_path, progress=False)
    assert stored(tmp_path) == {"iSUN.tar.gz.part"}
    loaded = load("isun", root=tmp_path, progress=False)
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1), images)
    assert server.seen == [None, "bytes=4000-"]
    assert stored(tmp_path) == {"isun.npz"}


def test_a_part_that_is_already_whole_is_taken(tmp_path, server, monkeypatch):
    body = isun()[1]
    part = tmp_path / f"{offer('isun', body, 12, server, monkeypatch)}.part"
    part.write_bytes(body)
    assert len(load("isun", root=tmp_path, progress=False)) == 12


def test_an_archive_laid_in_the_folder_is_used_and_stays(tmp_path, monkeypatch):
    body = isun()[1]
    monkeypatch.setitem(
        ARCHIVES,
        "isun",
        replace(ARCHIVES["isun"], url="http://127.0.0.1:9", md5=md5(body), size=12),
    )
    (tmp_path / "iSUN.tar.gz").write_bytes(body)
    assert len(load("isun", root=tmp_path)) == 12
    assert stored(tmp_path) == {"iSUN.tar.gz", "isun.npz"}
    (tmp_path / "isun.npz").unlink()
    (tmp_path / "iSUN.tar.gz").write_bytes(b"another file")
    with refused(r"iSUN\.tar\.gz there has md5", UnavailableError):
        load("isun", root=tmp_path)
    assert stored(tmp_path) == {"iSUN.tar.gz"}


@pytest.mark.parametrize(
    "name", ["../iSUN_patches/a.png", "/iSUN_patches/a.png", "..\\iSUN_patches\\a.png"]
)
def test_a_path_that_leaves_the_archive_writes_nothing(tmp_path, server, monkeypatch, name):
    root = tmp_path / "root"
    image = encode(pixels(1)[0])
    offer("isun", tar_gz({name: image, "iSUN/iSUN_patches/b.png": image}), 1, server, monkeypatch)
    with suppress(ValueError):  # two images, where the path is read
        load("isun", root=root, progress=False)
    assert stored(tmp_path) == {"root"}
    assert stored(root) <= {"iSUN.tar.gz", "isun.npz"}


def test_links_in_an_archive_are_not_followed(tmp_path, server, monkeypatch):
    (tmp_path / "secret.png").write_bytes(encode(pixels(1)[0]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("iSUN_patches/link.png")
            link.type, link.linkname = kind, "../secret.png"
            tar.addfile(link)
    offer("isun", buffer.getvalue(), 1, server, monkeypatch)
    with refused("holds 0 test images of isun, not 1"):
        load("isun", root=tmp_path, progress=False)


def test_a_failing_write_leaves_no_cache_file(tmp_path, server, monkeypatch):
    offer("isun", isun()[1], 12, server, monkeypatch)

    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with refused("no space left", OSError):
            load("isun", root=tmp_path, progress=False)
    assert stored(tmp_path) == {"iSUN.tar.gz"}
    assert len(load("isun", root=tmp_path, progress=False)) == 12
    assert len(server.seen) == 1


def test_lsun_crop_loses_its_border(tmp_path, server, monkeypatch):
    images = pixels(3, 36, 36)
    files = {f"LSUN/test/{i}.png": encode(image) for i, image in enumerate(images)}
    offer(
        "lsun_crop",
        tar_gz({"LSUN/._0.png": b"?", "LSUN/test/._0.png": b"?", **files}),
        3,
        server,
        monkeypatch,
    )
    loaded = load("lsun_crop", root=tmp_path, progress=False)
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1), images[:, 2:34, 2:34])
    assert loaded.labels is None


def test_lsun_resize_comes_in_the_order_of_the_names(tmp_path, server, monkeypatch, capsys):
    images = pixels(3)
    files = {f"LSUN_resize/LSUN_resize/{i}.png": encode(images[i]) for i in (2, 0, 1)}
    offer("lsun_resize", tar_gz(files), 3, server, monkeypatch)
    assert np.array_equal(load("lsun_resize", root=tmp_path).images.permute(0, 2, 3, 1), images)
    assert "LSUN_resize.tar.gz: 100%" in capsys.readouterr().err


def test_another_image_size_is_an_error_that_names_the_file(tmp_path, server, monkeypatch):
    files = {"LSUN_resize/LSUN_resize/odd.png": encode(pixels(1, 36, 36)[0])}
    offer("lsun_resize", tar_gz(files), 1, server, monkeypatch)
    with refused(r"odd\.png .* is 36x36 pixels, not 32x32"):
        load("lsun_resize", root=tmp_path, progress=False)


def test_photos_of_16_bits_are_scaled(tmp_path, server, monkeypatch):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    offer("isun", tar_gz({"iSUN/iSUN_patches/0.png": encode(ramp)}), 1, server, monkeypatch)
    loaded = load("isun", root=tmp_path, progress=False)
    assert (loaded.images[0].numpy() == np.round(ramp / 257)).all()


def test_a_broken_photo_names_itself_and_its_archive(tmp_path, server, monkeypatch):
    offer(
        "isun",
        tar_gz({"iSUN/iSUN_patches/odd.png": encode(pixels(1)[0])[:90]}),
        1,
        server,
        monkeypatch,
    )
    with refused(r"iSUN\.tar\.gz holds a broken image, iSUN/iSUN_patches/odd\.png: "):
        load("isun", root=tmp_path, progress=False)


def test_a_wrong_number_of_images_is_an_error(tmp_path, server, monkeypatch):
    offer("isun", tar_gz({"iSUN/other/0.png": encode(pixels(1)[0])}), 12, server, monkeypatch)
    with refused("holds 0 test images of isun, not 12"):
        load("isun", root=tmp_path, progress=False)
    assert "isun.npz" not in stored(tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, server, monkeypatch, name):
    kind = getattr(data.import_torchvision().datasets, ARCHIVES[name].dataset)
    key, names = (
        ("labels", ["plane", "car"]) if name == "cifar10" else ("fine_labels", ["apple", "bee"])
    )
    images = pixels(6)
    flat = images.transpose(0, 3, 1, 2).reshape(6, -1)
    labels = [0, 1, 1, 0, 1, 0]
    parts = {"train": slice(0, 4), "test": slice(4, 6)}
    batches = {
        part: pickle.dumps({"data": flat[rows], key: labels[rows]}, protocol=2)
        for part, rows in parts.items()
    }
    meta = pickle.dumps({kind.meta["key"]: names})
    files = {**batches, kind.meta["filename"]: meta}
    body = tar_gz({f"{kind.base_folder}/{file}": content for file, content in files.items()})
    server.files[kind.filename] = body
    monkeypatch.setattr(kind, "url", f"{server.address}/{kind.filename}")
    monkeypatch.setattr(kind, "tgz_md5", md5(body))
    monkeypatch.setattr(kind, "train_list", [["train", md5(batches["train"])]])
    monkeypatch.setattr(kind, "test_list", [["test", md5(batches["test"])]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(meta)})
    monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], size=2))
    for split, rows in parts.items():
        loaded = load(name, split=split, root=tmp_path, progress=False)
        assert np.array_equal(loaded.images.permute(0, 2, 3, 1), images[rows])
        assert loaded.labels is not None
        assert loaded.labels.tolist() == labels[rows]
        assert loaded.classes == tuple(names)
        assert stored(tmp_path) == {f"{name}-train.npz", f"{name}-test.npz"}
        server.files.clear()  # the other split came with the first


@pytest.mark.parametrize("served", ["nothing", "another file", "half of it"])
def test_torchvision_downloads_into_a_folder_that_goes(tmp_path, server, monkeypatch, served):
    kind = data.import_torchvision().datasets.SVHN
    entry = [f"{server.address}/test_32x32.mat", "test_32x32.mat", md5(b"the file")]
    monkeypatch.setattr(kind, "split_list", {"test": entry})
    if served != "nothing":
        server.files["test_32x32.mat"] = served.encode()
    if served == "half of it":
        server.break_after = 4
    with pytest.raises(UnavailableError) as caught:
        load("svhn", root=tmp_path, progress=False)
    for part in ("thinkback: set 'svhn' (test)", "svhn.npz", "THINKBACK_DATA"):
        assert part in str(caught.value)
    assert "Put test_32x32.mat from http://ufldl.stanford.edu/housenumbers/" in str(caught.value)
    assert stored(tmp_path) == set()


def test_without_torchvision_the_error_names_set_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with refused(
        r"^thinkback: set 'svhn' needs torchvision: pip install .*\[data\]'$", ImportError
    ):
        load("svhn", root=tmp_path)


def test_svhn(tmp_path, server, monkeypatch):
    from scipy.io import savemat

    kind = data.import_torchvision().datasets.SVHN
    images, buffer = pixels(3), io.BytesIO()
    savemat(buffer, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]], np.uint8)})
    server.files["test_32x32.mat"] = body = buffer.getvalue()
    entry = [f"{server.address}/test_32x32.mat", "test_32x32.mat", md5(body)]
    monkeypatch.setattr(kind, "split_list", {"test": entry})
    monkeypatch.setitem(ARCHIVES, "svhn", replace(ARCHIVES["svhn"], size=3))
    loaded = load("svhn", root=tmp_path, progress=False)
    assert np.array_equal(loaded.images.permute(0, 2, 3, 1), images)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 9]
    assert stored(tmp_path) == {"svhn.npz"}
    (tmp_path / "svhn.npz").unlink()
    (tmp_path / "test_32x32.mat").write_bytes(server.files.pop("test_32x32.mat"))  # laid by hand
    assert len(load("svhn", root=tmp_path, progress=False)) == 3
    assert stored(tmp_path) == {"svhn.npz", "test_32x32.mat"}


def test_textures_are_shrunk_and_cropped(tmp_path, server, monkeypatch):
    kind = data.import_torchvision().datasets.DTD
    flat = np.full((64, 128, 3), 200, np.uint8)
    flat[:, :32] = flat[:, -32:] = 0  # what the centre crop of the wide image leaves out
    files = {}
    for part, name in (("train", "0"), ("val", "1"), ("test", "2")):
        shape = flat if part == "train" else pixels(1, 40, 32 + 8 * int(name))[0]
        for label in ("banded", "woven"):
            files[f"dtd/images/{label}/{label}_{name}.jpg"] = encode(shape, "JPEG")
        files[f"dtd/labels/{part}1.txt"] = (
            f"banded/banded_{name}.jpg\nwoven/woven_{name}.jpg\n".encode()
        )
    server.files["dtd-r1.0.1.tar.gz"] = body = tar_gz(files)
    monkeypatch.setattr(kind, "_URL", f"{server.address}/dtd-r1.0.1.tar.gz")
    monkeypatch.setattr(kind, "_MD5", md5(body))
    monkeypatch.setitem(ARCHIVES, "textures", replace(ARCHIVES["textures"], size=6))
    loaded = load("textures", root=tmp_path, progress=False)
    assert loaded.images.shape == (6, 3, 32, 32)
    assert loaded.images[0, :, :, 2:-2].min() > 190
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert loaded.classes == ("banded", "woven")
    assert stored(tmp_path) == {"textures.npz"}


def test_the_addresses_are_those_of_the_original_archives():
    datasets = data.import_torchvision().datasets
    assert datasets.SVHN.split_list["test"][1:] == [
        ARCHIVES["svhn"].file,
        "eb5a983be6a315427106f1b164d9cef3",
    ]
    assert datasets.DTD._MD5 == "fff73e5086ae6bdbea199a49dfb8a4c1"
    for name in ("cifar10", "cifar100"):
        assert getattr(datasets, ARCHIVES[name].dataset).filename == ARCHIVES[name].file
    assert ARCHIVES["lsun_crop"].url == "https://www.dropbox.com/s/fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1"
    assert [ARCHIVES[name].size for name in PAPER_SETS] == [5_640, 26_032, 10_000, 10_000, 8_925]


def test_torchvision_is_imported_only_when_needed_and_only_once():
    tree = ast.parse(Path(data.__file__).read_text(encoding="utf-8"))
    imports = [
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not any(
        package in line
        for line in imports
        for package in ("torchvision", "sklearn", "skimage", "matplotlib")
    )
    assert data.import_torchvision() is data.import_torchvision()


def test_another_error_of_torchvision_gets_through(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('another reason')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="another reason"):
        data.import_torchvision()


@pytest.mark.parametrize("name", EMBEDDED_SETS)
def test_embedded_sets(name, tmp_path):
    if name == "embedded_textures":
        pytest.importorskip("skimage")
    loaded, again = load(name, root=tmp_path), load(name)
    assert loaded.images.shape[1:] == (3, 32, 32)
    assert loaded.images.dtype == torch.uint8
    assert 500 <= len(loaded) <= 600
    assert torch.equal(loaded.images, again.images)
    assert loaded.labels is not None
    assert loaded.labels.dtype == torch.int64
    assert set(loaded.labels.tolist()) == set(range(len(loaded.classes)))
    assert len(loaded.images.unique(dim=0)) > 0.9 * len(loaded)
    assert stored(tmp_path) == set()


def test_digits_are_split_once_and_for_all():
    train, test = load("digits", split="train"), load("digits")
    assert (len(train), len(test)) == (1_347, 450)
    assert test.classes == tuple("0123456789")
    assert test.labels is not None
    assert test.labels.bincount().min() >= 30
    both = torch.cat([train.images, test.images])
    assert len(both.unique(dim=0)) == 1_797
    assert torch.equal(both[:, 0], both[:, 2])
    assert (both.min().item(), both.max().item()) == (0, 255)


def test_letters_look_like_digits():
    letters, digits = load("letters"), load("digits")
    assert not set(letters.classes) & set("BDGIJOQSZ")
    assert abs(letters.images.float().mean() - digits.images.float().mean()) < 25
    assert (letters.images.amax(dim=(1, 2, 3)) > 230).all()


def test_photo_crops_keep_the_pixels_of_the_photo():
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("flower.jpg")
    crop = load("photo_crops").images[250].permute(1, 2, 0).numpy()
    corners = np.argwhere((photo == crop[0, 0]).all(axis=-1))
    assert any(np.array_equal(photo[y : y + 32, x : x + 32], crop) for y, x in corners)


def test_without_scikit_image_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with refused(
        r"^thinkback: set 'embedded_textures'.*pip install 'thinkback-utils\[embedded\]'$",
        ImportError,
    ):
        load("embedded_textures")


@pytest.mark.parametrize("name", ["cifar10", "svhn", *STAND_INS, "cifar100"])
def test_real_sets(name):
    if not os.environ.get("THINKBACK_DATA") or data._find(name, "test", data.data_root()) is None:
        pytest.skip(f"THINKBACK_DATA names no folder that holds {name}")
    loaded = load(name)
    assert loaded.images.shape[1:] == (3, 32, 32)
    assert len(loaded) >= 1_000
    if loaded.labels is not None:
        assert loaded.labels.dtype == torch.int64
    if name == "cifar10":
        assert loaded.labels is not None
        assert loaded.labels.bincount().tolist() == [1_000] * 10
        mean = loaded.images.double().mean(dim=(0, 2, 3)) / 255
        assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
