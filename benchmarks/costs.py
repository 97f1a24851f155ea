"""What scores cost at any size, by arithmetic, from three figures that :mod:`.machine` measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Rates of one machine.

    Args:
        float64, float32: operations a second of a dense product.
        memory: bytes a second that a copy reads and writes.
        network: operations a second of f(x).
    """

    float64: float
    float32: float
    memory: float
    network: float

    def score(self, batch: int, K: int, D: int) -> float:
        """Seconds of the closed form: its product or the reading of its weights, the longer one.

        >>> machine = Machine(float64=8e9, float32=16e9, memory=8e9, network=8e9)
        >>> machine.score(batch=1, K=10**3, D=10**3)
        0.001
        """
        return max(2 * batch * K * D / self.float64, 8 * K * D / self.memory)

    def head(self, batch: int, K: int, D: int) -> float:
        """Seconds of the last layer itself, in float32."""
        return max(2 * batch * K * D / self.float32, 4 * K * D / self.memory)

    def crossing(self) -> float:
        """Batch size from which on the score waits for arithmetic, no longer for memory."""
        return 4 * self.float64 / self.memory


def kept_bytes(method: str, samples: int, K: int, D: int) -> int:
    """Bytes that a fitted method holds: ours in float64, peers in float32, ViM half the axes.

    >>> kept_bytes("diagonal", 10**9, 10, 128), kept_bytes("KNN", 10**9, 10, 128)
    (10240, 512000000000)
    """
    entries = {
        "diagonal": 2 * K * D,
        "Kronecker": 2 * (K * K + D * D),
        "full": 2 * (K * D) ** 2,
        "KNN": samples * D,
        "ViM": D * (D - D // 2) + K * D + K + D,
        "Mahalanobis": K * D + 2 * D * D,
    }
    return 4 * entries[method]


def sent_bytes(workers: int, K: int, D: int) -> float:
    """Bytes that each worker sends in the one ``all_reduce`` of a fit, in float64, around a ring.

    >>> sent_bytes(1, 10, 128), sent_bytes(2, 10, 128)
    (0.0, 10248.0)
    """
    return 2 * (workers - 1) / workers * 8 * (K * D + 1)


def number(value: float) -> str:
    """Three digits, and all of them before the point.

    >>> number(0.012345), number(12345.6)
    ('0.0123', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes in three digits.

    >>> size(10240), size(5.12e11)
    ('10.2 kB', '512 GB')
    """
    unit, name = next(
        (u, n)
        for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (0, "B"))
        if count >= u
    )
    return f"{number(count / (unit or 1))} {name}"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use.

    >>> duration(0.0021), duration(90), duration(7200), duration(1e7)
    ('0.0021 s', '90 s', '2 hours', '116 days')
    """
    for unit, name in ((2 * 86400, "days"), (2 * 3600, "hours")):
        if seconds >= unit:
            return f"{number(2 * seconds / unit)} {name}"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 60:.3g} minutes"
