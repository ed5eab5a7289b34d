"""All the passes, again and again until nothing changes: the graph that the rest works on."""

from modelmill import ir
from modelmill.passes.eliminate_identities import eliminate_identities
from modelmill.passes.fold_batchnorm import fold_batchnorm
from modelmill.passes.fold_constants import fold_constants
from modelmill.passes.fuse_pad import fuse_pad
from modelmill.passes.gemm_from_matmul_add import gemm_from_matmul_add
from modelmill.passes.global_average_pool import global_average_pool


def clean(graph: ir.Graph) -> ir.Graph:
    """A graph that computes the same with fewer nodes.

    Structural rewrites keep every bit; folding a batch norm into weights, turning MatMul + Add into
    Gemm and ReduceMean into GlobalAveragePool round differently in the last place.
    """
    before, now = "", ir.fingerprint(graph)
    while before != now:  # ends: each rewrite removes a node or a run-time input of one
        before = now
        graph = fold_constants(graph)
        graph = eliminate_identities(graph)
        graph = fuse_pad(graph)
        graph = gemm_from_matmul_add(graph)
        graph = global_average_pool(graph)
        graph = fold_batchnorm(graph)
        graph = ir.infer_shapes(graph)
        now = ir.fingerprint(graph)
    return graph
