"""Units are what a person would draw on the graph, and running them one by one is the network."""

import numpy as np
import pytest
import torch
from tiny_vit import untrained

from modelmill import executor, ir
from modelmill.line.quantize import prepare_graph
from modelmill.quant.blocks import blocks, by_layer

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MODELS = ("resnet20_cifar10", "resnet56_cifar10", "mobilenetv1_025_imagenet", "fastestdet_coco")


def layers_of(graph):
    return [
        node.name
        for node in ir.nodes(graph)
        if node.op_type in ANCHORS and ir.constant(node.inputs[1]) is not None
    ]


def noise(graph, batch=2):
    rng = np.random.default_rng(0)
    shapes = {
        name: [size if isinstance(size, int) else batch for size in info.shape]
        for name, info in ir.inputs(graph).items()
    }
    return {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}


def check(graph, partition, feeds):
    """Disjoint, in order, every layer once; unit after unit gives exactly the float outputs."""
    place = {node.name: i for i, node in enumerate(ir.nodes(graph))}
    nodes = [name for unit in partition.units for name in unit.nodes]
    assert len(set(nodes)) == len(nodes)
    assert all(sorted(u.nodes, key=place.get) == list(u.nodes) for u in partition.units)
    assert [name for unit in partition.units for name in unit.layers] == layers_of(graph)
    run, images = executor.Module(graph), len(next(iter(feeds.values())))
    with torch.no_grad():
        known = dict(feeds)
        for unit in partition.units:
            known |= run({name: known[name] for name in unit.inputs}, unit.outputs)
            assert {len(known[name]) for name in unit.outputs} == {images}
        for name, want in run(feeds).items():
            assert torch.equal(run(known, [name])[name], want), name


@pytest.fixture
def cut(graph_from_text):
    """text, arrays -> layers of the units, and the partition; both kinds are checked."""

    def make(text, max_layers=10, **shapes):
        rng = np.random.default_rng(0)
        arrays = {
            name: rng.normal(0, 0.3, shape).astype("f") if isinstance(shape, tuple) else shape
            for name, shape in shapes.items()
        }
        graph = graph_from_text(text, **arrays)
        for node in graph.graph:
            node.name = node.outputs[0].name
        layers, feeds = layers_of(graph), noise(graph)
        check(graph, by_layer(graph, layers), feeds)
        partition = blocks(graph, layers, max_layers)
        check(graph, partition, feeds)
        return [" ".join(unit.layers) for unit in partition.units], partition

    return make


@pytest.mark.parametrize("name", MODELS)
def test_real_models(data_dir, name):
    graph = prepare_graph(ir.load(str(data_dir / "models" / f"{name}.onnx")))
    layers, feeds = layers_of(graph), noise(graph)
    single = by_layer(graph, layers)
    assert [unit.layers for unit in single.units] == [(name,) for name in layers]
    check(graph, single, feeds)
    found = blocks(graph, layers)
    assert found.notes == ()
    check(graph, found, feeds)
    sizes = [len(unit.layers) for unit in found.units]
    if name.startswith("resnet"):  # option A: the shortcut is a strided slice and a pad
        assert sizes == [1, *[2] * (len(layers) // 2 - 1), 1]
        assert all(len(unit.inputs) == len(unit.outputs) == 1 for unit in found.units)
    if name.startswith("mobilenet"):
        assert sizes == [1, *[2] * 13, 1]
    if name.startswith("fastestdet"):  # ShuffleNetV2, 3 + 7 + 3 units; two layers of the SPP; heads
        unit = [3] * 3, [3] * 7, [3] * 3
        assert sizes == [1, 5, *unit[0], 5, *unit[1], 5, *unit[2], 1, 7, 1, 2, 2, 2]
        assert [len(u.inputs) for u in found.units].count(1) == len(sizes) - 1  # the pyramid


CONV3, CONV1 = "Conv<pads=[1,1,1,1]>", "Conv"


def test_residual_blocks_are_one_with_and_without_a_projection(cut):
    units, partition = cut(
        f"""g (float[N,3,8,8] x) => (float[N,5] y) {{
          c0 = {CONV3}(x, w0) r0 = Relu(c0)
          c1 = {CONV3}(r0, w1) r1 = Relu(c1) c2 = {CONV3}(r1, w2) s1 = Add(c2, r0) r2 = Relu(s1)
          b1 = Conv(r2, v1) q1 = Relu(b1) b2 = Conv<pads=[1,1,1,1], strides=[2,2]>(q1, v2)
          q2 = Relu(b2) b3 = Conv(q2, v3) p = Conv<strides=[2,2]>(r2, v4) s2 = Add(b3, p)
          r3 = Relu(s2) a = GlobalAveragePool(r3) f = Flatten(a) y = Gemm<transB=1>(f, w)
        }}""",
        w0=(4, 3, 3, 3), w1=(4, 4, 3, 3), w2=(4, 4, 3, 3), v1=(2, 4, 1, 1), v2=(2, 2, 3, 3),
        v3=(8, 2, 1, 1), v4=(8, 4, 1, 1), w=(5, 8),
    )  # fmt: skip
    assert units == ["c0", "c1 c2", "b1 b2 b3 p", "y"]
    assert [u.outputs for u in partition.units] == [("r0",), ("r2",), ("r3",), ("y",)]


def test_a_block_at_the_end_of_a_feature_extractor_stays_whole(cut):
    units, _ = cut(
        """g (float[N,3,8,8] x) => (float[N,4,1,1] y) {
          c0 = Conv(x, w0) c1 = Conv(c0, w1) c2 = Conv(c1, w1) p = Conv(c0, w1) s = Add(c2, p)
          r = Relu(s) y = GlobalAveragePool(r)
        }""",
        w0=(4, 3, 1, 1), w1=(4, 4, 1, 1),
    )  # fmt: skip
    assert units == ["c0", "c1 c2 p"]


def test_inverted_residuals_and_depthwise_pairs(cut):
    """An activation behind the pointwise layer tells MobileNetV1 from V2 without a shortcut."""
    shapes = {"w0": (4, 3, 1, 1), "e": (8, 4, 1, 1), "d": (8, 1, 3, 3), "p": (4, 8, 1, 1)}
    depthwise = "Conv<pads=[1,1,1,1], group=8>"
    units, _ = cut(
        f"""g (float[N,3,8,8] x) => (float[N,4,8,8] y) {{
          c0 = Conv(x, w0) r0 = Relu(c0)
          e1 = Conv(r0, e) f1 = Relu(e1) d1 = {depthwise}(f1, d) g1 = Relu(d1) p1 = Conv(g1, p)
          e2 = Conv(p1, e) f2 = Relu(e2) d2 = {depthwise}(f2, d) g2 = Relu(d2) p2 = Conv(g2, p)
          s = Add(p1, p2)
          e3 = Conv(s, e) f3 = Relu(e3) d3 = {depthwise}(f3, d) g3 = HardSwish(d3)
          a = GlobalAveragePool(g3) h = Conv(a, p) k = Relu(h) i = Conv(k, e) j = Sigmoid(i)
          m = Mul(g3, j) p3 = Conv(m, p)
          e4 = Conv(p3, e) f4 = Relu(e4) d4 = {depthwise}(f4, d) g4 = Relu(d4) p4 = Conv(g4, p)
          y = Relu(p4)
        }}""",
        **shapes,
    )
    assert units == ["c0", "e1 d1 p1", "e2 d2 p2", "e3 d3 h i p3", "e4", "d4 p4"]


def test_a_chain_is_cut_at_every_layer_behind_its_activation(cut):
    units, partition = cut(
        """g (float[N,3,8,8] x) => (float[N,4,2,2] y) {
          a = Conv(x, w0) s = Sigmoid(a) m = Mul(a, s) b = Conv(m, w) r = Relu(b)
          p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) t = AveragePool<kernel_shape=[3,3]>(p)
          y = Conv(t, w)
        }""",
        w0=(4, 3, 1, 1), w=(4, 4, 1, 1),
    )  # fmt: skip
    assert units == ["a", "b", "y"]
    assert [u.outputs for u in partition.units] == [("m",), ("p",), ("y",)]


def test_an_inception_module_is_one(cut):
    units, partition = cut(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          c = Conv(x, w0) r = Relu(c) a1 = Conv(r, w) a = Relu(a1)
          b1 = Conv(r, w) b2 = Relu(b1) b3 = Conv(b2, w) b = Relu(b3)
          d1 = Conv(r, w) d2 = Relu(d1) d3 = Conv(d2, w) d4 = Relu(d3) d5 = Conv(d4, w) d = Relu(d5)
          e1 = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r) e2 = Conv(e1, w) e = Relu(e2)
          o = Concat<axis=1>(a, b, d, e) y = Conv(o, w1)
        }""",
        w0=(4, 3, 1, 1), w=(4, 4, 1, 1), w1=(4, 16, 1, 1),
    )  # fmt: skip
    assert units == ["c", "a1 b1 b3 d1 d3 d5 e2", "y"]
    assert partition.units[1].inputs == ("r",) and partition.units[1].outputs == ("o",)


def test_long_skips_are_more_inputs(cut):
    """A U-Net of two levels: the outer skip is long, the inner one makes a block."""
    units, partition = cut(
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          a = Conv(x, w0) b = Relu(a) c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
          d = Conv(c, w) e = Conv(d, w) f = Relu(e) h = MaxPool<kernel_shape=[2,2],strides=[2,2]>(f)
          i = Conv(h, w) j = Relu(i) k = ConvTranspose<strides=[2,2]>(j, t)
          l = Concat<axis=1>(f, k) m = Conv(l, w2) n = Relu(m)
          o = ConvTranspose<strides=[2,2]>(n, t) p = Concat<axis=1>(o, b) q = Conv(p, w2)
          y = Conv(q, w)
        }""",
        max_layers=4,
        w0=(4, 3, 1, 1), w=(4, 4, 1, 1), w2=(4, 8, 1, 1), t=(4, 4, 2, 2),
    )  # fmt: skip
    assert units == ["a", "d", "e", "i k", "m", "o", "q", "y"]
    assert [u.inputs for u in partition.units][6] == ("o", "b")
    assert partition.units[0].outputs == ("b", "c") and partition.notes == ()


def dense(n):
    """Every layer reads all before it."""
    names, lines = ["x0"], ["x0 = Conv(x, w0)"]
    for i in range(1, n):
        lines.append(f"c{i} = Concat<axis=1>({', '.join(names)}) x{i} = Conv(c{i}, w{i})")
        names.append(f"x{i}")
    lines.append(f"o = Concat<axis=1>({', '.join(names)}) y = Conv(o, w{n})")
    return "g (float[N,2,4,4] x) => (float[N,2,4,4] y) {" + " ".join(lines) + "}"


def test_a_dense_block_that_is_too_large_is_taken_layer_by_layer_with_a_word(cut):
    shapes = {"w0": (2, 2, 1, 1)} | {f"w{i}": (2, 2 * i, 1, 1) for i in range(1, 13)}
    units, partition = cut(dense(12), **shapes)
    assert units == ["x0", *[f"x{i}" for i in range(1, 12)], "y"]
    assert len(partition.notes) == 1
    assert partition.notes[0].startswith("11 layers from x1 to x11 are taken one by one: ")
    units, partition = cut(dense(6), **shapes | {"w6": (2, 12, 1, 1)})
    assert units == ["x0", "x1 x2 x3 x4 x5", "y"] and not partition.notes


def test_two_inputs_and_several_outputs(cut):
    """What heads give waits for the others without holding them together."""
    units, partition = cut(
        """g (float[N,2,4,4] x, float[N,2,4,4] z)
          => (float[N,4,4,4] y, float[N,2,4,4] u, float[N,2,4,4] s) {
          a = Conv(x, w) b = Conv(z, w) s = Add(a, b) c = Conv(s, w)
          h1 = Conv(c, w) h2 = Relu(h1) h3 = Conv(h2, w) h4 = Sigmoid(h3)
          k1 = Conv(c, w) k2 = Relu(k1) k3 = Conv(k2, w) y = Concat<axis=1>(h4, k3)
          u = Conv(c, w)
        }""",
        w=(2, 2, 1, 1),
    )  # fmt: skip
    assert units == ["a", "b", "c", "h1 h3", "k1 k3", "u"]
    assert partition.units[1].inputs == ("z", "a") and partition.units[1].outputs == ("s",)
    assert [u.outputs for u in partition.units[3:]] == [("h4",), ("k3",), ("u",)]


def test_shapes_are_worked_out_again_and_never_cached(cut):
    """A batch read from the shape of one value would be wrong for a part of the images."""
    units, partition = cut(
        """g (float[N,2,4,4] x) => (float[M,3] y) {
          n = Shape<start=0, end=1>(x) a = Conv(x, w) k = Concat<axis=0>(n, rest)
          r = Reshape(a, k) l = Concat<axis=0>(n, one) e = Expand(token, l) o = Add(r, e)
          y = Gemm(o, v)
        }""",
        w=(2, 2, 1, 1), v=(32, 3), rest=np.array([32]), one=np.array([1]), token=(1, 1),
    )  # fmt: skip
    assert units == ["a", "y"]
    assert [set(u.inputs) for u in partition.units] == [{"x"}, {"a", "x"}]
    assert [u.outputs for u in partition.units] == [("a",), ("y",)]


def test_attention_and_mlp_of_a_transformer_with_their_shortcuts():
    graph = prepare_graph(untrained())
    layers, feeds = layers_of(graph), noise(graph)
    check(graph, by_layer(graph, layers), feeds)
    found = blocks(graph, layers)
    check(graph, found, feeds)
    op = {node.name: node.op_type for node in ir.nodes(graph)}
    assert [len(unit.layers) for unit in found.units] == [1, 2, 2, 2, 2, 1] and not found.notes
    assert all(op[unit.nodes[-1]] == "Add" for unit in found.units[1:5])
    assert all(len(unit.inputs) == len(unit.outputs) == 1 for unit in found.units[2:])
    assert ["Softmax" in map(op.get, unit.nodes) for unit in found.units[1:5]] == [True, False] * 2


def test_no_unit_ends_where_images_are_stacked(cut):
    units, partition = cut(
        """g (float[2,2,4,4] x) => (float[2,2,4,4] y) {
          a = Conv(x, w) b = Concat<axis=0>(a, a) c = Conv(b, w) d = Relu(c)
          e = Slice(d, zero, two) y = Conv(e, w)
        }""",
        w=(2, 2, 1, 1), zero=np.array([0]), two=np.array([2]),
    )  # fmt: skip
    assert units == ["a", "c", "y"]
    assert [unit.outputs for unit in partition.units] == [("a",), ("e",), ("y",)]


def test_a_name_that_is_no_node(net):
    with pytest.raises(ValueError, match="no node 'nobody'"):
        blocks(net, ["nobody"])
