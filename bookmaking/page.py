"""The start of a chapter: what its setup cell calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from experiments import provenance
from experiments.plots import use_style
from experiments.training import CHOICES, RANGES, RECIPES
from thinkback_utils.data import import_torchvision
from thinkback_utils.devices import process_device
from thinkback_utils.gradients import READINGS
from thinkback_utils.methods import METHODS
from thinkback_utils.metrics import METRICS

from . import hints

Check = tuple[Callable[[Any], bool], str]  # whether a value fits, and what fits, in words
PROFILES = ("smoke", "full")


def _whole(least: int) -> Check:
    return lambda value: type(value) is int and value >= least, f"a whole number from {least} on"


def _one_of(choices: Collection[str]) -> Check:
    return choices.__contains__, f"one of {', '.join(choices)}"


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _from_zero(value: float) -> bool:
    return 0 <= value < math.inf


def _between(value: float) -> bool:
    return 0 < value < 1


def _makeable(folder: str) -> bool:
    path = Path(folder).absolute()
    return next(place for place in (path, *path.parents) if place.exists()).is_dir()


def _classifier(name: str) -> bool:
    models = import_torchvision().models
    return name in models.list_models(module=models)


def _some(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: bool(values) and all(map(fits, values))


# Parameters by name, in all chapters that have them. The rest is checked by what uses it.
CHECKS: dict[str, Check] = {
    "profile": _one_of(PROFILES),
    "seed": _whole(0),
    "run_seed": _whole(0),
    "data_dir": (lambda value: not value or Path(value).is_dir(), "a folder that is there"),
    "results_dir": (
        lambda value: Path(value).parent.is_dir(),
        "the folder of the full runs (the book's own is ../results)",
    ),
    "benchmarks_dir": (
        lambda value: Path(value).is_dir(),
        "a folder that is there (the book's own is ../results/benchmarks)",
    ),
    "out": (_makeable, "a folder, there or to be made"),
    "n_points": _whole(60),
    "n_samples": _whole(30),
    "n_validation": _whole(1),
    "n_ood": _whole(1),
    "draws": _whole(1),
    "resamples": _whole(2),
    "splits": _whole(2),
    "workers": _whole(1),
    "depth": (
        lambda value: value == 0 or RANGES["depth"][1](value),
        "0 or 6n + 4 with n from 1 on (10, 16, 22, 28, 40)",
    ),
    "width": _whole(0),
    "epochs": _whole(0),
    "prevalence": (_between, "a share between 0 and 1"),
    "alpha": (_between, "a rate between 0 and 1"),
    "delta": (_between, "a chance between 0 and 1"),
    "temperature": (_positive, "a number above 0"),
    "temperatures": (_some(_positive), "one number or more, all above 0"),
    "eps": (_from_zero, "a number from 0 on"),
    "epsilons": (_some(_from_zero), "one number or more, all from 0 on"),
    "dampings": (_some(_from_zero), "one number or more, all from 0 on"),
    "batch_sizes": (_some(lambda value: value >= 1), "one whole number or more, all from 1 on"),
    "live_seconds": (_positive, "a number of seconds above 0"),
    "images_per_second": (_from_zero, "a number from 0 on"),
    "methods": (bool, "a list of one score or more"),
    "layers": (_some(READINGS.__contains__), f"a list of one or more of {', '.join(READINGS)}"),
    "weighting": _one_of(("multiply", "none", "divide")),
    "amp": _one_of(CHOICES["amp"]),
    "recipe": _one_of(sorted(RECIPES)),
    "metric": _one_of(METRICS),
    "model": (_classifier, "a classifier of torchvision.models, as resnet18"),
    "method": _one_of(METHODS),
}


def start(*, threads: int | None = None, data_dir: str = "", **parameters: Any) -> provenance.Box:
    """Set up a chapter; show what it returns in the last cell.

    All parameters of the chapter that runs this are checked, since papermill checks nothing: also
    those that are not given here. Outside a chapter only the given ones are.

    Args:
        threads: how many CPU threads torch may use; 1 where arrays are so small that more only wait
            for each other. None leaves the number as it is.
        data_dir: folder of the image sets; empty leaves the usual one.
        parameters: of the chapter, to be printed in the box.

    Returns: The reproducibility box, which counts the time from here on.

    Raises:
        ValueError: on a parameter that cannot be, with its value and what may be given.
    """
    declared = provenance.parameters()
    for name, (value, hint) in declared.items():
        if not hints.fits(value, hint):
            how = f"; papermill takes it by -y '{{{name}: ...}}'" if isinstance(value, str) else ""
            raise ValueError(f"thinkback: {name} is {hints.words(hint)}, got {value!r}{how}")
    values = {name: value for name, (value, _) in declared.items()}
    _check(values | parameters | {"data_dir": data_dir or values.get("data_dir", "")})
    use_style()
    if threads is not None:
        torch.set_num_threads(threads)
    if data_dir:
        os.environ["THINKBACK_DATA"] = data_dir
    return provenance.Box(**parameters)


def _check(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        fits, words = CHECKS.get(name, (lambda _: True, ""))
        if not fits(value):
            raise ValueError(f"thinkback: {name} is {words}, got {value!r}")
    if "device" in parameters:
        process_device(parameters["device"])
