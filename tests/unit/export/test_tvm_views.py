"""Movement followed on indices: what it finds is what numpy gives."""

import numpy as np

from modelmill import ir
from modelmill.export.tvm_views import Run, moved, selection

SHUFFLE = """
g (float[1,8,3,5] x) => (float[1,4,3,5] one, float[1,4,3,5] two) {
    five = Reshape(x, pair)   swapped = Transpose<perm=[0,2,1,3,4]>(five)
    whole = Reshape(swapped, flat)   one, two = Split<axis=1, num_outputs=2>(whole)
}
"""
SHORTCUT = """
g (float[2,6,6,8] x) => (float[2,10,3,4] y) {
    half = Slice(x, starts, ends, axes, steps)   y = Pad(half, pads)
}
"""
LARGER = """
g (float[1,4,3,2] x) => (float[1,4,6,4] y) {
    y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
               nearest_mode="floor">(x, , scales)
}
"""


def followed(graph):
    """The index map of every value of a graph with one input."""
    graph = ir.infer_shapes(graph)
    shape = tuple(ir.inputs(graph)["x"].shape)
    found = {"x": np.arange(np.prod(shape), dtype=np.int32).reshape(shape)}
    for node in ir.nodes(graph):
        maps = moved(node, found[node.inputs[0].name])
        found |= {v.name: m for v, m in zip(node.outputs, maps, strict=True)}
    return found


def test_a_channel_shuffle_takes_every_other_channel(graph_from_text):
    arrays = {"pair": np.array([1, 2, 4, 3, 5]), "flat": np.array([1, 8, 3, 5])}
    found = followed(graph_from_text(SHUFFLE, **arrays))
    # channel c of the source goes to 2 c (first half) and 2 (c - 4) + 1 (second half)
    channels = np.arange(8).reshape(2, 4).T.reshape(-1)
    expected = found["x"][:, channels]
    np.testing.assert_array_equal(found["whole"], expected)
    chosen = selection(found["one"], (1, 8, 3, 5))
    taken = [r.start + i * r.step for r in chosen.runs for i in range(r.count)]
    assert taken == channels[:4].tolist() and chosen.rows is None


def test_a_strided_slice_with_padded_channels_is_one_selection(graph_from_text):
    arrays = {"starts": [1, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2],
              "pads": [0, 1, 0, 0, 0, 3, 0, 0]}  # fmt: skip
    graph = graph_from_text(SHORTCUT, **{n: np.array(a, np.int64) for n, a in arrays.items()})
    found = followed(graph)
    chosen = selection(found["y"], (2, 6, 6, 8))
    assert chosen.runs == (Run(0, -1, 0, 1), Run(1, 0, 1, 6), Run(7, -1, 0, 3))
    assert chosen.rows == (1, 3, 5) and chosen.columns == (0, 2, 4, 6)


def test_nearest_neighbours_repeat_rows_and_columns(graph_from_text):
    found = followed(graph_from_text(LARGER, scales=np.array([1, 1, 2, 2], np.float32)))
    chosen = selection(found["y"], (1, 4, 3, 2))
    assert chosen.runs == (Run(0, 0, 1, 4),)
    assert chosen.rows == (0, 0, 1, 1, 2, 2) and chosen.columns == (0, 0, 1, 1)


def test_what_is_no_selection_of_channels_is_not_taken_for_one(graph_from_text):
    index = np.arange(24, dtype=np.int32).reshape(1, 2, 3, 4)
    assert selection(index.transpose(0, 1, 3, 2), (1, 2, 3, 4)) is None
    assert selection(index[:, :, ::-1], (1, 2, 3, 4)).rows == (2, 1, 0)
    assert selection(index.reshape(2, 12), (1, 2, 3, 4)) is None
