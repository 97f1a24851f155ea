"""Which published classifiers the detector works for: without weights, on random inputs.

    python tests/survey_models.py                            # all: about an hour on two cores
    python tests/survey_models.py timm --models volo_d1_224  # some: their rows are replaced

It needs ``pip install '.[real]'`` and writes results/compatibility.json and
results/compatibility.md, one package at a time. A model works if its head is found, fit and score
run, the logits that were kept are those that the model returns, and, where the head is linear, they
are its weight times the features that were kept, plus its bias, up to a positive factor for heads
whose output the model multiplies. A model that its own package cannot build or run here says
nothing about the detector: it is listed as not tried.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import thinkback_utils as tb
from experiments.provenance import describe
from thinkback_utils.files import replacing

OUT = Path(__file__).parents[1] / "results" / "compatibility.json"
LARGEST = 30  # million parameters; torchvision's zoo is taken whole
CLASSES = 5
# whatever a model may raise; its text is the reason in the table
FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError)
FAILURES += (OSError, RuntimeError, TypeError, ValueError)
RULES = {
    "torchvision": "all models for classification and semantic segmentation of images",
    "timm": (
        f"every fourth name of each module, in the order of names, below {LARGEST} M parameters"
    ),
    "transformers": (
        "all classes for classification of images, text, tokens, audio and video, and for semantic"
        f" segmentation, that its auto tables name, below {LARGEST} M parameters in one small"
        " configuration"
    ),
    "pytorch-ood": "all networks",
}
WHY = {  # in words, for the table; the file keeps what the package said
    "EuroBert": "its logits are the mean over tokens that an attention mask chooses",
    "lraspp": "its logits are the sum of the maps of two heads, resized",
    "squeezenet": "a ReLU follows its last layer: logits are means of rectified maps",
    "volo": "it adds the maximum over tokens of a second head",
}


@dataclass(frozen=True)
class Case:
    """One model: how to make it, and the inputs for it, n at a time."""

    package: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int], Iterator[Any]]  # candidates, smallest first


@dataclass(frozen=True)
class Row:
    """What came of it: ``works`` is None where its own package could not build or run the model."""

    name: str
    works: bool | None
    head: str
    reason: str
    parameters: int = 0


class NotTriedError(Exception):
    """The package cannot build or run the model here."""


def survey(case: Case) -> Row:
    """Try one model."""
    torch.manual_seed(0)
    try:
        model, batch, returned = _made(case)
    except NotTriedError as reason:
        return Row(case.name, None, "", str(reason))
    size = sum(p.numel() for p in model.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = check(model, batch, returned)
    except FAILURES as error:
        return Row(case.name, False, "", _line(error), size)
    return Row(case.name, True, head, "", size)


def check(model: nn.Module, batch: Any, returned: Tensor) -> str:
    """Name the head of a model that returned these logits for this batch; raise what is wrong."""
    detector = tb.detector.OODDetector(model).fit([batch])
    scores, seen = detector.score([batch]), tb.features.extract(model, [batch], detector.head)
    if not scores.isfinite().all():
        raise AssertionError("a score is not finite")
    if returned.ndim > 2 and returned.shape != seen.logits.shape:
        returned = returned.movedim(1, -1)
    if returned.shape != seen.logits.shape or not _close(seen.logits, returned):
        raise AssertionError("the logits that were kept are not those that the model returns")
    names = (detector.head,) if isinstance(detector.head, str) else detector.head
    layers = [model.get_submodule(name) for name in names or ()]
    if all(isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) for layer in layers):
        weights = [layer.weight.flatten(1) for layer in layers]
        biases = [layer.bias.detach().float() for layer in layers if layer.bias is not None]
        # several layers are averaged: one wide layer reads the features of all, each divided by
        # their number
        z = seen.features @ torch.cat(weights, 1).detach().T.float() + sum(biases) / len(layers)
        factor = (z * seen.logits).sum() / z.square().sum() if z.shape == seen.logits.shape else 0
        if not factor > 0 or not _close(factor * z, seen.logits):
            raise AssertionError("the head's weight times the features is not the logits")
    return " and ".join(type(layer).__name__ for layer in layers)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a.float(), b.float(), 1e-3, 1e-3 * float(b.abs().max()))


def _made(case: Case) -> tuple[nn.Module, Any, Tensor]:
    """The model, a batch that it takes and the logits it returns for that."""
    reason = ""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            model = case.build().eval()
            _start(model)
        except FAILURES as error:
            raise NotTriedError(f"not built: {_line(error)}") from error
        for many in case.inputs(model, 16):
            batch = (
                {name: x[:2] for name, x in many.items()} if isinstance(many, Mapping) else many[:2]
            )
            try:
                first, again = _run(model, batch), _run(model, batch)
                if not 1e-20 < float(first.abs().max()) < 100:
                    _settle(model, many)
                    first, again = _run(model, batch), _run(model, batch)
            except FAILURES as error:
                reason = reason or f"does not run: {_line(error)}"
                continue
            if not torch.allclose(first, again, equal_nan=True):
                raise NotTriedError("answers the same input differently each time")
            if not first.isfinite().all():
                raise NotTriedError("gives logits that are not finite, without its weights")
            return model, batch, first
    raise NotTriedError(reason)


def _run(model: nn.Module, batch: Any) -> Tensor:
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    if isinstance(output, Mapping):
        output = next((output[name] for name in ("logits", "out") if name in output), None)
    if isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError("it returns no tensor of logits")
    return output


def _start(model: nn.Module) -> None:
    """Give random weights to layers that start at zero, as some heads do: zeros hide errors."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)


def _settle(model: nn.Module, batch: Any) -> None:
    """Give each BatchNorm the statistics of its inputs, where signals became tiny or huge."""
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
            layer.momentum = None  # a plain average, of this one batch
    _run(model, batch)
    model.eval()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text if text.startswith("thinkback: ") else f"{type(error).__name__}: {text}"


def _images(
    sizes: Any, key: str | None = None, channels: int = 3
) -> Callable[[nn.Module, int], Iterator[Any]]:
    """Random images, square, of each size in turn; under a key, as a mapping."""

    def inputs(model: nn.Module, n: int) -> Iterator[Any]:
        for side in sizes(model) if callable(sizes) else sizes:
            x = torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))
            yield x if key is None else {key: x}

    return inputs


def torchvision_cases() -> Iterator[Case]:
    """The whole zoo; transformers are built for the smallest images that their patches allow."""
    models = tb.data.import_torchvision().models

    def build(name: str, **options: Any) -> nn.Module:
        if name.startswith("vit_"):
            options["image_size"] = 2 * int(name.split("_")[2])
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # truncated normals take minutes
        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    def sides(model: nn.Module) -> list[int]:
        return [getattr(model, "image_size", 64), 96, 128, 224, 299]

    for name in models.list_models(module=models):
        yield Case("torchvision", name, partial(build, name), _images(sides))
    for name in models.list_models(module=models.segmentation):
        yield Case("torchvision", name, partial(build, name, weights_backbone=None), _images([64]))


def timm_cases() -> Iterator[Case]:
    """A quarter of it, without a choice of ours."""
    tb.data.import_torchvision()  # which timm would import plainly
    timm = importlib.import_module("timm")
    for module in timm.list_modules():
        for name in sorted(timm.list_models(module=module))[::4]:
            yield timm_case(name)


def timm_case(name: str) -> Case:
    """Any of its models, at the smallest images that it takes."""
    timm = importlib.import_module("timm")

    def build() -> nn.Module:
        with torch.device("meta"):
            _small(timm.create_model(name, num_classes=CLASSES))
        return timm.create_model(name, num_classes=CLASSES)

    def inputs(model: nn.Module, n: int) -> Iterator[Any]:
        config = model.default_cfg
        channels, *sides = config["input_size"]
        small = [config.get("min_input_size", (3, 64))[-1], 64, 96, 128, 160]
        small = [] if config.get("fixed_input_size") else small
        return _images([*sorted(set(small)), max(sides)], channels=channels)(model, n)

    return Case("timm", name, build, inputs)


def transformers_cases() -> Iterator[Case]:
    """Every class of the auto tables, from one small configuration."""
    tb.data.import_torchvision()
    transformers = importlib.import_module("transformers")
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    configs, hub = transformers.CONFIG_MAPPING, importlib.import_module("huggingface_hub.errors")
    transformers.logging.set_verbosity_error()
    kinds = {
        "IMAGE_CLASSIFICATION": _pixels,
        "SEMANTIC_SEGMENTATION": _pixels,
        "SEQUENCE_CLASSIFICATION": _tokens,
        "TOKEN_CLASSIFICATION": _tokens,
        "AUDIO_CLASSIFICATION": _sounds,
        "VIDEO_CLASSIFICATION": _films,
    }
    known = set()
    for kind, inputs in kinds.items():
        for family, names in getattr(tables, f"MODEL_FOR_{kind}_MAPPING_NAMES").items():
            for name in [names] if isinstance(names, str) else names:
                if name in known:  # of two families
                    continue
                known.add(name)

                def build(name: str = name, family: str = family) -> nn.Module:
                    made = getattr(transformers, name)
                    try:
                        config = configs[family](**_small_options(family))
                    except hub.StrictDataclassError as error:
                        raise ValueError(_line(error)) from error
                    with torch.device("meta"):
                        _small(made(config))
                    return made(config)

                yield Case("transformers", name, build, inputs)


def pytorch_ood_cases() -> Iterator[Case]:
    """Its networks, at the size of images that each is made for."""
    tb.data.import_torchvision()
    models = importlib.import_module("pytorch_ood.model")

    def tokens(model: nn.Module, n: int) -> Iterator[Tensor]:
        yield torch.randint(30, (n, 7), generator=torch.Generator().manual_seed(1))

    for name, side in (("WideResNet", 32), ("ResNet18", 64), ("ResNet50", 64)):
        build = partial(getattr(models, name), num_classes=CLASSES)
        yield Case("pytorch-ood", name, build, _images([side]))
    build = partial(models.GRUClassifier, CLASSES, n_vocab=30)
    yield Case("pytorch-ood", "GRUClassifier", build, tokens)


CASES = {
    "torchvision": torchvision_cases,
    "timm": timm_cases,
    "transformers": transformers_cases,
    "pytorch-ood": pytorch_ood_cases,
}


def _small(model: nn.Module) -> None:
    size = sum(p.numel() for p in model.parameters()) / 1e6
    if size >= LARGEST:
        raise RuntimeError(f"{size:.0f} M parameters")


def _small_options(family: str) -> dict[str, Any]:
    """One small configuration for all families of transformers, and what some ask for beside it."""
    common = {"num_labels": CLASSES, "vocab_size": 99, "max_position_embeddings": 64}
    common |= {"hidden_size": 32, "d_model": 32, "intermediate_size": 64, "head_dim": 8}
    common |= {"num_hidden_layers": 2, "num_layers": 2}
    common |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    common |= {"image_size": 32, "patch_size": 8}
    common |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    without = dict.fromkeys  # None removes an option
    both = {"vision_config": common, "text_config": common, "projection_dim": 32}
    own: dict[str, dict[str, Any]] = {
        "beit": {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4},
        "data2vec-vision": {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3]},
        "clip": both,
        "falcon": {"head_dim": None},
        "funnel": {"num_hidden_layers": None},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "gptj": {"rotary_dim": 8},
        "layoutlmv3": {"coordinate_size": 4, "shape_size": 4, "input_size": 32},
        "metaclip_2": both,
        "perceiver": {"num_latents": 8, "d_latents": 32}
        | without(["d_model", "num_hidden_layers"]),
        "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
        "reformer": {"axial_pos_embds": False},
        "siglip": both,
        "siglip2": both,
        "squeezebert": {"embedding_size": 32},
        "xlnet": {"n_head": 4, "d_head": 8}
        | without(["max_position_embeddings", "num_attention_heads"]),
    }
    # sizes by stage
    pyramids = ["donut-swin", "hiera", "levit", "pvt", "pvt_v2", "segformer", "swin", "swinv2"]
    alone = (*pyramids, "bit", "convnext", "cvt", "convnextv2", "dpt", "regnet")
    chosen = {"num_labels": CLASSES} if family in alone else {**common, **own.get(family, {})}
    return {name: value for name, value in chosen.items() if value is not None}


def _pixels(model: nn.Module, n: int) -> Iterator[dict[str, Tensor]]:
    sides = [32, 64, 128, 224, 512]
    own = getattr(model.config, "image_size", None)
    if isinstance(own, int):
        sides.insert(0, own)
    return _images(sides, "pixel_values", getattr(model.config, "num_channels", 3))(model, n)


def _tokens(model: nn.Module, n: int) -> Iterator[dict[str, Tensor]]:
    """Sequences of different lengths, each ended and filled up with padding on the right."""
    ids = torch.randint(3, 90, (n, 16), generator=torch.Generator().manual_seed(1))
    lengths = 16 - 3 * (torch.arange(n) % 5)
    ids[torch.arange(n), lengths - 1] = 2
    mask = (torch.arange(16) < lengths[:, None]).long()
    taken = inspect.signature(model.forward).parameters
    batch = {"input_ids": ids * mask, "attention_mask": mask, "bbox": torch.zeros(n, 16, 4).long()}
    yield {name: value for name, value in batch.items() if name in taken and name != "bbox"}
    yield {name: value for name, value in batch.items() if name in taken}
    yield {"inputs": ids * mask, "attention_mask": mask}


def _sounds(model: nn.Module, n: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    yield {"input_values": torch.randn(n, 4000, generator=generator)}
    yield {"input_features": torch.randn(n, 80, 3000, generator=generator)}
    yield {"input_features": torch.randn(n, 50, 160, generator=generator)}
    yield {"input_values": torch.randn(n, 1024, 128, generator=generator)}


def _films(model: nn.Module, n: int) -> Iterator[dict[str, Tensor]]:
    frames, generator = getattr(model.config, "num_frames", 8), torch.Generator().manual_seed(1)
    for name in ("pixel_values", "pixel_values_videos"):
        yield {name: torch.randn(n, frames, 3, 32, 32, generator=generator)}


def write(package: str, rows: list[Row], path: Path) -> None:
    """Replace one package's part of the file, and the table beside it."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    versions = {package: importlib.import_module("importlib.metadata").version(package)}
    provenance = describe()
    provenance["versions"] |= versions
    whole[package] = {
        "rule": RULES[package],
        "provenance": provenance,
        "models": [asdict(row) for row in rows],
    }
    whole = {name: whole[name] for name in CASES if name in whole}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(table(whole), encoding="utf-8")


def table(whole: Mapping[str, Any]) -> str:
    """How many of each package work, and each that does not, with the reason."""
    lines = ["| package | version | models | works for |", "|---|---|---|---|"]
    failed = []
    for package, part in whole.items():
        tried = [row for row in part["models"] if row["works"] is not None]
        works = sum(row["works"] for row in tried)
        version = part["provenance"]["versions"][package]
        lines.append(f"| {package} | {version} | {part['rule']} | {works} of {len(tried)} |")
        for row in tried:
            if not row["works"]:
                known = (text for start, text in WHY.items() if row["name"].startswith(start))
                why = next(known, row["reason"])
                failed.append(f"| {package} | `{row['name']}` | {why} |")
    if failed:
        lines += ["", "| package | does not work | reason |", "|---|---|---|", *failed]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Survey the packages that the command names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument(
        "--models", nargs="*", help="these alone, in the place of their rows in the file"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    for package in arguments.packages or CASES:
        start, rows = time.perf_counter(), {}
        if arguments.models is not None:
            whole = json.loads(arguments.out.read_text(encoding="utf-8"))
            rows = {row["name"]: Row(**row) for row in whole[package]["models"]}
        for case in CASES[package]():
            if arguments.models is None or case.name in arguments.models:
                row = rows[case.name] = survey(case)
                outcome = {True: "works:", False: "fails:", None: "not tried:"}[row.works]
                print(package, row.name, outcome, row.reason or row.head, flush=True)
        write(package, list(rows.values()), arguments.out)
        print(f"{package}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
