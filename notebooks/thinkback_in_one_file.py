"""Thinkback in one file: from CIFAR-10 to the table, with torch and NumPy alone.

    python thinkback_in_one_file.py --data DATA                        # trains, then evaluates
    python thinkback_in_one_file.py --data DATA --weights weights.safetensors     # evaluates

DATA is a folder of image sets, one file each: cifar10-train.npz and cifar10-test.npz with
"images" uint8 (N, 32, 32, 3) and "labels" (N,), and any number of other sets, svhn.npz say.
Training takes minutes on a GPU and hours on a few CPU cores. The book's own network lies in
results/wrn40-2-cifar10/seed0/weights.safetensors.

Read from top to bottom: network, training, features, four scores, four metrics, table. Shapes:
N images, D = 128 features, K = 10 classes. A score is higher for inputs that are more OOD.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)  # of CIFAR-10, by channel
STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# ---- The network: WRN-40-2 (Zagoruyko & Komodakis 2016) ----


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, and the input added to the result."""

    def __init__(self, inputs, outputs, stride, dropout):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = dropout
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        b = F.relu(self.bn2(self.conv1(a)))
        if self.dropout:
            b = F.dropout(b, self.dropout, self.training)
        return self.conv2(b) + (x if self.shortcut is None else self.shortcut(a))


class WideResNet(nn.Module):
    """Images in [0, 1], float (N, 3, H, W), to features (N, D) and logits (N, K)."""

    def __init__(self, depth=40, width=2, classes=10, dropout=0.3):
        super().__init__()
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        blocks = []
        for stage in range(3):
            for i in range((depth - 4) // 6):
                inputs = channels[stage] if i == 0 else channels[stage + 1]
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(Block(inputs, channels[stage + 1], stride, dropout))
        self.stages = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def features(self, x):
        x = self.stem((x - self.mean) / self.std)
        return F.relu(self.bn(self.stages(x))).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def read_safetensors(path):
    """Tensors by name. The file is a length, a JSON header, and the bytes of the tensors."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    kinds = {"F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data[start + begin : start + end], dtype=kinds[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


# ---- Training: SGD with cosine annealing, random crops and mirrored images ----


def augmented_batches(images, labels, batch_size, seed):
    """Every image once: shifted by up to 4 pixels, and mirrored with probability 1/2."""
    n, side = len(labels), images.shape[-1]
    pad = side // 8
    padded = F.pad(images, [pad] * 4).permute(0, 2, 3, 1).contiguous()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    top = torch.randint(2 * pad + 1, (n,), generator=generator)
    left = torch.randint(2 * pad + 1, (n,), generator=generator)
    mirrored = torch.randint(2, (n,), generator=generator).bool()
    span = torch.arange(side)
    for index in order.split(batch_size):
        rows = top[index, None] + span
        columns = torch.where(mirrored[index, None], span.flip(0), span) + left[index, None]
        crop = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        yield crop.permute(0, 3, 1, 2).float() / 255, labels[index]


def train(model, images, labels, epochs=100, batch_size=128, peak_lr=0.1, seed=0):
    """Train in place on images uint8 (N, 3, H, W)."""
    model.to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), peak_lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = math.ceil(len(labels) / batch_size)
    for epoch in range(epochs):
        torch.manual_seed(seed * 100_003 + epoch)  # of dropout
        batches = augmented_batches(images, labels, batch_size, seed * 100_003 + epoch)
        for step, (x, y) in enumerate(batches):
            done = (epoch * steps + step) / (epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = peak_lr * (1 - math.cos(math.pi * (1 - done))) / 2
            loss = F.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {epochs}: loss of the last batch {loss.item():.3f}")
    model.eval()


# ---- Features and logits: one forward pass feeds every score ----


@torch.no_grad()
def extract(model, images):
    """Features (N, D) and logits (N, K) in float64."""
    model.to(DEVICE, memory_format=torch.channels_last).eval()
    features = []
    for x in images.split(256):
        x = x.to(DEVICE, memory_format=torch.channels_last).float() / 255
        features.append(model.features(x))
    h = torch.cat(features)
    return h.double().cpu(), model.fc(h).double().cpu()


# ---- Scores ----


def residual(z, temperature):
    """r = (p - y) / T, (N, K): y is 1 for the class that the network decides for, else 0."""
    p = (z / temperature).softmax(1)
    decision = F.one_hot(z.argmax(1), z.shape[1]).bool()
    others = p.masked_fill(decision, 0)
    # For the decision, p - 1 loses all digits of a sure network: minus the sum of the others.
    return torch.where(decision, -others.sum(1, keepdim=True), others) / temperature


class Thinkback:
    """The paper's score: sum over the last weights of (gradient of the decision)^2 / E.

    The decision is taken as the truth. The gradient of its loss in the weight from feature d to
    class k is r_k h_d. E is the mean of its square over the training data (a diagonal Fisher).
    """

    def __init__(self, h, z, temperature=5.0, eps=1e-16):
        self.temperature, self.eps = temperature, eps
        self.E = residual(z, temperature).square().T @ h.square() / len(h)  # (K, D)

    def __call__(self, h, z):
        r = residual(z, self.temperature)
        return (r.square() * (h.square() @ (1 / (self.eps + self.E)).T)).sum(1)


def inverse_root(M, damping):
    """R with R R^T = (M + damping * mean eigenvalue * I)^-1."""
    values, vectors = torch.linalg.eigh(M)
    return vectors / (values.clamp(min=0) + damping * values.mean()).sqrt()


class AveragedThinkback:
    """The book's repaired score: directions of features, all labels, a Kronecker Fisher.

    Features are scaled to length 1 and get a constant 1 for the bias. The Fisher is A (x) B, with
    A = mean r r^T and B = mean h h^T. Every label y counts with its probability p_y, in place of
    the decision alone: sum_y p_y |A^-1/2 (p - y)|^2 / T^2, times |B^-1/2 h|^2.
    """

    def __init__(self, h, z, temperature=3.0, damping=0.1):
        self.temperature = temperature
        r, u = residual(z, temperature), self.unit(h)
        A = inverse_root(r.T @ r / len(r), damping)
        self.distances = torch.cdist(A, A).square()  # between labels, (K, K)
        self.B = inverse_root(u.T @ u / len(u), damping)

    @staticmethod
    def unit(h):
        return torch.cat([F.normalize(h), torch.ones_like(h[:, :1])], 1)

    def __call__(self, h, z):
        p = (z / self.temperature).softmax(1)
        # A mean of squared distances to the mean is half the mean of those between pairs.
        labels = ((p @ self.distances) * p).sum(1) / 2 / self.temperature**2
        return labels * (self.unit(h) @ self.B).square().sum(1)


# ---- Metrics: OOD is the positive class ----


def curve(inside, outside):
    """False and true positive rates (2, points) from (0, 0) to (1, 1), by falling threshold."""
    scores = np.concatenate([inside, outside])
    positive = np.repeat([0.0, 1.0], [len(inside), len(outside)])
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]), 1))  # of each run of equal scores
    tpr = positive[order].cumsum()[last] / len(outside)
    fpr = (1 - positive[order]).cumsum()[last] / len(inside)
    return np.append(0, fpr), np.append(0, tpr)


def metrics(inside, outside, prevalence=1 / 6):
    """TPR10, FPR95, AUROC, AUPR in [0, 1]; prevalence is the share of OOD images for AUPR."""
    fpr, tpr = curve(inside, outside)
    area = (np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum()
    precision = prevalence * tpr[1:]
    precision = precision / (precision + (1 - prevalence) * fpr[1:])
    return {
        "tpr10": tpr[fpr <= 0.10].max(),
        "fpr95": fpr[(tpr >= 0.95).argmax()],
        "auroc": area,
        "aupr": (np.diff(tpr) * precision).sum(),
    }


# ---- The table ----


def load(path):
    """Images uint8 (N, 3, 32, 32), and labels (N,) if there are any."""
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).permute(0, 3, 1, 2).contiguous()
        return images, torch.from_numpy(file["labels"]).long() if "labels" in file else None


def evaluate(model, folder):
    """Metrics by set and score, for every set of the folder but the two of CIFAR-10."""
    folder = Path(folder)
    fit = extract(model, load(folder / "cifar10-train.npz")[0])
    scores = {
        "Softmax": lambda h, z: -z.softmax(1).amax(1),
        "Energy": lambda h, z: -z.logsumexp(1),
        "Thinkback": Thinkback(*fit),
        "Averaged": AveragedThinkback(*fit),
    }
    test = extract(model, load(folder / "cifar10-test.npz")[0])
    inside = {name: score(*test).numpy() for name, score in scores.items()}
    table = {}
    for path in sorted(folder.glob("*.npz")):
        if not path.stem.startswith("cifar10-"):
            other = extract(model, load(path)[0])
            for name, score in scores.items():
                table[path.stem, name] = metrics(inside[name], score(*other).numpy())
    return table


def main():
    parser = argparse.ArgumentParser(description="Thinkback, from CIFAR-10 to the table.")
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz image sets")
    parser.add_argument("--weights", type=Path, help="trained weights; without: train first")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = WideResNet()
    if options.weights:
        model.load_state_dict(read_safetensors(options.weights))
    else:
        train(model, *load(options.data / "cifar10-train.npz"))
    for (name, score), row in evaluate(model, options.data).items():
        print(f"{name:16} {score:10}", *(f"{metric} {100 * v:5.1f}" for metric, v in row.items()))


if __name__ == "__main__":
    main()
