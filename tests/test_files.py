"""Files are whole or not there, a killed process gives its lock back, damage names its file."""

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from refusals import refused
from safetensors import SafetensorError

from thinkback_utils.features import save_arrays
from thinkback_utils.files import locking, read_arrays, read_json, replacing, write_json
from thinkback_utils.models import WideResNet


def at_once(calls):
    """Call each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_writers_of_one_process_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "first"  # its block ended last
    assert os.listdir(tmp_path) == ["a.txt"]


def test_many_threads_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.json"
    at_once([lambda i=i: write_json(path, [i] * 1000) for i in range(8)])
    assert len(set(read_json(path))) == 1
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_file_has_the_permissions_of_any_new_one(tmp_path, mask):
    old = os.umask(mask)
    try:
        write_json(tmp_path / "a", 1)
        WideResNet(10, 1, 3).save(tmp_path / "b")
    finally:
        os.umask(old)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~mask}


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append("replace") or rename(old, new))
    write_json(tmp_path / "a.json", 1)
    assert calls == ["fsync", "replace"]


def test_a_failure_leaves_the_old_file_alone(tmp_path):
    def fail():
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyError

    write_json(tmp_path / "a.json", "old")
    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "a.json") == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_one_clear_error(tmp_path):
    def fill():
        with replacing(tmp_path / "a") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("text", encoding="utf-8")

    with refused(r"a cannot be written \(No space left.*has space left$", OSError) as raised:
        fill()
    assert isinstance(raised.value.__cause__, OSError)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_in_the_words_of_safetensors_is_the_same_error(tmp_path):
    def fill(reason):
        with replacing(tmp_path / "a"):
            raise SafetensorError(reason)

    with refused(r"a cannot be written \(.*No space left", OSError):
        fill("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError, match="invalid shape"):
        fill("invalid shape")


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with refused(r"^thinkback: ", FileNotFoundError), replacing(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for write in (lambda path: write_json(path, 1), WideResNet(10, 1, 3).save):
        with refused(r"x\.safetensors cannot be written", OSError):
            write(tmp_path / "file" / "x.safetensors")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="may write everywhere")
def test_a_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    for write in (lambda path: write_json(path, 1), WideResNet(10, 1, 3).save):
        with refused(r"x\.safetensors cannot be written .*ermission", OSError):
            write(tmp_path / "x.safetensors")
    with (
        refused(r" cannot be written", PermissionError),
        locking(tmp_path / "x"),
    ):
        pass


def test_an_error_about_another_file_stays_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^\[Errno"), replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()


def test_one_at_a_time_is_inside(tmp_path):
    inside = []
    most = []

    def work():
        with locking(tmp_path / "new" / "a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    at_once([work] * 6)
    assert most == [1] * 6
    assert os.listdir(tmp_path / "new") == []


def test_a_killed_process_gives_its_lock_back(tmp_path):
    code = f"""
import time
from filelock import FileLock
from safetensors import SafetensorError
with FileLock({str(tmp_path / ".a.lock")!r}):
    print("inside", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"inside\n"
    taken = threading.Event()

    def wait():
        with locking(tmp_path / "a"):
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not taken.wait(0.3)
    process.send_signal(signal.SIGKILL)
    assert taken.wait(10)
    thread.join()
    process.wait()
    process.stdout.close()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_fails_inside_is_given_back(tmp_path):
    with pytest.raises(KeyError), locking(tmp_path / "a"):
        raise KeyError
    with FileLock(tmp_path / ".a.lock", timeout=1):
        pass


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"<<<<<<< HEAD\n{}"])
def test_damaged_json_names_its_file(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with refused(r"a\.json is damaged") as raised:
        read_json(tmp_path / "a.json")
    assert raised.value.__cause__ is not None


def test_arrays_of_every_writer_are_read(tmp_path):
    table = np.arange(6.0).reshape(2, 3)
    arrays = {"a": table, "b": np.asfortranarray(table), "c": np.array(["x"])}
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    save_arrays(tmp_path / "c.npz", arrays)
    for name in "abc":
        read = read_arrays(tmp_path / f"{name}.npz", "")
        assert read.keys() == arrays.keys()
        assert all(np.array_equal(read[key], arrays[key]) for key in arrays)
    assert list(read_arrays(tmp_path / "a.npz", "", ["b", "absent"])) == ["b"]


def test_pickles_are_not_read(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([None]), b=np.arange(3))
    with refused(r"a\.npz cannot be read as an \.npz file without pickles .*; make it anew$"):
        read_arrays(tmp_path / "a.npz", "make it anew")
    assert list(read_arrays(tmp_path / "a.npz", "", ["b"])) == ["b"]


def test_damage_anywhere_in_arrays_is_found(tmp_path):
    """Also in a header, which may then describe another array that could be read."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.random.default_rng(0).integers(256, size=(10, 10, 10), dtype=np.uint8))
    whole = path.read_bytes()
    start = whole.index(b"\x93NUMPY")
    where = whole.index(b"(10, 10, 10)")
    damaged = [whole[:where] + b"(1, 10, 10) " + whole[where + 12 :]]
    for place in range(start, len(whole) - 200, 37):
        damaged.append(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    damaged += [whole[:length] for length in range(0, len(whole), 97)]
    for content in damaged:
        path.write_bytes(content)
        with refused(r"a\.npz cannot be read"):
            read_arrays(path, "")


def test_a_member_that_is_no_array_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"text")
    with refused(r"a\.npz cannot be read"):
        read_arrays(tmp_path / "a.npz", "")
