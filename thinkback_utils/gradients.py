"""Exact per-sample gradients below the last layer: other readings of "penultimate layer"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arrays import as_matrix, doubled
from .batches import Batch, Images, batches
from .heads import hooked, watching
from .passes import Reader, evaluating
from .scores import inverse_diagonal, residual

READINGS = {
    "A": "weight of the last linear layer",
    "B": "weight and bias of the last linear layer",
    "C": "activations that the last linear layer reads",
    "D": "scale and shift of the last BatchNorm",
    "E": "weight of the last convolution",
    "all": "every parameter of the network",
}
_KINDS: dict[str, type[nn.Module]] = {"C": nn.Linear, "D": nn.BatchNorm2d, "E": nn.Conv2d}


def activation_gradients(logits: Tensor, weight: Tensor, temperature: float = 5.0) -> Tensor:
    """Reading C in closed form: ``dL/dh = W^T r``, float64 (N, D).

    Of logits (N, K) and the weight (K, D) of the head.
    """
    r = residual(as_matrix("logits", logits), temperature)
    return r @ doubled(weight).to(r.device)


def gradients(
    model: nn.Module,
    x: Tensor,
    readings: Sequence[str] = ("C", "D", "E"),
    layers: Mapping[str, str] | None = None,
    temperature: float = 5.0,
) -> dict[str, Tensor]:
    """Per-sample gradients of ``-log softmax(z / T)_yhat``, in evaluation mode.

    The label yhat is the network's own decision. One forward pass serves C, D and E. Its graph
    begins at the first of their layers, so the one backward pass that follows is short; it starts
    from the residual ``r = dL/dz``, which loses no digits of a confident sample. With x the layer's
    input and s the slope of the loss in its output, sums running over positions l of the feature
    map:

    - C: ``W^T r``;
    - D: scale ``sum_l s_cl xhat_cl``, xhat the normalised input, and shift ``sum_l s_cl``;
    - E: ``sum_l s_ol u_il``, u the patches of x under the kernel;
    - all: every parameter, by ``vmap(grad)``.

    Args:
        model: any classifier whose logits come out of an ``nn.Linear``.
        x: images as the model reads them, float (N, 3, H, W).
        readings: keys of ``READINGS`` among C, D, E and all.
        layers: names of modules by reading, where the last ones in a forward pass are not meant; C
            names the head.
        temperature: T > 0.

    Returns: ``{reading: (N, P)}``: P = D, twice the channels, the kernel's size, the number of all
        parameters.

    Raises:
        ValueError: on an unknown reading, or a layer that is absent, of another kind, or runs more
            than once.

    Source: Yang & Rossi (2021), Eq. 7, read in four more ways.

    >>> body = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    >>> net = nn.Sequential(*body, nn.Linear(16, 5))
    >>> {reading: tuple(g.shape) for reading, g in gradients(net, torch.rand(2, 3, 4, 4)).items()}
    {'C': (2, 16), 'D': (2, 8), 'E': (2, 108)}
    """
    with _frozen(model), torch.enable_grad():
        chosen = _chosen(model, x, readings, layers)
        deep = [reading for reading in readings if reading in ("D", "E")]
        with _watching(
            {reading: chosen[reading] for reading in {"C": 0, **dict.fromkeys(deep)}}
        ) as calls:
            model(x)
        for reading, runs in calls.items():
            if len(runs) != 1:
                raise ValueError(
                    f"thinkback: the layer of reading {reading} ran {len(runs)} times, expected"
                    " once"
                )
        z = calls["C"][0][1]
        r = residual(z.detach(), temperature)
        outputs = [calls[reading][0][1] for reading in deep]
        slopes = torch.autograd.grad(z, outputs, r.to(z), allow_unused=True) if deep else ()
        found: dict[str, Tensor] = {"C": r @ doubled(chosen["C"].weight)}
        for reading, slope in zip(deep, slopes, strict=True):
            if slope is None:
                raise ValueError(
                    f"thinkback: the logits do not depend on the layer of reading {reading}; name"
                    " another"
                )
            found[reading] = _PER_SAMPLE[reading](chosen[reading], calls[reading][0][0], slope)
        if "all" in readings:
            found["all"] = _every_parameter(model, x, chosen["C"], temperature)
    return {reading: found[reading] for reading in readings}


def squared_gradients(
    model: nn.Module,
    images: Images,
    readings: Sequence[str] = ("C", "D", "E"),
    layers: Mapping[str, str] | None = None,
    temperature: float = 5.0,
    batch_size: int = 128,
) -> Iterator[dict[str, Tensor]]:
    """Stream ``{reading: squares float64 (B, P)}`` over images.

    Images are as :func:`features.extract` takes them. Feed them to :class:`MeanSquare` on training
    images, and to :func:`score`. All parameters of a WRN-40-2 are 2.2 million a sample: 36 MB while
    they are squared, so keep ``batch_size`` near 16 there.
    """
    for batch in batches(images, model, batch_size):
        (x,) = batch.args
        if layers is None or not {"C", *readings} - {"all"} <= set(layers):
            layers = find_layers(model, x[:2], layers)
        yield {
            reading: doubled(g).square()
            for reading, g in gradients(model, x, readings, layers, temperature).items()
        }


class MeanSquare:
    """E of any layer: the streaming mean of squared gradients.

    As ``DiagonalFisher`` is for the last linear layer.

    >>> MeanSquare().update(torch.tensor([[1.0, 4.0], [3.0, 0.0]])).compute()
    tensor([2., 2.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None  # (P,) float64

    def update(self, squares: Tensor) -> MeanSquare:
        """Add a batch of squared per-sample gradients, (N, P)."""
        batch = doubled(squares).sum(0)
        if self._sum is not None and self._sum.shape != batch.shape:
            raise ValueError(
                f"thinkback: this mean holds {len(self._sum)} weights, the batch has {len(batch)}"
            )
        self._sum = batch if self._sum is None else self._sum + batch
        self.count += len(squares)
        return self

    def compute(self) -> Tensor:
        """E, float64 (P,): the mean squared gradient of each weight."""
        if self._sum is None:
            raise ValueError("thinkback: the mean has seen no data; call update(squares) first")
        return self._sum / self.count


def score(
    squares: Tensor, expected: Tensor | None = None, eps: float = 1e-16, damping: float = 0.0
) -> Tensor:
    """Eq. 5 without E, ``sum_p g_p^2``; Eq. 6 with it, each term divided by its own E.

    Eq. 6 is ``sum_p g_p^2 / (eps + damping mean(E) + E_p)``.

    Args:
        squares: g^2, float (N, P), of one reading.
        expected: E, (P,), from :class:`MeanSquare` on training images.
        eps, damping: absolute floor and relative floor under E, as in ``scores.thinkback``.

    Returns:
        float64 (N,), non-negative, higher = more OOD.

    Raises:
        ValueError: on arrays that disagree on P, a negative floor, or a floor of 0 under a zero of
            E.

    >>> score(torch.tensor([[1.0, 4.0]]), torch.tensor([2.0, 2.0]))
    tensor([2.5000], dtype=torch.float64)
    """
    if expected is None:
        return doubled(squares).sum(1)
    if expected.shape != squares.shape[1:]:
        raise ValueError(
            f"thinkback: squares {tuple(squares.shape)} and E {tuple(expected.shape)} disagree on P"
        )
    squares = doubled(squares)
    return squares @ inverse_diagonal(expected[None], eps, damping)[0].to(squares.device)


@torch.no_grad()
def find_layers(
    model: nn.Module, x: Tensor, layers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Name the head (C), the last BatchNorm (D) and the last convolution (E) of a model.

    Last is meant in the order of a forward pass over x. Names given in ``layers`` stand. A kind
    that the model lacks is left out.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> find_layers(net, torch.rand(2, 3, 2, 2))
    {'C': '3'}
    """
    kinds: Any = tuple(_KINDS.values())
    watched = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    with evaluating(model), watching(watched) as runs:
        model(x.clone())
        given = dict(layers or {})
        if "C" not in given:
            head = Reader(model).find(Batch((x,), size=len(x)))
            given["C"] = head.names[0]
    ran = {
        reading: [n for n in runs if isinstance(watched[n], kind)]
        for reading, kind in _KINDS.items()
    }
    found = {reading: names[-1] for reading, names in ran.items() if names} | given
    return {reading: found[reading] for reading in _KINDS if reading in found}


def _chosen(
    model: nn.Module, x: Tensor, readings: Sequence[str], layers: Mapping[str, str] | None
) -> dict[str, Any]:
    """The layer of each reading."""
    unknown = set(readings) - {*_KINDS, "all"}
    if unknown or not readings:
        raise ValueError(
            f"thinkback: readings are some of {[*_KINDS, 'all']}, got {list(readings)}"
        )
    needed = {"C", *readings} - {"all"}
    names = dict(layers or {}) if needed <= set(layers or {}) else find_layers(model, x[:2], layers)
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for reading in sorted(needed):
        kind: Any = _KINDS[reading]
        layer = modules.get(names.get(reading, ""))
        if reading not in names or layer is None or not isinstance(layer, kind):
            what = f"is {names[reading]!r}" if reading in names else "is not in the model"
            raise ValueError(
                f"thinkback: reading {reading} needs an nn.{kind.__name__}, but its layer {what}; "
                f"name one in layers={{{reading!r}: ...}}"
            )
        _check(reading, layer)
    return {reading: modules[names[reading]] for reading in needed}


def _check(reading: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.BatchNorm2d) and (layer.running_mean is None or not layer.affine):
        raise ValueError(
            f"thinkback: reading {reading} needs a BatchNorm with scale, shift and running"
            " statistics"
        )
    if isinstance(layer, nn.Conv2d):
        plain = (
            layer.groups == 1
            and not isinstance(layer.padding, str)
            and layer.padding_mode == "zeros"
        )
        if not plain:
            raise ValueError(
                f"thinkback: reading {reading} needs groups=1 and zero padding as a number, got"
                f" {layer}"
            )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, no parameter in the graph; restore both afterwards."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        with evaluating(model):
            yield
    finally:
        for parameter, requires_grad in wanted.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def _watching(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Input and output of each run of each layer; the graph starts at their first output."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {reading: [] for reading in layers}

    def hook_of(reading: str) -> Callable[..., Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output.requires_grad_()
            calls[reading].append((inputs[0].detach().clone(), output))
            return output.clone()  # what follows may be a ReLU that works in place

        return hook

    with hooked(layers, lambda reading, layer: layer.register_forward_hook(hook_of(reading))):
        yield calls


def _batchnorm(layer: Any, x: Tensor, slope: Tensor) -> Tensor:
    mean = layer.running_mean[:, None, None]
    scale = (layer.running_var + layer.eps).rsqrt()[:, None, None]
    return torch.cat([(slope * (x - mean) * scale).sum((2, 3)), slope.sum((2, 3))], 1)


def _convolution(layer: Any, x: Tensor, slope: Tensor) -> Tensor:
    # (N, in kh kw, L)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return torch.einsum("nol,nil->noi", slope.flatten(2), patches).flatten(1)


_PER_SAMPLE: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "D": _batchnorm,
    "E": _convolution,
}


def _every_parameter(model: nn.Module, x: Tensor, head: nn.Module, temperature: float) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(lambda *call: kept.append(call[2]))

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        kept.clear()
        with hooked({"head": head}, keep):
            torch.func.functional_call(model, parameters, (image[None],))
        z = kept[-1]
        r = residual(z.detach(), temperature).to(z)
        return (z * r).sum()  # its gradient is that of L: r is held fixed

    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
    return torch.cat([g.flatten(1) for g in per_sample.values()], 1)
