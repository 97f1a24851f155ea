"""What produced a result: written beside everything under results/."""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import yaml

import thinkback_utils
from thinkback_utils.files import read_json

ROOT = Path(__file__).parents[1]  # of the repository


def describe(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Command, commit, time, device and versions of the running process, as JSON types.

    Of an absolute path in the command its name alone is kept: the rest is of this machine.
    """
    program, *arguments = sys.orig_argv
    in_notebook = any("ipykernel" in argument for argument in arguments)
    shown = [Path(part).name if Path(part).is_absolute() else part for part in arguments]
    return {
        "command": "a notebook" if in_notebook else shlex.join([Path(program).name, *shown]),
        "commit": _commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": _device(torch.device(device)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def label(folder: str | Path) -> str:
    """Which network made the numbers of a page: size, recipe, device, training seeds, accuracy.

    Args:
        folder: of one run, ``results/<network>/seed<k>``; or of a network, for all its runs.

    Returns: As in "WRN-40-2, `cpu` recipe (23 epochs on AMD EPYC, 2 threads, AVX2), 1 training
        seed, 92.8 % test accuracy"; of one run among others "training seed 0, one of 3"; differing
        recipes and machines are all named.

    Raises:
        ValueError: No finished run is there.
    """
    folder, name = Path(folder), "provenance.json"
    files = [folder / name] if (folder / name).exists() else sorted(folder.glob(f"seed*/{name}"))
    if not files:
        raise ValueError(
            f"thinkback: no {name} in {folder} or its seed folders; has the run finished?"
        )
    runs, beside = [read_json(file) for file in files], list(folder.parent.glob(f"seed*/{name}"))
    made: list[str] = []
    for run in runs:
        config, epochs = run["training"]["config"], len(run["training"]["history"]["loss"])
        recipe = f"`{run['recipe']}` recipe ({epochs} epochs on {run['training']['device']})"
        made.append(f"WRN-{config['depth']}-{config['width']}, {recipe}")
    seeds = f"{len(files)} training seed{'s' * (len(files) > 1)}"
    if len(beside) > 1:
        seeds = f"training seed {runs[0]['seed']}, one of {len(beside)}"
    accuracies = [run["accuracy"]["cifar10-test"] for run in runs]
    ends = dict.fromkeys(f"{100 * end:.1f}" for end in (min(accuracies), max(accuracies)))
    return f"{'; '.join(dict.fromkeys(made))}, {seeds}, {' to '.join(ends)} % test accuracy"


class Box:
    """The reproducibility box at the end of a chapter: how to run this page again, and what ran it.

    The chapter is found by its code, so the box knows it in Jupyter, VS Code, Colab and papermill.

    >>> box = Box(profile="smoke", seed=0)  # at the top; shown later, it adds the time in between
    """

    def __init__(self, **parameters: Any) -> None:
        self.parameters, self.start = parameters, time.perf_counter()
        self._names = dict(_session()[0])  # before the chapter gives any of them another value

    def _repr_html_(self) -> str:
        facts = describe(self.parameters.get("device", "cpu"))
        seconds = time.perf_counter() - self.start
        config, chapter, values = _config(), _chapter(_session()[1]), dict(self.parameters)
        if chapter:
            values |= {n: self._names[n] for n in _declared(chapter) if n in self._names}
        shown = ", ".join(f"<code>{n} = {_escape(_short(v))}</code>" for n, v in values.items())
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        rows = {
            "Parameters": shown,
            "Commit": _commit_link(facts["commit"], config),
            "Device": _escape(facts["device"]),
            "Versions": versions,
            "Run time": f"{seconds:.0f} s",
        }
        if chapter:
            usual = {name: line.value for name, line in _declared(chapter).items()}
            own = {
                n: values[n] for n in usual if n in values and not _is_default(values[n], usual[n])
            }
            strict, plain = map(_copied, commands(chapter.name, own))
            rows |= {"From a clone": strict, "With papermill alone": plain}
            rows["On Colab"] = _colab_link(chapter.name, config)
        body = "".join(
            f'<tr><th scope="row">{k}</th>\n<td>{v}</td></tr>\n' for k, v in rows.items() if v
        )
        return f'<table class="reproduce"><caption>Reproduce this page</caption>\n{body}</table>'


def parameters() -> dict[str, tuple[Any, ast.expr]]:
    """Values and annotations of the parameters of the chapter that runs this, by name.

    Empty where no chapter runs it.
    """
    names, ran = _session()
    declared = _declared(chapter) if (chapter := _chapter(ran)) else {}
    return {n: (names[n], line.annotation) for n, line in declared.items() if n in names}


def commands(notebook: str, values: Mapping[str, Any]) -> list[str]:
    """What runs one chapter with these parameters: strictly, and with papermill alone.

    Both are typed at the root of a clone after ``make``.

    Args:
        notebook: name of the chapter's file.
        values: of its parameters: text, numbers, and lists and mappings of these.

    >>> commands("02_metrics.ipynb", {"seed": 1})[0]
    '.venv/bin/python -m bookmaking run notebooks/02_metrics.ipynb -o out.ipynb -p seed 1'
    """

    def written(value: Any) -> str:
        flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
        return value if isinstance(value, str) else str(flow).removesuffix("\n...\n").strip()

    pairs = [word for name, value in values.items() for word in ("-p", name, written(value))]
    strict = [".venv/bin/python", "-m", "bookmaking", "run", f"notebooks/{notebook}"]
    plain = ["../.venv/bin/papermill", notebook, "../out.ipynb", "-k", "python3"]
    given = ["-y", written(dict(values))] if values else []
    return [
        shlex.join([*strict, "-o", "out.ipynb", *pairs]),
        f"(cd notebooks && {shlex.join([*plain, *given])})",
    ]


def _escape(text: str) -> str:
    return escape(text, quote=False)


def _copied(command: str) -> str:
    """Code to which the book adds a button that copies it; a line breaks between its options."""
    code = re.sub(r"(?<!\S)-\w \S+", r"<span>\g<0></span>", _escape(command))
    return f'<div class="highlight"><pre>{code}</pre></div>'


def _session() -> tuple[Mapping[str, Any], list[str]]:
    """The names of the notebook that runs this, and the source of its cells so far."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return {}, []
    return shell.user_ns, shell.history_manager.input_hist_raw


def _chapter(ran: Sequence[str]) -> Path | None:
    """The chapter with most of its own code among the cells that ran; None where none has any."""
    files = sorted(ROOT.glob("notebooks/*.ipynb"))
    code = {file: {_source(cell) for cell in _cells(file)} for file in files}
    often = Counter(cell for cells in code.values() for cell in cells)
    done = {cell.strip() for cell in ran}
    own = {file: sum(often[cell] == 1 for cell in cells & done) for file, cells in code.items()}
    best = max(own, key=own.__getitem__, default=None)
    return best if best and own[best] else None


def _cells(notebook: Path) -> list[dict[str, Any]]:
    cells = read_json(notebook)["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"]).strip()


def _declared(notebook: Path) -> dict[str, ast.AnnAssign]:
    """A chapter's parameters in their order: of each name its line, with annotation and default."""
    tagged = [c for c in _cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    lines = [line for cell in tagged for line in ast.parse(_source(cell)).body]
    found = [line for line in lines if isinstance(line, ast.AnnAssign)]
    return {ast.unparse(line.target): line for line in found}


def _is_default(value: Any, default: ast.expr | None) -> bool:
    """Whether a parameter has the value that its chapter gives it."""
    return default is not None and repr(value) == ast.unparse(default)


def _short(value: Any) -> str:
    """A value as in code, a float with six digits at most."""
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _config() -> dict[str, Any]:
    """The book's settings, which name the repository; none where this is no clone of it."""
    file = ROOT / "_config.yml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _commit_link(commit: str, config: Mapping[str, Any]) -> str:
    """A link to a commit; one that is unknown, or to which files were changed, is said in words."""
    known = re.fullmatch(r"([0-9a-f]{12})[0-9a-f]{28}(-dirty)?", commit)
    if not known:
        return _escape(commit)
    if known[2]:
        return f"<code>{known[1]}</code>, with changes that are not committed"
    if "repository" not in config:
        return f"<code>{known[1]}</code>"
    return f'<a href="{config["repository"]["url"]}/commit/{commit}"><code>{known[1]}</code></a>'


def _colab_link(notebook: str, config: Mapping[str, Any]) -> str:
    if "repository" not in config:
        return ""
    place, colab = config["repository"], config["launch_buttons"]["colab_url"]
    owned = urlsplit(place["url"]).path.strip("/")
    address = f"{colab}/github/{owned}/blob/{place['branch']}/notebooks/{notebook}"
    return f'<a class="button" href="{address}">Open this chapter in Colab</a>'


@cache
def _commit() -> str:
    """Commit of this package's checkout, ``-dirty`` where tracked files differ from it.

    Asked once, since a command may replace tracked results before it describes its next step.
    "unknown" and the version of the package where it is installed: also in a folder of somebody
    else's repository.
    """
    source = Path(__file__)
    own = ["ls-files", "--error-unmatch", source.name]  # fails where it is not of the repository
    commit = ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    # A hook of another repository sets these.
    here = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "env": here}
    try:
        for arguments in (own, commit):
            said = subprocess.run(["git", "-C", str(source.parent), *arguments], **options)
        return str(said.stdout).strip()
    except (OSError, subprocess.CalledProcessError):
        return f"unknown, thinkback_utils {thinkback_utils.__version__}"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    kind = "" if device.type == "cpu" else f"{device.type} of "
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known.get("amx_bf16"):
        instructions += " with AMX"
    return f"{kind}{cpu}, {threads} thread{'s' * (threads > 1)}, {instructions}"
