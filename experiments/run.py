"""The folder of one trained network: weights, features, scores, and where they are from.

A run is ``results/<network>/seed<k>/``. Each of its files is whole or not there. The bundle itself
says which weights and images its features were made from, in the comment of its zip archive, so
that both are replaced in one step, and a command that was killed loses nothing that was kept.
``provenance.json`` comes last: it repeats this for people, with command, commit and times.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thinkback_utils.commands import Parser
from thinkback_utils.data import ImageSet, data_root
from thinkback_utils.devices import process_device
from thinkback_utils.features import Bundle, Features
from thinkback_utils.files import read_json, replacing, sha256, write_json
from thinkback_utils.models import WideResNet

from .evaluation import Record, Scores, image_set, load_scores, save_scores
from .provenance import describe

NETWORK = "wrn40-2-cifar10"  # of the book
STATED = ("images_sha256", "float16_metric_error")  # of older bundles in provenance.json alone


@dataclass(frozen=True)
class Run:
    """One run; nothing is read before it is asked for.

    Args:
        folder: ``results/<network>/seed<k>``.
    """

    folder: Path

    @classmethod
    def at(cls, results: str | Path, network: str = NETWORK, seed: int = 0) -> Run:
        """The run of that training seed in a folder of results."""
        return cls(Path(results) / network / f"seed{seed}")

    @property
    def results(self) -> Path:
        """The folder of results that the run lies in."""
        return self.folder.parents[1]

    @property
    def network(self) -> str:
        """The name that runs of one network share."""
        return self.folder.parent.name

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.folder.name.removeprefix("seed"))

    @property
    def label(self) -> Record:
        """``{network, seed}``, the fields by which a table tells the runs apart."""
        return {"network": self.network, "seed": self.seed}

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.folder / "weights.safetensors"

    def siblings(self) -> list[Run]:
        """The other runs of the network that keep scores, by seed."""
        there = [Run(path.parent) for path in self.folder.parent.glob("seed*/scores.npz")]
        return sorted((run for run in there if run != self), key=lambda run: run.seed)

    def model(self, device: str | torch.device | None = None) -> WideResNet:
        """The network in evaluation mode, laid out for speed.

        Args:
            device: where it lies; default: the GPU when there is one.

        Raises:
            FileNotFoundError, ValueError: there are no weights, or damaged ones.
        """
        model = WideResNet.load(self.weights).to(process_device(device))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    @property
    def record(self) -> Record:
        """What ``provenance.json`` says.

        Raises:
            FileNotFoundError: there is none, so that no run has finished here.
            ValueError: it is damaged or something else.
        """
        path = self.folder / "provenance.json"
        if not path.exists():
            raise FileNotFoundError(
                f"thinkback: no record of a run at {path}; fetch the repository's results/ folder,"
                " or make it with `python -m experiments.reproduce`"
            )
        record: Record = read_json(path)
        if not isinstance(record, dict) or not set(STATED) <= record.keys():
            raise ValueError(
                f"thinkback: {path} is no record of a run; fetch it anew, or delete it to make all"
                " anew"
            )
        return record

    @property
    def finished(self) -> bool:
        """Whether weights and record are there."""
        return self.weights.exists() and (self.folder / "provenance.json").exists()

    def save_record(self, record: Record) -> None:
        """Replace ``provenance.json``."""
        write_json(self.folder / "provenance.json", record)

    def bundle(self, name: str = "bundle.npz") -> Bundle:
        """The features that are kept.

        Raises:
            FileNotFoundError, ValueError: there are none, or damaged ones.
        """
        return Bundle.load(self.folder / name)

    def save_bundle(
        self,
        sets: Mapping[str, Features],
        model: WideResNet,
        name: str = "bundle.npz",
        **stated: Any,
    ) -> None:
        """Replace the features, the network's last layer, and what they were made from.

        Args:
            sets: features of the images.
            model: the network that made them, whose weights lie in the folder.
            name: the file.
            stated: what :meth:`stated` is to return, as JSON.
        """
        head, path = model.get_classifier(), self.folder / name
        of = {"weights_sha256": self.digest()} | stated
        with replacing(path) as temporary:
            Bundle(dict(sets), head.weight.detach().cpu(), head.bias.detach().cpu()).save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = json.dumps(of).encode()

    def stated(self) -> Record:
        """What the features of ``bundle.npz`` were made from: ``STATED`` and ``weights_sha256``.

        For an older bundle, which does not say it itself, it is what the record says.

        Raises:
            FileNotFoundError: there is neither such a bundle nor a record.
            ValueError: the bundle or the record is damaged.
        """
        path, comment = self.folder / "bundle.npz", b""
        if path.exists():
            try:
                with zipfile.ZipFile(path) as archive:
                    comment = archive.comment
                if comment:
                    own: Record = json.loads(comment)
                    return own
            except (zipfile.BadZipFile, ValueError) as error:
                raise ValueError(
                    f"thinkback: {path} is damaged ({error}); fetch it anew, or delete it and run"
                    " `python -m experiments.reproduce`"
                ) from error
        record = self.record
        return {key: record[key] for key in STATED}

    def kept(self) -> tuple[Record, dict[str, Features]]:
        """What is :meth:`stated`, and the features; both empty where none are of these weights."""
        try:
            stated = self.stated()
            if stated.get("weights_sha256") in (None, self.digest()):
                return stated, self.bundle().sets
        except FileNotFoundError:  # no weights, no features, or nothing says what they are of
            pass
        return {"images_sha256": {}, "float16_metric_error": 0.0}, {}

    def images(self, names: Iterable[str] | None = None) -> dict[str, ImageSet]:
        """Image sets, verified to be those that the bundle was made from.

        Args:
            names: the sets; default: all.

        Raises:
            ValueError: the run has no such set, or the data root holds other images.
            UnavailableError: a set cannot be had.
        """
        hashes = self.stated()["images_sha256"]
        chosen = list(hashes if names is None else names)
        if unknown := [name for name in chosen if name not in hashes]:
            raise ValueError(f"thinkback: no sets {unknown} in {self.folder}, only {list(hashes)}")
        sets = {name: image_set(name) for name in chosen}
        for name, images in sets.items():
            if (found := images.sha256()) != (expected := hashes[name]):
                raise ValueError(
                    f"thinkback: {name!r} in the data root {data_root()} is not the set that the"
                    f" bundle was made from (sha256 {found[:12]}…, expected {expected[:12]}…); run"
                    " `python -m experiments.reproduce` anew"
                )
        return sets

    def scores(self, name: str = "scores.npz") -> Scores:
        """Scores of each image, ``[set][method]``, float64 (N,).

        Raises:
            FileNotFoundError, ValueError: there are none, or damaged ones.
        """
        return load_scores(self.folder, name)

    def save_scores(self, scored: Scores, name: str = "scores.npz") -> None:
        """Replace the scores, as float32."""
        save_scores(self.folder / name, scored)

    def digest(self) -> str:
        """SHA-256 of the weights: what is made from them states it."""
        return sha256(self.weights)

    def describe(self, device: str | torch.device, names: Iterable[str] | None = None) -> Record:
        """The head of the record of an experiment on this run: this process, weights and images.

        Args:
            device: what it computes on.
            names: the sets it reads; default: all.
        """
        hashes = self.stated()["images_sha256"]
        chosen = hashes if names is None else {name: hashes[name] for name in names}
        return describe(device) | {"weights_sha256": self.digest(), "images_sha256": chosen}

    def made(self, program: str) -> Record:
        """The record ``<program>.json`` that ``python -m experiments.<program>`` wrote here.

        Raises:
            FileNotFoundError: it has not run.
            ValueError: it ran on other weights.
        """
        path, kept = (self.folder / f"{program}.{ending}" for ending in ("json", "npz"))
        if not path.exists() or not kept.exists():
            raise FileNotFoundError(f"thinkback: no scores at {kept}; {self._command(program)}")
        record: Record = read_json(path)
        if record["weights_sha256"] != self.digest():
            raise ValueError(
                f"thinkback: {kept} is of other weights than those beside it;"
                f" {self._command(program)}"
            )
        return record

    def _command(self, program: str) -> str:
        return (
            f"run `python -m experiments.{program} --results {self.results} --network"
            f" {self.network} --seed {self.seed}`"
        )


OPTIONS: dict[str, dict[str, Any]] = {
    "results": {"type": Path, "default": Path("results"), "help": "folder of the runs"},
    "network": {"default": NETWORK, "help": "folder of the network in it"},
    "seed": {"type": int, "default": 0, "help": "which training run"},
    "device": {"help": "cpu, cuda, …; default: the GPU when there is one"},
}


def program_parser(program: str, about: str | None, *names: str) -> Parser:
    """The parser of ``python -m <program>``, with these of ``OPTIONS``, else all."""
    parser = Parser(prog=f"python -m {program}", description=about)
    for name in names or OPTIONS:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    return parser
