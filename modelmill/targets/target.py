"""What a target is: data that says which operators an engine runs on integers, in which formats,
and on which CPUs.

A target is one frozen value in one file. Nothing here computes; `planning` reads it. Every claim
carries its source.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from modelmill.numerics import Arithmetic, QuantSpec

Role = Literal["activation", "weight", "bias", "float"]


@dataclass(frozen=True)
class Limit:
    """A range that a number of the node must lie in.

    what: an attribute of the operator, each number of which counts, or a quantity that `limits`
    measures: input_channels, output_channels, channels_per_group (1: depthwise),
    outputs_per_group, weights_per_output, constant_inputs, rank. low, high: both inclusive. why:
    the reason, or its source.
    """

    what: str
    low: float = -math.inf
    high: float = math.inf
    why: str = ""

    @property
    def range(self) -> str:
        """The range in words."""
        if self.low == self.high:
            return f"{self.low:g} only"
        ends = [f"at least {self.low:g}"] if self.low > -math.inf else []
        return " and ".join(ends + ([f"at most {self.high:g}"] if self.high < math.inf else []))


@dataclass(frozen=True)
class OpRule:
    """When and how an engine runs one operator on integers.

    op: ONNX op type.
    inputs: what each input must be; a missing tail means "float" (left as it is). `variadic`
    repeats the last one.
    output: "activation", its own encoding; "same", the encoding of input 0, or of all inputs of a
        variadic op (it only moves codes); "float", the engine hands floats on.
    float_output: the engine can also hand floats on, so an output that only floats want needs no
    quantization.
    anchor: worth quantizing on its own account. Other ops are run on integers only where their
    inputs already are.
    attributes: attribute name and the values for which the rule holds.
    constants: (input index, number): that input must be absent or a constant full of this number.
    limits: ranges of sizes for which the rule holds.
    note: what to tell the user about it.
    """

    op: str
    inputs: tuple[Role, ...]
    output: Literal["activation", "same", "float"] = "activation"
    float_output: bool = False
    anchor: bool = False
    variadic: bool = False
    attributes: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    constants: tuple[tuple[int, float], ...] = ()
    limits: tuple[Limit, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Scheme:
    """The formats of one precision. A weight spec with an axis means: one scale per output channel,
    wherever it lies.
    """

    precision: str
    activation: QuantSpec
    weight: QuantSpec
    bias: QuantSpec | None = None  # None: the bias stays float


@dataclass(frozen=True)
class IsaGuard:
    """Narrower weights on CPUs where the engine's 8-bit kernels saturate 16-bit partial sums.

    Without a dot-product instruction x86 kernels add pairs u8 * s8 into int16 (vpmaddubsw): 255 *
    127 * 2 > 32767. With weights of `weight_bits` the pair cannot exceed it.
    """

    architectures: tuple[str, ...]
    needs_one_of: tuple[str, ...]  # CPU flags, as in /proc/cpuinfo
    weight_bits: int
    why: str
    source: str


@dataclass(frozen=True)
class Target:
    """One deployment: an engine on a kind of chip.

    runtime: the plug-in of `modelmill.runtimes` that runs it, by name or by the path of a file;
        None for a chip that is not here: its deployment is simulated only.
    emulated: its engine emulates the chip: what it computes is the chip's, its times are not, and
        it is not asked to run the float model.
    export: names of the formats (`modelmill.export`) that its toolchain takes, written beside the
        QDQ artifact.
    passes: names of graph passes (`modelmill.passes`) that rewrite what its engine cannot take;
        each is checked for equal output.
    rules: in order of preference; the first that matches a node holds.
    fused: chains of op types that the engine runs as one kernel; only their last value is a tensor
    of the deployment.
    shield: op types of which nodes that stay float must be protected: the engine would quantize
        their weights on its own.
    on_codes: movement ops that are written between Q and DQ, on codes.
    guards: see IsaGuard.
    float_kernels: (kernel type as the engine names it, ONNX op): a kernel of this type that ran in
    float means that the op
        was not run on integers; what is not listed here computes float by design, such as
        quantization itself.
    refuses: (ONNX op, why): operators that the chip is known not to run, where the absence of a
        rule would not say why.
    host: what runs the nodes that stay in float where the chip itself cannot, such as "CPU"; empty
        where it can.
    packed_weights: the file holds weights of 4 bits or fewer as INT4, two to a byte, and the engine
        unpacks them when it loads it, for its 8-bit kernels.
    simulated: why no engine runs it at a precision; set by `at_precision`.
    source: where the claims come from; rules may add their own.
    """

    name: str
    runtime: str | None
    schemes: tuple[Scheme, ...]
    rules: tuple[OpRule, ...]
    fused: tuple[tuple[str, ...], ...]
    arithmetic: Arithmetic
    on_codes: tuple[str, ...] = ()
    shield: tuple[str, ...] = ()
    guards: tuple[IsaGuard, ...] = ()
    float_kernels: tuple[tuple[str, str], ...] = ()
    emulated: bool = False
    export: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    refuses: tuple[tuple[str, str], ...] = ()
    host: str = ""
    packed_weights: bool = False
    simulated: str = ""
    source: str = ""

    def scheme(self, precision: str) -> Scheme:
        """The formats of a precision.

        Raises:
            ValueError: the target does not have it (lists what it has).
        """
        for scheme in self.schemes:
            if scheme.precision == precision:
                return scheme
        choices = ", ".join(s.precision for s in self.schemes)
        raise ValueError(f"target {self.name} has no precision {precision!r}. Choices: {choices}")
