"""The networks whose training a folder of results records, as one table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from thinkback_utils.files import read_json

FOLDERS = "*/seed*/training.json"


def trained(results: str | Path) -> pd.DataFrame:
    """One row a run that was trained on CIFAR-10: largest network first, then by seed.

    Args:
        results: folder with ``<network>/seed<k>/training.json``.

    Returns: Columns ``network`` (as WRN-40-2), ``recipe``, ``seed``, ``accuracy`` (test) and
        ``fitted`` (training, augmented) as shares, ``epochs``, ``hours``, ``device``, and
        ``history``, a dictionary with ``loss`` and ``accuracy`` by epoch.

    Raises:
        ValueError: there is no finished run.
    """
    rows = []
    for file in Path(results).glob(FOLDERS):
        record = read_json(file)
        if "cifar10-test" not in record.get("accuracy", {}):
            continue
        config, history = record["config"], record["history"]
        row = {"network": f"WRN-{config['depth']}-{config['width']}", "recipe": record["recipe"]}
        row |= {"seed": config["seed"], "accuracy": record["accuracy"]["cifar10-test"]}
        row |= {"fitted": history["accuracy"][-1], "epochs": len(history["loss"])}
        row |= {"hours": sum(history["seconds"]) / 3600, "device": record["device"]}
        rows.append(row | {"history": history})
    if not rows:
        raise ValueError(
            f"thinkback: no finished training in {results}; fetch the repository's results/ folder,"
            " or make it with `python -m experiments.reproduce`"
        )
    rows.sort(key=lambda row: (-int(row["network"].split("-")[1]), row["recipe"], row["seed"]))
    return pd.DataFrame(rows)
