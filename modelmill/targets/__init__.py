"""What each hardware or engine takes: frozen tables (one file, one target), the planner and the
checker.
"""

from modelmill.targets.bits import (
    LayerBits,
    at_precision,
    bits_in_words,
    layer_bits,
    with_bits,
)
from modelmill.targets.planning import Planned, Verdict, check, guarded_scheme, match, plan
from modelmill.targets.rules import load_target, validate
from modelmill.targets.target import IsaGuard, Limit, OpRule, Scheme, Target

__all__ = [
    "IsaGuard",
    "LayerBits",
    "Limit",
    "OpRule",
    "Planned",
    "Scheme",
    "Target",
    "Verdict",
    "at_precision",
    "bits_in_words",
    "check",
    "guarded_scheme",
    "layer_bits",
    "load_target",
    "match",
    "plan",
    "validate",
    "with_bits",
]
