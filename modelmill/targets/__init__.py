"""What each hardware or engine takes: frozen tables (one file, one target), the planner and the
checker.
"""

from modelmill.targets.planning import Planned, Verdict, check, guarded_scheme, match, plan
from modelmill.targets.rules import load_target, validate
from modelmill.targets.target import IsaGuard, Limit, OpRule, Scheme, Target

__all__ = [
    "IsaGuard",
    "Limit",
    "OpRule",
    "Planned",
    "Scheme",
    "Target",
    "Verdict",
    "check",
    "guarded_scheme",
    "load_target",
    "match",
    "plan",
    "validate",
]
