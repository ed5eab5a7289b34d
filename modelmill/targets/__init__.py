"""What each hardware or engine takes: frozen tables (one file, one target), the planner and the
checker.
"""

from modelmill.targets.planning import Planned, Verdict, check, guarded_scheme, match, plan
from modelmill.targets.target import IsaGuard, OpRule, Scheme, Target, load_target

__all__ = [
    "IsaGuard",
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
]
