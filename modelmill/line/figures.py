"""How figures are written on the pages: scores, milliseconds, sizes, counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

METRICS = {"top1": "top-1", "top5": "top-5", "ap50": "AP50", "ap75": "AP75", "ap": "AP"}
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Unit:
    """How the metric is written: shares of images in per cent, average precision as it is."""

    metric: str

    @property
    def label(self) -> str:
        return metric(self.metric)

    @property
    def percent(self) -> bool:
        return self.metric.startswith("top")

    def score(self, value: float) -> str:
        """87.30 %, or 0.3052."""
        return f"{100 * value:.2f}{NO_BREAK}%" if self.percent else f"{value:.4f}"

    def delta(self, value: float) -> str:
        """A difference with its sign: −0.20, or −0.0021."""
        text = f"{100 * value:+.2f}" if self.percent else f"{value:+.4f}"
        return text.replace("-", "−") if float(text) else text.lstrip("+-")

    def amount(self, value: float) -> str:
        """A difference in words: 0.20 points, or 0.0021."""
        return f"{100 * value:.2f} points" if self.percent else f"{value:.4f}"


def metric(name: str) -> str:
    return METRICS.get(name, name)


def ms(value: float) -> str:
    """Three significant digits, never scientific."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(max(digits, 0), 4)}f}"


def si(value: float) -> str:
    """269 k, 40.6 M: three digits and a prefix."""
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            scaled = value / 10**power
            return f"{scaled:.{0 if scaled >= 100 else 1 if scaled >= 10 else 2}f} {prefix}"
    return f"{value:g}"


def size(n: float) -> str:
    return f"{n / 2**20:.1f}{NO_BREAK}MiB" if n >= 2**20 else f"{n / 2**10:.0f}{NO_BREAK}KiB"


def times(value: float) -> str:
    return f"{value:.2f}×"
