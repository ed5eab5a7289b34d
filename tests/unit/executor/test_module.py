"""`Module`: what may be fed and fetched, weights, gradients, memory and errors."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch.nn import functional

from modelmill.executor import Module
from modelmill.executor.module import HOST_RESULTS

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((4, 3, 3, 3)).astype("f")
B = RANDOM.standard_normal(4).astype("f")
V = RANDOM.standard_normal((5, 4)).astype("f")
X = torch.from_numpy(RANDOM.standard_normal((2, 3, 6, 6)).astype("f"))
NET = """g (float[N,3,6,6] x) => (float[N,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(c)
    s = Add(r, c)
    k = Clip(s, low, high)
    p = GlobalAveragePool(k)
    shape = Shape(p)
    n = Gather(shape, zero)
    t = Concat<axis=0>(n, minus)
    f = Reshape(p, t)
    y = Gemm<transB=1>(f, v)
}"""


@pytest.fixture
def graph(graph_from_text):
    return graph_from_text(
        NET, 20, w=W, b=B, v=V, low=np.float32(-1), high=np.float32(2),
        zero=np.array([0]), minus=np.array([-1]),
    )  # fmt: skip


def reference(x, w=W, b=B, v=V):
    c = functional.conv2d(x, torch.as_tensor(w), torch.as_tensor(b), padding=1)
    k = (torch.relu(c) + c).clamp(-1, 2)
    return k.mean((2, 3)) @ torch.as_tensor(v).T, c


def test_outputs(graph):
    module = Module(graph)
    expected, _ = reference(X)
    torch.testing.assert_close(module({"x": X})["y"], expected)
    torch.testing.assert_close(module({"x": X.numpy()})["y"], expected)  # numpy is as good


def test_any_value_may_be_fetched(graph):
    found = Module(graph)({"x": X}, ["c", "t", "w", "x", "y", "minus"])
    assert list(found) == ["c", "t", "w", "x", "y", "minus"]
    torch.testing.assert_close(found["c"], reference(X)[1])
    assert found["t"].tolist() == [2, -1]
    assert found["minus"].tolist() == [-1]
    torch.testing.assert_close(found["w"].detach(), torch.from_numpy(W))
    assert found["x"] is X


def test_any_value_may_be_fed(graph):
    """What leads to a fed value is not run, so the input is not needed either."""
    module = Module(graph)
    k = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    y = module({"k": k}, ["y"])["y"]
    torch.testing.assert_close(y, k.mean((2, 3)) @ torch.from_numpy(V).T)
    assert module({"k": k}, ["k"])["k"] is k
    other = module({"x": X, "w": torch.zeros(4, 3, 3, 3)}, ["c"])["c"]
    torch.testing.assert_close(other, torch.from_numpy(B).reshape(1, 4, 1, 1).expand(2, 4, 6, 6))


def test_weights(graph):
    module = Module(graph)
    assert sorted(module.weights) == ["b", "v", "w"]  # bounds are numbers, not parameters
    assert {id(p) for p in module.weights.values()} == {id(p) for p in module.parameters()}
    assert not any(p.requires_grad for p in module.parameters())
    with torch.no_grad():
        module.weights["w"].mul_(2)
    torch.testing.assert_close(module({"x": X})["y"], reference(X, w=2 * W)[0])


@pytest.mark.parametrize("name", ["conv1.weight", "weight", "float", "a.b/c", "forward"])
def test_weights_of_any_name(graph_from_text, name):
    graph = graph_from_text("g (float[2,5] x) => (float[2,5] y) { y = Mul(x, w) }", 20, w=V[0, 0])
    graph.graph.initializers["w"].name = name
    module = Module(graph)
    assert list(module.weights) == [name]
    twin = Module(graph)
    with torch.no_grad():
        twin.weights[name].zero_()
    twin.load_state_dict(module.state_dict())
    assert twin.weights[name] == module.weights[name]


def test_gradients(graph):
    module = Module(graph)
    w, v = (module.weights[n].requires_grad_() for n in "wv")
    x = X.clone().requires_grad_()
    module({"x": x})["y"].square().sum().backward()
    tensors = [t.detach().clone().requires_grad_() for t in (X, w, v)]
    reference(tensors[0], w=tensors[1], v=tensors[2])[0].square().sum().backward()
    for got, expected in zip((x, w, v), tensors, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    assert module.weights["b"].grad is None


def test_feeds_and_results_are_left_alone(graph):
    """Steps that overwrite their input do so only where nobody else sees it."""
    module = Module(graph)
    x = X.clone()
    with torch.no_grad():
        found = module({"x": x}, ["c", "s", "y"])
        torch.testing.assert_close(found["c"], reference(X)[1])
        torch.testing.assert_close(found["s"], reference(X)[1] + torch.relu(reference(X)[1]))
        assert torch.equal(module({"c": found["c"]}, ["y"])["y"], found["y"])
        torch.testing.assert_close(found["c"], reference(X)[1])
    assert torch.equal(x, X)


@pytest.mark.parametrize("text", ["Relu(c)", "LeakyRelu(c)", "Clip(c, zero, one)", "Add(c, b)"])
def test_overwriting_changes_no_number(graph_from_text, text):
    module = Module(graph_from_text(
        f"g (float[2,3,6,6] x) => (float[N,4,H,W] y) {{ c = Conv(x, w)  y = {text} }}", 20,
        w=W, b=B.reshape(4, 1, 1), zero=np.float32(0), one=np.float32(1),
    ))  # fmt: skip
    apart = module({"x": X}, ["c", "y"])["y"]
    with torch.no_grad():
        assert torch.equal(module({"x": X})["y"], apart)
        assert any(s.function is not t.function for s, t in _scheduled(module))


def _scheduled(module):
    """Pairs of the steps of the last schedule with the steps they were made from."""
    last = list(module._schedules.values())[-1]
    made = {step.outputs: step for step in module._steps}
    return [(step, made[step.outputs]) for step, _ in last.steps]


def test_a_view_is_not_overwritten(graph_from_text):
    graph = graph_from_text(
        "g (float[2,3,6,6] x) => (float[2,64] f, float[2,4,4,4] y)"
        "{ c = Conv(x, w)  f = Flatten(c)  y = Relu(c) }", 20, w=W,
    )  # fmt: skip
    with torch.no_grad():
        found = Module(graph)({"x": X})
    torch.testing.assert_close(
        found["f"].reshape(2, 4, 4, 4), functional.conv2d(X, torch.as_tensor(W))
    )


def test_values_are_freed_after_their_last_use(graph_from_text):
    text = "\n".join(f"v{i + 1} = Sin(v{i})" for i in range(20))
    graph = graph_from_text(f"g (float[4] v0) => (float[4] v20) {{ {text} }}")
    module = Module(graph)
    alive, most = weakref.WeakSet(), 0

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            nonlocal most
            result = super().__torch_function__(function, types, args, kwargs or {})
            if isinstance(result, Watched):
                alive.add(result)
            most = max(most, len(alive))
            return result

    gc.disable()
    try:
        module({"v0": torch.zeros(4).as_subclass(Watched)})
    finally:
        gc.enable()
    assert most <= 3  # an input, an output, and the one before that is about to go


def test_state_moves_and_copies(graph):
    module = Module(graph)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.weights["w"].zero_()
    torch.testing.assert_close(module({"x": X})["y"], reference(X)[0])
    assert not twin({"x": X}, ["c"])["c"].sub(torch.from_numpy(B).reshape(4, 1, 1)).any()
    double = module.double()({"x": X.double()})["y"]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), reference(X)[0])


def test_built_in_inference_mode_and_trained_later(graph):
    with torch.inference_mode():
        module = Module(graph)
        module({"x": X})
    module.weights["w"].requires_grad_()
    module({"x": X})["y"].sum().backward()
    assert module.weights["w"].grad is not None


def test_shapes_stay_on_the_host(graph):
    """What follows from shapes and integer constants alone is marked as such once, at building."""
    module = Module(graph)
    steps = {step.operator: step for step in module._steps}
    assert "Shape" in HOST_RESULTS
    assert steps["Gather"].moves == () and steps["Concat"].moves == ()
    assert steps["Reshape"].readers and not steps["Reshape"].moves
    assert steps["Clip"].template[1:] == (-1, 2) and not steps["Clip"].readers


def test_host_values_move_to_where_the_data_is(graph_from_text):
    graph = graph_from_text(
        "g (float[4,3] x) => (float[2,3] y) { y = Gather(x, rows) }", 20, rows=np.array([3, 1])
    )
    (step,) = Module(graph)._steps
    assert step.moves == (1,)


@pytest.mark.parametrize(
    ("feeds", "fetch", "message"),
    [
        ({}, None, "input 'x' is not fed"),
        ({"image": X}, None, "no value 'image'"),
        ({"x": X}, ["yy"], "no value 'yy'; nearest: y"),
        ({"x": X, "low": X}, None, "'low' cannot be fed"),
        ({"x": X[:, :2]}, None, r"node '.*' \(Conv\) failed on \(torch.float32 \(2, 2, 6, 6\)"),
        ({"x": np.array(["a"])}, None, "element type"),
    ],
)
def test_errors(graph, feeds, fetch, message):
    with pytest.raises(ValueError, match=message):
        Module(graph)(feeds, fetch)


def test_optional_inputs_and_outputs(graph_from_text):
    graph = graph_from_text(
        "g (float[2,3,6,6] x) => (float[2,3,3,3] y, int64[2,3,3,3] i, float[2,3,6,6] c)"
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)  c = Clip(x, , high) }",
        20, high=np.float32(0.5),
    )  # fmt: skip
    found = Module(graph)({"x": X})
    largest, index = functional.max_pool2d(X, 2, return_indices=True)
    assert torch.equal(found["y"], largest)
    planes = torch.arange(6).reshape(2, 3, 1, 1) * 36
    assert torch.equal(found["i"], index + planes)
    assert torch.equal(found["c"], X.clamp(max=0.5))
