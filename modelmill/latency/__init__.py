"""How long one inference takes, and whether one model is really faster than another."""

from modelmill.latency.compare import Speedup, compare
from modelmill.latency.measure import Effort, Latency, measure

__all__ = ["Effort", "Latency", "Speedup", "compare", "measure"]
