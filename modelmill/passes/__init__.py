"""Graph -> Graph on float models: each pass is one rewrite that leaves the output unchanged."""

from modelmill.passes.clean import clean
from modelmill.passes.eliminate_identities import eliminate_identities
from modelmill.passes.explicit_bias import explicit_bias
from modelmill.passes.fold_batchnorm import fold_batchnorm
from modelmill.passes.fold_constants import fold_constants
from modelmill.passes.fuse_pad import fuse_pad
from modelmill.passes.gemm_from_matmul_add import gemm_from_matmul_add
from modelmill.passes.global_average_pool import global_average_pool

__all__ = [
    "clean",
    "eliminate_identities",
    "explicit_bias",
    "fold_batchnorm",
    "fold_constants",
    "fuse_pad",
    "gemm_from_matmul_add",
    "global_average_pool",
]
