"""Which precision each layer gets: noise measured, cost measured, the best under a budget."""

from modelmill.search.cost import Bench, LayerTime
from modelmill.search.precision import Candidate, Choice, Goal, Notebook, Verified, choose

__all__ = [
    "Bench",
    "Candidate",
    "Choice",
    "Goal",
    "LayerTime",
    "Notebook",
    "Verified",
    "choose",
]
