"""Number formats: what a quantized tensor may look like (`QuantSpec`) and its numbers
(`Encoding`).
"""

from modelmill.numerics.arithmetic import Arithmetic
from modelmill.numerics.encoding import Encoding, choose_encoding
from modelmill.numerics.spec import QuantSpec, parse_precision

__all__ = ["Arithmetic", "Encoding", "QuantSpec", "choose_encoding", "parse_precision"]
