"""Image sets: the cache, every download against a server on this machine, the embedded sets."""

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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from scipy.io import savemat
from sklearn.datasets import load_sample_image

from thinkback_utils import data
from thinkback_utils.data import ARCHIVES, EMBEDDED_SETS, PAPER_SETS, STAND_INS, TITLES, load
from thinkback_utils.data import UnavailableError as Unavailable
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
    return RNG.integers(256, size=(count, height, width, 3), dtype=np.uint8)


@dataclass
class Server:
    """What the loopback server hands out, how it behaves, and the Range headers it was sent."""

    patch: pytest.MonkeyPatch
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: int | None = None  # bytes of the body after which it hangs up, once
    pause: float = 0.0  # seconds in the middle of the body
    seen: list[str | None] = field(default_factory=list)
    address: str = ""

    def offer(self, name, content, size, md5_of=None):
        """Hand out the archive of a set, made of these files; of md5_of is the md5 announced."""
        archive, body = ARCHIVES[name], content if isinstance(content, bytes) else tar_gz(content)
        self.files[archive.file] = body
        url, checksum = f"{self.address}/{archive.file}?dl=1", md5(md5_of or body)
        self.patch.setitem(ARCHIVES, name, replace(archive, url=url, md5=checksum, size=size))


@pytest.fixture
def server(monkeypatch):
    state = Server(monkeypatch)

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
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{listener.server_port}"
    yield state
    listener.shutdown()
    listener.server_close()
    thread.join(timeout=5)


@pytest.fixture
def isun(server):
    """Twelve images, their archive, which the server offers."""
    images = pixels(12)
    body = tar_gz({f"iSUN/iSUN_patches/{i:02d}.png": encode(x) for i, x in enumerate(images)})
    server.offer("isun", body, 12)
    return images, body


@pytest.fixture
def fetch(tmp_path):
    """A function that loads a set, in a data root of its own."""
    return partial(load, root=tmp_path, progress=False)


def shows(loaded, images):
    """Whether a set has these images, which are given channels last."""
    return np.array_equal(loaded.images.permute(0, 2, 3, 1), images)


def stored(folder):
    return {path.name for path in folder.iterdir()}


def test_load_reads_the_cache(tmp_path, monkeypatch):
    images, labels = pixels(5), np.array([0, 1, 2, 0, 1], np.uint8)
    np.savez(tmp_path / "cifar10-train.npz", images=images, labels=labels, classes=list("abc"))
    monkeypatch.setenv("THINKBACK_DATA", str(tmp_path))
    loaded = load("cifar10", split="train")
    assert loaded.images.dtype == torch.uint8
    assert shows(loaded, images)
    assert loaded.labels.dtype == torch.int64
    assert loaded.labels.tolist() == labels.tolist()
    assert (loaded.classes, loaded.name, len(loaded)) == (("a", "b", "c"), "cifar10", 5)


def test_a_set_without_labels_has_none(tmp_path):
    np.savez(tmp_path / "sun_resize.npz", images=pixels(3))
    loaded = load("sun_resize", root=tmp_path)
    assert loaded.labels is None
    assert loaded.classes == ()


def test_the_file_of_a_split_comes_before_the_bare_file_which_is_a_test_split(tmp_path):
    np.savez(tmp_path / "cifar100.npz", images=pixels(4))
    assert len(load("cifar100", root=tmp_path)) == 4
    np.savez(tmp_path / "cifar100-test.npz", images=pixels(2))
    assert len(load("cifar100", root=tmp_path)) == 2
    assert data._find("cifar100", "train", tmp_path) is None


def test_any_file_in_the_data_root_loads_by_its_name(tmp_path):
    np.savez(tmp_path / "my_photos.npz", images=pixels(2))
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
    np.savez(tmp_path / "svhn.npz", **arrays)
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
    np.savez(tmp_path / "svhn.npz", images=pixels(1))
    with refused(rf"^thinkback: set '{name}' has no split '{split}'; it has .*test$"):
        load(name, split=split, root=tmp_path)


def test_a_stand_in_must_lie_in_the_data_root(fetch):
    with refused(r"'textures10'.*no address.*Put textures10\.npz in that folder", Unavailable):
        fetch("textures10")
    assert issubclass(Unavailable, FileNotFoundError)


def test_offline_the_error_says_what_was_tried_and_what_to_do(tmp_path, fetch, monkeypatch):
    url = "http://127.0.0.1:9/iSUN.tar.gz"
    monkeypatch.setitem(ARCHIVES, "isun", replace(ARCHIVES["isun"], url=url))
    with refused("^thinkback: set 'isun'", Unavailable) as caught:
        fetch("isun", root=tmp_path / "new")
    message = str(caught.value)
    for part in ("isun.npz", url, "THINKBACK_DATA", str(tmp_path / "new"), "Put iSUN.tar.gz"):
        assert part in message
    assert "kept" not in message


def test_an_address_that_is_gone_leaves_nothing(tmp_path, server, isun, fetch):
    server.files.clear()
    with refused("404", Unavailable):
        fetch("isun")
    assert stored(tmp_path) == set()


def test_a_wrong_checksum_deletes_the_download(tmp_path, server, isun, fetch):
    body = isun[1]
    server.offer("isun", body[:-1] + b"?", 12, md5_of=body)
    with refused(rf"'isun'.*md5 .*, not {md5(body)}; it was deleted", Unavailable):
        fetch("isun")
    assert stored(tmp_path) == set()


def together(count, work):
    """Run the same work in several threads, which meet at locks; the first error comes back."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()


def test_of_many_that_load_an_absent_set_one_downloads_it(tmp_path, server, isun, fetch):
    server.pause = 0.3
    together(4, lambda: fetch("isun", root=tmp_path / "new"))
    assert shows(load("isun", root=tmp_path / "new"), isun[0])
    assert server.seen == [None]
    assert stored(tmp_path / "new") == {"isun.npz"}


def test_of_many_that_go_on_with_a_broken_download_one_appends(tmp_path, server, isun, fetch):
    (tmp_path / "iSUN.tar.gz.part").write_bytes(isun[1][:1000])
    server.pause = 0.3
    together(3, lambda: fetch("isun"))
    assert server.seen == ["bytes=1000-"]
    assert stored(tmp_path) == {"isun.npz"}


def test_another_set_need_not_wait(tmp_path, isun, fetch):
    with locking(tmp_path / "svhn"):
        assert len(fetch("isun")) == 12


def test_what_another_process_makes_meanwhile_is_taken(tmp_path, server, isun, fetch):
    with ThreadPoolExecutor(1) as pool:
        with locking(tmp_path / "isun"):
            waiting = pool.submit(fetch, "isun")
            time.sleep(0.2)
            np.savez(tmp_path / "isun.npz", images=pixels(2))
        assert len(waiting.result()) == 2
    assert server.seen == []


def test_a_killed_process_does_not_keep_a_set_from_the_others(tmp_path, isun, fetch):
    lock = str(tmp_path / ".isun.lock")
    code = f"import os, filelock; filelock.FileLock({lock!r}).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode != 0
    assert stored(tmp_path) == {".isun.lock"}
    assert len(fetch("isun")) == 12
    assert stored(tmp_path) == {"isun.npz"}


def test_a_set_that_is_there_needs_no_lock(tmp_path, monkeypatch):
    np.savez(tmp_path / "isun.npz", images=pixels(2))

    def refuse(path):
        raise AssertionError(f"{path} was locked")

    monkeypatch.setattr(data, "locking", refuse)
    assert len(load("isun", root=tmp_path)) == 2


def test_a_data_root_that_cannot_be_written_says_so(tmp_path, fetch):
    (tmp_path / "file").write_bytes(b"")
    with refused("^thinkback: set 'isun'.*nothing can be put there.*THINKBACK_DATA", Unavailable):
        fetch("isun", root=tmp_path / "file")


def test_a_full_data_root_says_so(tmp_path, fetch, monkeypatch):
    def full(kind, root):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(ARCHIVES, "svhn", replace(ARCHIVES["svhn"], read=full))
    with refused("^thinkback: set 'svhn'.*could not download and unpack.*No space", Unavailable):
        fetch("svhn")
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_in_the_next_call(tmp_path, server, isun, fetch, ranges):
    images, body = isun
    server.break_after, server.ranges = 4000, ranges
    with refused(rf"broke after 4,000 of {len(body):,} bytes.*next call", Unavailable):
        fetch("isun")
    assert stored(tmp_path) == {"iSUN.tar.gz.part"}
    assert shows(fetch("isun"), images)
    assert server.seen == [None, "bytes=4000-"]
    assert stored(tmp_path) == {"isun.npz"}


def test_a_part_that_is_already_whole_is_taken(tmp_path, isun, fetch):
    (tmp_path / "iSUN.tar.gz.part").write_bytes(isun[1])
    assert len(fetch("isun")) == 12


def test_an_archive_laid_in_the_folder_is_used_and_stays(tmp_path, server, isun, fetch):
    server.files.clear()
    (tmp_path / "iSUN.tar.gz").write_bytes(isun[1])
    assert len(fetch("isun")) == 12
    assert stored(tmp_path) == {"iSUN.tar.gz", "isun.npz"}
    (tmp_path / "isun.npz").unlink()
    (tmp_path / "iSUN.tar.gz").write_bytes(b"another file")
    with refused(r"iSUN\.tar\.gz there has md5", Unavailable):
        fetch("isun")
    assert stored(tmp_path) == {"iSUN.tar.gz"}
    assert server.seen == []


@pytest.mark.parametrize(
    "name", ["../iSUN_patches/a.png", "/iSUN_patches/a.png", "..\\iSUN_patches\\a.png"]
)
def test_a_path_that_leaves_the_archive_writes_nothing(tmp_path, server, fetch, name):
    root = tmp_path / "root"
    image = encode(pixels(1)[0])
    server.offer("isun", {name: image, "iSUN/iSUN_patches/b.png": image}, 1)
    with suppress(ValueError):  # two images, where the path is read
        fetch("isun", root=root)
    assert stored(tmp_path) == {"root"}
    assert stored(root) <= {"iSUN.tar.gz", "isun.npz"}


def test_links_in_an_archive_are_not_followed(tmp_path, server, fetch):
    (tmp_path / "secret.png").write_bytes(encode(pixels(1)[0]))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("iSUN_patches/link.png")
            link.type, link.linkname = kind, "../secret.png"
            tar.addfile(link)
    server.offer("isun", buffer.getvalue(), 1)
    with refused("holds 0 test images of isun, not 1"):
        fetch("isun")
    assert "isun.npz" not in stored(tmp_path)


def test_a_failing_write_leaves_no_cache_file(tmp_path, server, isun, fetch, monkeypatch):
    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full_disk)
        with pytest.raises(OSError, match="no space left"):
            fetch("isun")
    assert stored(tmp_path) == {"iSUN.tar.gz"}
    assert len(fetch("isun")) == 12
    assert len(server.seen) == 1


def test_lsun_crop_loses_its_border(server, fetch):
    images = pixels(3, 36, 36)
    files = {f"LSUN/test/{i}.png": encode(image) for i, image in enumerate(images)}
    junk = {"LSUN/._0.png": b"?", "LSUN/test/._0.png": b"?"}
    server.offer("lsun_crop", junk | files, 3)
    loaded = fetch("lsun_crop")
    assert shows(loaded, images[:, 2:34, 2:34])
    assert loaded.labels is None


def test_lsun_resize_comes_in_the_order_of_the_names(server, fetch, capsys):
    images = pixels(3)
    files = {f"LSUN_resize/LSUN_resize/{i}.png": encode(images[i]) for i in (2, 0, 1)}
    server.offer("lsun_resize", files, 3)
    assert shows(fetch("lsun_resize", progress=True), images)
    assert "LSUN_resize.tar.gz: 100%" in capsys.readouterr().err


def test_photos_of_16_bits_are_scaled(server, fetch):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    server.offer("isun", {"iSUN/iSUN_patches/0.png": encode(ramp)}, 1)
    assert (fetch("isun").images[0].numpy() == np.round(ramp / 257)).all()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("iSUN_patches/odd.png", r"iSUN\.tar\.gz holds a broken image, iSUN_patches/odd\.png: "),
        ("iSUN_patches/large.png", r"large\.png .* is 36x36 pixels, not 32x32"),
        ("other/0.png", "holds 0 test images of isun, not 1"),
    ],
)
def test_archives_that_hold_something_else_are_named(server, fetch, file, words):
    large = encode(pixels(1, 36, 36)[0])
    server.offer("isun", {file: large[:90] if "odd" in file else large}, 1)
    with refused(words):
        fetch("isun")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, server, fetch, monkeypatch, name):
    kind = getattr(data.import_torchvision().datasets, ARCHIVES[name].dataset)
    key = "labels" if name == "cifar10" else "fine_labels"
    images, labels, names = pixels(6), [0, 1, 1, 0, 1, 0], ["plane", "car"]
    flat = images.transpose(0, 3, 1, 2).reshape(6, -1)
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
        loaded = fetch(name, split=split)
        assert shows(loaded, images[rows])
        assert loaded.labels.tolist() == labels[rows]
        assert loaded.classes == tuple(names)
        assert stored(tmp_path) == {f"{name}-train.npz", f"{name}-test.npz"}
        server.files.clear()  # the other split came with the first


@pytest.mark.parametrize("served", ["nothing", "another file", "half of it"])
def test_torchvision_downloads_into_a_folder_that_goes(
    tmp_path, server, fetch, monkeypatch, served
):
    kind = data.import_torchvision().datasets.SVHN
    entry = [f"{server.address}/test_32x32.mat", "test_32x32.mat", md5(b"the file")]
    monkeypatch.setattr(kind, "split_list", {"test": entry})
    if served != "nothing":
        server.files["test_32x32.mat"] = served.encode()
    if served == "half of it":
        server.break_after = 4
    with refused(r"^thinkback: set 'svhn' \(test\)", Unavailable) as caught:
        fetch("svhn")
    put = "Put test_32x32.mat from http://ufldl.stanford.edu/housenumbers/"
    for part in ("svhn.npz", "THINKBACK_DATA", put):
        assert part in str(caught.value)
    assert stored(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "package", "words"),
    [
        ("svhn", "torchvision", r"needs torchvision: pip install .*\[data\]'$"),
        ("photo_crops", "matplotlib", r"needs matplotlib: pip install .*\[data\]'$"),
    ],
)
def test_without_an_optional_package_the_error_names_set_and_remedy(
    fetch, monkeypatch, name, package, words
):
    monkeypatch.setitem(sys.modules, package, None)
    with refused(f"^thinkback: set '{name}' {words}", ImportError):
        fetch(name)


def test_svhn(tmp_path, server, fetch, monkeypatch):
    kind = data.import_torchvision().datasets.SVHN
    images, buffer = pixels(3), io.BytesIO()
    savemat(buffer, {"X": images.transpose(1, 2, 3, 0), "y": np.array([[10], [1], [9]], np.uint8)})
    server.files["test_32x32.mat"] = body = buffer.getvalue()
    entry = [f"{server.address}/test_32x32.mat", "test_32x32.mat", md5(body)]
    monkeypatch.setattr(kind, "split_list", {"test": entry})
    monkeypatch.setitem(ARCHIVES, "svhn", replace(ARCHIVES["svhn"], size=3))
    loaded = fetch("svhn")
    assert shows(loaded, images)
    assert loaded.labels.tolist() == [0, 1, 9]
    assert stored(tmp_path) == {"svhn.npz"}
    (tmp_path / "svhn.npz").unlink()
    (tmp_path / "test_32x32.mat").write_bytes(server.files.pop("test_32x32.mat"))  # laid by hand
    assert len(fetch("svhn")) == 3
    assert stored(tmp_path) == {"svhn.npz", "test_32x32.mat"}


def test_textures_are_shrunk_and_cropped(tmp_path, server, fetch, monkeypatch):
    kind = data.import_torchvision().datasets.DTD
    flat = np.full((64, 128, 3), 200, np.uint8)
    flat[:, :32] = flat[:, -32:] = 0  # what the centre crop of the wide image leaves out
    files = {}
    for part, name in (("train", "0"), ("val", "1"), ("test", "2")):
        shape = flat if part == "train" else pixels(1, 40, 32 + 8 * int(name))[0]
        for label in ("banded", "woven"):
            files[f"dtd/images/{label}/{label}_{name}.jpg"] = encode(shape, "JPEG")
        listed = f"banded/banded_{name}.jpg\nwoven/woven_{name}.jpg\n"
        files[f"dtd/labels/{part}1.txt"] = listed.encode()
    server.files["dtd-r1.0.1.tar.gz"] = body = tar_gz(files)
    monkeypatch.setattr(kind, "_URL", f"{server.address}/dtd-r1.0.1.tar.gz")
    monkeypatch.setattr(kind, "_MD5", md5(body))
    monkeypatch.setitem(ARCHIVES, "textures", replace(ARCHIVES["textures"], size=6))
    loaded = fetch("textures")
    assert loaded.images.shape == (6, 3, 32, 32)
    assert loaded.images[0, :, :, 2:-2].min() > 190
    assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert loaded.classes == ("banded", "woven")
    assert stored(tmp_path) == {"textures.npz"}


def test_the_addresses_are_those_of_the_original_archives():
    datasets = data.import_torchvision().datasets
    svhn = [ARCHIVES["svhn"].file, "eb5a983be6a315427106f1b164d9cef3"]
    assert datasets.SVHN.split_list["test"][1:] == svhn
    assert datasets.DTD._MD5 == "fff73e5086ae6bdbea199a49dfb8a4c1"
    for name in ("cifar10", "cifar100"):
        assert getattr(datasets, ARCHIVES[name].dataset).filename == ARCHIVES[name].file
    assert ARCHIVES["lsun_crop"].url == "https://www.dropbox.com/s/fhtsw1m3qxlwj6h/LSUN.tar.gz?dl=1"
    assert [ARCHIVES[name].size for name in PAPER_SETS] == [5_640, 26_032, 10_000, 10_000, 8_925]


def test_another_error_of_torchvision_gets_through(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('another reason')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(RuntimeError, match="another reason"):
        data.import_torchvision()


@pytest.mark.parametrize("name", EMBEDDED_SETS)
def test_embedded_sets(name, tmp_path):
    loaded, again = load(name, root=tmp_path), load(name)
    assert loaded.images.shape[1:] == (3, 32, 32)
    assert loaded.images.dtype == torch.uint8
    assert 500 <= len(loaded) <= 600
    assert torch.equal(loaded.images, again.images)
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
    photo = load_sample_image("flower.jpg")
    crop = load("photo_crops").images[250].permute(1, 2, 0).numpy()
    corners = np.argwhere((photo == crop[0, 0]).all(axis=-1))
    assert any(np.array_equal(photo[y : y + 32, x : x + 32], crop) for y, x in corners)


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
        assert loaded.labels.bincount().tolist() == [1_000] * 10
        mean = loaded.images.double().mean(dim=(0, 2, 3)) / 255
        assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)
