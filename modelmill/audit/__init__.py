"""Training-deployment inconsistency: what a device does otherwise than training did.

A noise is a file here with a `PLUGIN`; see `modelmill.audit.noise`. The idea and the protocol are
those of SysNoise (MLSys 2023): replace one step of the pipeline by what another library does there,
leave everything else, and score again.
"""

from modelmill.audit.deployed import Stage, stages
from modelmill.audit.noise import LeftOut, Noise, Option, Subject, noises
from modelmill.audit.pipeline import FLOAT32, STAGES, Network, Pipeline, Reading, Step
from modelmill.audit.sweep import Answers, Parting, Sweep

__all__ = [
    "FLOAT32",
    "STAGES",
    "Answers",
    "LeftOut",
    "Network",
    "Noise",
    "Option",
    "Parting",
    "Pipeline",
    "Reading",
    "Stage",
    "Step",
    "Subject",
    "Sweep",
    "noises",
    "stages",
]
