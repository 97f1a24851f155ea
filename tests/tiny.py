"""Small made-up things: images, a run of a network that learnt nothing, features of classes; and
one form of a figure.
"""

from inspect import unwrap

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.evaluation import image_set
from experiments.run import Run
from thinkback_utils.features import Features
from thinkback_utils.models import WideResNet
from thinkback_utils.passes import stream


def make_images(root, sizes):
    """Sets of random images under their names in a table, in the layout of the real ones."""
    generator = np.random.default_rng(0)
    for name, size in sizes.items():
        pixels = generator.integers(256, size=(size, 32, 32, 3), dtype=np.uint8)
        np.savez(root / f"{name}.npz", images=pixels, labels=np.arange(size) % 10)


def make_run(results, names, seed=0):
    """Weights and record of a run, made from the images that the data root holds."""
    run = Run.at(results, "wrn10-1-cifar10", seed)
    torch.manual_seed(0)
    WideResNet(depth=10, width=1).save(run.weights)
    hashes = {name: image_set(name).sha256() for name in names}
    run.save_record({"images_sha256": hashes, "float16_metric_error": 0.0})
    return run


def make_features(D=24, K=6):
    """A last layer, and ``made(n, shift)``: features of its classes, the surer the larger shift."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(D, K).requires_grad_(False)
    layer.weight.copy_(torch.eye(D)[:K] - 0.1)
    layer.bias.zero_()

    def made(n, shift):
        y = torch.arange(n) % K
        h = (shift * torch.eye(D)[y] + torch.rand(n, D, generator=generator)).relu()
        return Features(h, layer(h), y)

    return layer, made


def head_of(model, images):
    """Name of the last layer that is found."""
    return next(stream(model, images)).head


def eye(size):
    """A layer whose logits are its inputs."""
    layer = nn.Linear(size, size, bias=False)
    nn.init.eye_(layer.weight)
    return layer


def drawn(plot, *given, tall=False, **more):
    """One of the two forms of a figure, without its ``two_forms``."""
    figure = Figure()
    unwrap(plot)(figure, tall, *given, **more)
    return figure
