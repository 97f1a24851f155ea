"""Files that are whole or absent: a kill leaves no half of one, and damage is found when read."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import secrets
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError

# What reading a member of a damaged .npz raises; NumPy then parses only what its checksum covers.
DAMAGED = (
    zipfile.BadZipFile,  # no directory, or a checksum that differs
    EOFError,  # cut short
    ValueError,  # an offset before the file, a name that is no text, no array of numbers
    RuntimeError,  # marked as encrypted, or as of an unknown compression or version
    zlib.error,  # and those of the other compressions:
    lzma.LZMAError,
    MemoryError,  # LZMA with a window of 4 GB
    OSError,  # bzip2, or the disk
)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends without an error.

    Raises:
        OSError: the folder cannot be written or is full; the message names ``path``.
    """
    path = Path(path)
    # unique also on folders that machines share
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    ours = {str(place) for place in (temporary, path, *path.parents)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()  # a block that writes nothing is an error, not an empty file
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors makes its files private
            temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # a power cut must not leave the new name without its content
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or not (error.filename is None or str(error.filename) in ours):
            raise  # it is about another file
        raise _unwritable(path, error) from error
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        raise _unwritable(path, OSError(0, str(error))) from error
    finally:
        with suppress(OSError):  # the first error is the one to see
            temporary.unlink()


@contextmanager
def locking(path: str | Path) -> Iterator[None]:
    """Only one process or thread at a time is inside for the same ``path``; the others wait.

    The lock is a hidden file beside ``path``, which is there only while it is used; a killed
    process gives it back.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unwritable(file, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps it until it is given back
            file.unlink()
        lock.release()


def _unwritable(path: Path, error: OSError) -> OSError:
    """The same kind of error, which names the file and what its folder must be."""
    remedy = f"{path.parent} must be a folder that can be written and has space left"
    return type(error)(f"thinkback: {path} cannot be written ({error.strerror}); {remedy}")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, with a closing newline."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """What :func:`write_json` wrote.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"thinkback: {path} is damaged, it is no JSON ({error}); restore it, or delete it"
        ) from error


def read_arrays(
    path: str | Path, remedy: str, names: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file, without pickles.

    Args:
        path: the file.
        remedy: what to do when it is damaged; it ends the message.
        names: read only these, as far as they are there; None: all.

    Raises:
        FileNotFoundError, PermissionError: as from any file.
        ValueError: the file is no ``.npz``, is damaged or holds Python objects; the message names
            it.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if names is None or name in names:
                    content = io.BytesIO(archive.read(member))  # which compares its checksum
                    arrays[name] = np.lib.format.read_array(content, allow_pickle=False)
                    if content.read(1):
                        raise ValueError(f"{member} is longer than its array")
    except (FileNotFoundError, PermissionError):
        raise
    except DAMAGED as error:
        raise ValueError(
            f"thinkback: {path} cannot be read as an .npz file without pickles ({error}); {remedy}"
        ) from error
    return arrays


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
