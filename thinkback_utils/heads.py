"""The last layer of any classifier, found by what the model returns.

The logits that are kept are those the model returns, since they make its decision. The last layer
is a linear layer, a 1x1 convolution, or another layer with a matrix of its own. What it computes
may be averaged over heads, over runs or over places, resized to a larger map, picked at one token,
multiplied by a positive number, or turned into probabilities: see ``FORMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Runs = dict[str, list[tuple[Tensor, Tensor]]]  # input and output of each run of each layer, by name
Name = str | tuple[str, ...]
Layer = TypeVar("Layer", bound=nn.Module)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Made(NamedTuple):
    """Features (B, ..., D), logits (B, ..., K), and what the model would and did return."""

    features: Tensor
    logits: Tensor
    expected: Tensor
    returned: Tensor

    def fits(self) -> bool:
        """Whether the two are equal but for rounding."""
        low = {self.expected.dtype, self.returned.dtype} & {torch.float16, torch.bfloat16}
        a, b = self.expected.detach().float(), self.returned.detach().float()
        return bool(((a - b).abs().max() <= (2**-7 if low else 1e-5) * b.abs().max()).item())


@dataclass(frozen=True)
class Head:
    """The last layer of a model, and how its output becomes what the model returns.

    Args:
        names: of one layer, or of several whose outputs are averaged.
        form: a key of ``FORMS``.
        run: which of the layer's runs, in their order; the number after the last one is their mean.
        output: which of the tensors that the model returns.
    """

    names: tuple[str, ...]
    form: str = "returned"
    run: int = 0
    output: int = 0

    @property
    def name(self) -> Name:
        """One name, or all of them."""
        return self.names[0] if len(self.names) == 1 else self.names

    def read(
        self, runs: Runs, output: Any, layers: Mapping[str, nn.Module], check: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Features (B, ..., D) and logits (B, ..., K) of one pass, K >= 2.

        One logit z becomes (0, z).

        Args:
            runs: of the layers, from :func:`watching`.
            output: what the model returned.
            layers: by name.
            check: that this head made the output.

        Raises:
            ValueError: if it did not.
        """
        outputs, pairs = list(tensors_of(output)), _pairs(self.names, runs, layers)
        made = None
        if self.run < len(pairs) and self.output < len(outputs):
            made = FORMS[self.form](*pairs[self.run], outputs[self.output])
        if made is None or (check and not made.fits()):
            raise ValueError(
                f"thinkback: the model does not return what its head {self.name!r} computes"
            )
        z = made.logits
        return made.features, torch.cat([torch.zeros_like(z), z], -1) if z.shape[-1] == 1 else z


def find(model: nn.Module, runs: Runs, output: Any, names: tuple[str, ...] | None = None) -> Head:
    """The head of a model, by one pass of a few samples.

    Args:
        model: without wrappers.
        runs: of its layers, from :func:`watching`.
        output: what it returned.
        names: of the head, if it is known; then only its form is found.

    Raises:
        ValueError: if not exactly one layer fits; the message lists the candidates.
    """
    layers, outputs = dict(model.named_modules()), list(tensors_of(output))
    linear = [name for name, layer in layers.items() if _is_linear(layer)]
    last = [name for name in runs if name in linear]
    if names is not None:
        if missing := [name for name in names if name not in runs]:
            raise ValueError(
                f"thinkback: the model did not run its layer {missing[0]!r}; name another head"
            )
        if head := next(_fitting([names], runs, outputs, layers), None):
            return head
        raise ValueError(
            f"thinkback: the model does not return what its head {Head(names).name!r} computes;"
            f" name another head among {_listed(linear, layers)}, or say with forward=lambda model,"
            " x: ... what is returned"
        )
    others = [name for name in runs if name not in last]
    for group in (last, others):
        heads = list(_fitting([(name,) for name in group], runs, outputs, layers))
        best = [head for head in heads if head.form == heads[0].form]
        found = dict.fromkeys(head.names[0] for head in best)
        chosen = [name for name in found if not any(_contains(name, other) for other in found)]
        if len(chosen) == 1:
            return next(head for head in best if head.names == (chosen[0],))
        if chosen:
            raise ValueError(
                "thinkback: no layer is the only one returned by the model; name the head among "
                f"{_listed(chosen, layers)}"
            )
    for count in range(2, len(last) + 1):  # the last few heads, averaged
        if head := next(_fitting([tuple(last[-count:])], runs, outputs, layers), None):
            return head
    raise ValueError(
        "thinkback: no layer's output is returned by the model; name the head among"
        f" {_listed(linear, layers)}, say with forward=lambda model, x: ... what is returned, or"
        " fit on features and logits"
    )


def _fitting(
    groups: list[tuple[str, ...]], runs: Runs, outputs: list[Tensor], layers: Mapping[str, Any]
) -> Iterator[Head]:
    """Heads that made an output, in the order of forms."""
    pairs = {names: _pairs(names, runs, layers) for names in groups}
    for form, make in FORMS.items():
        for names in groups:
            for i, out in enumerate(outputs):
                for run, pair in enumerate(pairs[names]):
                    if (made := make(*pair, out)) is not None and made.fits():
                        yield Head(names, form, run, i)


@contextmanager
def watching(layers: Mapping[str, nn.Module]) -> Iterator[Runs]:
    """Copies of the input and output of each run of each layer meanwhile.

    Copies, since what follows may work on them in place.
    """
    runs: Runs = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(
            layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
        ) -> None:
            read = next(tensors_of([args, kwargs]), None)
            if isinstance(output, Tensor) and read is not None:
                runs.setdefault(name, []).append((read.clone(), output.clone()))

        return hook

    with hooked(
        layers, lambda name, layer: layer.register_forward_hook(remember(name), with_kwargs=True)
    ):
        yield runs


@contextmanager
def hooked(layers: Mapping[str, Layer], hook: Callable[[str, Layer], Any]) -> Iterator[None]:
    """Layers with a hook each, which ``hook`` registers and which are gone afterwards."""
    handles = [hook(name, layer) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_of(output: Any) -> Iterator[Tensor]:
    """All tensors in what a model returned; of a mapping that names its logits, these alone."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        yield output["logits"]
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_of(value)


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Layers by name that may be a head: linear, 1x1 convolutions, others with a matrix."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if _is_linear(layer) or _has_matrix(layer)
    }


def _is_linear(layer: nn.Module) -> bool:
    convolution = (
        isinstance(layer, CONVOLUTIONS) and set(layer.kernel_size) == {1} and layer.groups == 1
    )
    return isinstance(layer, nn.Linear) or convolution


def _has_matrix(layer: nn.Module) -> bool:
    own = [*layer._parameters.values(), *layer._buffers.values()]
    return not isinstance(layer, CONVOLUTIONS) and any(
        value is not None and value.ndim == 2 for value in own
    )


def _pairs(
    names: tuple[str, ...], runs: Runs, layers: Mapping[str, nn.Module]
) -> list[tuple[Tensor, Tensor]]:
    """Input and output of each run and, last, their mean.

    Of several layers the mean alone, as of one wide layer.
    """
    means = []
    for name in names:
        own = [_channels_last(layers[name], h, z) for h, z in runs.get(name, [])]
        own = [(h, z) for h, z in own if h.ndim == z.ndim > 1 and h.shape[:-1] == z.shape[:-1]]
        if len(names) == 1 and len(own) < 2:
            return own
        mean = _mean(own)
        if len(names) == 1:
            return [*own, mean] if mean else own
        if mean is None:
            return []
        means.append(mean)
    features, logits = zip(*means, strict=True)
    if any(z.shape != logits[0].shape for z in logits):
        return []
    return [(torch.cat(features, -1) / len(means), torch.stack(logits).mean(0))]


def _mean(runs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Mean input and mean output, where all runs are of one shape; else None."""
    if not runs or any(h.shape != runs[0][0].shape or z.shape != runs[0][1].shape for h, z in runs):
        return None
    features, logits = zip(*runs, strict=True)
    return torch.stack(features).mean(0), torch.stack(logits).mean(0)


def _channels_last(layer: nn.Module, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution's maps (B, D, ...) with the channels last, as a linear layer has them."""
    return (
        (h.movedim(1, -1), z.movedim(1, -1))
        if isinstance(layer, CONVOLUTIONS) and h.ndim > 2
        else (h, z)
    )


def _returned(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
    if out.ndim == z.ndim > 2 and out.shape != z.shape:
        out = out.movedim(1, -1)  # maps with the channels first
    if z.shape[-1] == 1 and out.shape == z.shape[:-1]:
        out = out[..., None]  # one logit, its axis squeezed away
    return Made(h, out, z, out) if z.shape == out.shape else None


def _scaled(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
    if (made := _returned(h, z, out)) is None:
        return None
    flat, other = z.float().flatten(), made.returned.float().flatten()
    factor = flat @ other / flat.square().sum().clamp_min(1e-30)
    return made._replace(expected=torch.where(factor > 0, factor * z, torch.nan).to(z.dtype))


def _pooled(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
    places = tuple(range(1, z.ndim - 1))
    if not places or out.flatten(1).shape != (z.shape[0], z.shape[-1]):
        return None
    return Made(h.mean(places), out.flatten(1), z.mean(places), out.flatten(1))


def _selected(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
    if z.ndim != 3 or out.shape != (z.shape[0], z.shape[-1]):
        return None
    place = (z == out[:, None]).all(-1).int().argmax(1)[:, None, None]
    chosen = [x.gather(1, place.expand(-1, 1, x.shape[-1])).squeeze(1) for x in (h, z)]
    return Made(chosen[0], out, chosen[1], out)


def _resized(align_corners: bool) -> Callable[[Tensor, Tensor, Tensor], Made | None]:
    """Maps brought to the size of the images: each place is a weighted mean of four.

    The same holds of features and of logits.
    """

    def form(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
        if z.ndim != 4 or out.ndim != 4 or out.shape[:2] != (z.shape[0], z.shape[-1]):
            return None
        large = [
            F.interpolate(
                x.movedim(-1, 1).float(),
                out.shape[2:],
                mode="bilinear",
                align_corners=align_corners,
            )
            for x in (h, z)
        ]
        features, expected, logits = (x.movedim(1, -1) for x in (*large, out))
        return Made(features, logits, expected, logits)

    return form


def _through(
    function: Callable[[Tensor], Tensor], classes: bool
) -> Callable[[Tensor, Tensor, Tensor], Made | None]:
    """Probabilities or their logarithms: then the logits are the layer's own output."""

    def form(h: Tensor, z: Tensor, out: Tensor) -> Made | None:
        made = _returned(h, z, out)
        if made is None or (z.shape[-1] > 1) != classes:
            return None
        return made._replace(logits=z, expected=function(z.float()).to(z.dtype))

    return form


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Made | None]] = {
    "returned": _returned,
    # the mean over places, which is that of the mean input, since the layer is linear
    "pooled": _pooled,
    "selected": _selected,  # at one place of each sample: the first or the last token, say
    "resized": _resized(align_corners=False),
    "resized to corners": _resized(align_corners=True),
    "scaled": _scaled,  # times a positive number, as normalised heads have it
    "log_softmax": _through(lambda z: z.log_softmax(-1), classes=True),
    "softmax": _through(lambda z: z.softmax(-1), classes=True),
    "sigmoid": _through(torch.sigmoid, classes=False),
    "log_sigmoid": _through(F.logsigmoid, classes=False),
}


def _contains(name: str, other: str) -> bool:
    return name != other and (not name or other.startswith(f"{name}."))


def _listed(names: list[str], layers: Mapping[str, Any]) -> str:
    sizes = []
    for name in names:
        layer = layers[name]
        ends = (
            getattr(layer, f"{end}_features", getattr(layer, f"{end}_channels", "?"))
            for end in ("in", "out")
        )
        sizes.append(f"{name!r} ({' -> '.join(map(str, ends))})")
    return ", ".join(sizes) or "none: the model has no linear layer"
