"""A data root of a few random images, and a run of a network that learnt nothing."""

import numpy as np
import torch

from experiments.evaluation import image_set
from experiments.run import Run
from thinkback_utils.models import WideResNet


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
