"""Products get a value of their own where something else reads it too."""

import numpy as np

from modelmill import executor, ir
from modelmill.passes.own_reads import own_reads

TEXT = """g (float[1,4,4,4] x) => (float[1,4,4,4] y, float[1,4,4,4] b) {
    a = Conv(x, w)
    b = Conv(a, w)
    c = Conv(a, v)
    d = Conv <group = 4> (c, k)
    e = Conv(c, w)
    f = Conv(b, v)
    g = Add(d, e)
    y = Add(f, g)
}"""


def test_before_and_after(graph_from_text):
    random = np.random.default_rng(0)
    weights = {n: random.normal(size=(4, 4, 1, 1)).astype(np.float32) for n in "wv"}
    weights["k"] = random.normal(size=(4, 1, 1, 1)).astype(np.float32)
    graph = graph_from_text(TEXT, 13, **weights)
    made = own_reads(graph)
    identities = [n for n in ir.nodes(made) if n.op_type == "Identity"]
    assert [n.inputs[0].name for n in identities] == ["c", "b"]  # a depthwise reader; an output
    assert {n.op_type for n in ir.nodes(graph)} == {"Conv", "Add"}
    x = {"x": random.normal(size=(1, 4, 4, 4)).astype(np.float32)}
    before, after = executor.Module(graph)(x), executor.Module(made)(x)
    assert all((before[name] == after[name]).all() for name in before)
    assert ir.fingerprint(own_reads(made)) == ir.fingerprint(made)
