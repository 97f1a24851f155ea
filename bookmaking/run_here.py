"""A cell that readers change and run in the page, with Python served by the site itself.

``book/extra/run/run.js`` turns the code cell before this output into an editor when the reader asks
for it. Everywhere else (Jupyter, Colab, no JavaScript) that cell is a cell like any other.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from IPython.display import HTML
from numpy.typing import NDArray

from . import palette
from .markup import fill

PYTHON = Path(__file__).parents[1] / "book" / "vendor" / "pyodide" / "0.27.7"
COUNTED = ("pyodide.asm.wasm.gz", "python_stdlib.zip", "pyodide-lock.json", "numpy-*.whl")


def run_here(arrays: Mapping[str, NDArray[np.generic]], titles: Sequence[str]) -> HTML:
    """The button below a cell, and the numbers that its code may name.

    Args:
        arrays: by their names in the code; ``ood``, bool (N,), says of each row whether it is
            out-of-distribution. Floats are sent as they are and are float64 in the page. If the
            code leaves numbers ``score`` (N,), the page draws their order.
        titles: of the rows that are in-distribution, and of the others.

    Raises:
        ValueError: there is no ``ood`` of that kind.
    """
    ood = arrays.get("ood")
    if ood is None or ood.dtype != bool or ood.ndim != 1:
        raise ValueError("thinkback: arrays needs 'ood', bool (N,): which rows are outliers")
    sent = {name: _sent(array) for name, array in arrays.items()}
    files = [file for pattern in COUNTED for file in PYTHON.glob(pattern)]
    size = sum(file.stat().st_size for file in PYTHON.iterdir())
    facts = {
        "arrays": sent,
        "ood": ood.astype(int).tolist(),
        "titles": list(titles),
        "bytes": sum(file.stat().st_size for file in files),
        "megabytes": round(size / 1e6),
    }
    colors = {name: palette.both(palette.PALETTE[name]) for name in ("ink", "id", "ood")}
    style = "; ".join(f"--tb-{name}: {color}" for name, color in colors.items())
    return HTML(fill("run", facts=facts, style=style))


def _sent(array: NDArray[np.generic]) -> dict[str, object]:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    kind, to = little.dtype.str, "float64" if little.dtype.kind == "f" else little.dtype.name
    data = b64encode(little.tobytes()).decode()
    return {"data": data, "kind": kind, "shape": list(array.shape), "to": to}
