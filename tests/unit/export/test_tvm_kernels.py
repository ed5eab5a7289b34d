"""The loop nests for TVM on every kind of CPU they know, against sums of integers in numpy."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from modelmill.export.tvm_convolution import pack, vectors_of
from modelmill.export.tvm_kernels import build, operands
from modelmill.export.tvm_nest import Cpu, Kernel, Port, Step, Window
from modelmill.runtimes.tvm import PLUGIN

U8 = Port("uint8", 0.03125, 119, 0, 255)
S8 = Port("int8", 0.0625, -7, -128, 127)
REAL = Port()
AROUND = Window(1, 7, 9, 6, 7, 9, 26, (3, 3), start=(1, 1))
STRIDED = Window(2, 8, 9, 8, 4, 4, 12, (2, 3), (2, 2), start=(0, 0), groups=2)
ROWS = Window(1, 1, 5, 33, 1, 5, 7)
KERNELS = {
    "around": Kernel("convolution", AROUND, U8, S8, (Step("Relu"),)),
    "planar": Kernel("convolution", replace(AROUND, c=3, oc=16), U8, REAL, planar=True),
    "strided": Kernel("convolution", STRIDED, U8, REAL),
    "signed": Kernel("convolution", STRIDED, S8, U8, (Step("LeakyRelu", (0.25,)),)),
    "wide": Kernel("convolution", ROWS, U8, REAL, wide=True),
    "depthwise": Kernel("depthwise", replace(AROUND, oc=6, groups=6), S8, REAL),
}
CPUS = {
    "avx512": Cpu(16, 32, "madd", True),
    "avx2": Cpu(8, 16, "madd", True),
    "sse": Cpu(4, 16, "madd", False),
    "other": Cpu(4, 32, "multiply", False),
    "vnni": Cpu(16, 32, "vnni", True),
}


@pytest.fixture(scope="module")
def host():
    if line := PLUGIN.missing():
        pytest.skip(line)
    from modelmill.runtimes.tvm import host

    return host()


@pytest.fixture(scope="module", params=CPUS)
def compiled(request, host):
    """The kernels for one CPU, as far as this one can run them."""
    import tvm

    target, here = host
    cpu = CPUS[request.param]
    x86 = {"madd": here.dot in ("madd", "vnni"), "vnni": here.dot == "vnni", "multiply": True}
    if not x86[cpu.dot] or cpu.lanes > here.lanes:
        pytest.skip(f"this CPU has no {request.param}")
    functions = {n: build(k, cpu).with_attr("global_symbol", n) for n, k in KERNELS.items()}
    return cpu, tvm.tirx.build(tvm.IRModule(functions), target=target, pipeline="s_tir")


@pytest.mark.parametrize("name", KERNELS)
def test_products_are_exact(compiled, name):
    import tvm

    cpu, library = compiled
    kernel, random = KERNELS[name], np.random.default_rng(len(name))
    v = kernel.window
    limit = 255 if kernel.wide else 127
    w = random.integers(-limit, limit + 1, (v.oc, v.c // v.groups, *v.taps))
    x = random.integers(kernel.x.low, kernel.x.high + 1, (v.n, v.h, v.w, v.c))
    first = -kernel.x.zero * w.sum((1, 2, 3))
    scale = random.uniform(1e-4, 1e-2, v.oc).astype(np.float32)
    bias = random.normal(size=v.oc).astype(np.float32)
    given = {
        "x": (x.transpose(0, 3, 1, 2) if kernel.planar else x).astype(kernel.x.dtype),
        "w": pack(kernel, cpu, w),
        "first": first.astype(np.int32),
        "scale": scale,
        "bias": bias,
    }
    expected = operands(kernel, cpu)
    assert {n: (a.shape, str(a.dtype)) for n, a in given.items()} == expected
    out = tvm.runtime.empty((v.n, v.oh, v.ow, v.oc), kernel.y.dtype)
    library[name](*(tvm.runtime.tensor(np.ascontiguousarray(given[n])) for n in expected), out)
    np.testing.assert_array_equal(out.numpy(), reference(kernel, x, w, scale, bias))


def reference(kernel, x, w, scale, bias):
    """Exact sums, then float32 step by step."""
    v = kernel.window
    centred = np.pad(x - kernel.x.zero, ((0, 0), (v.start[0], 9), (v.start[1], 9), (0, 0)))
    windows = sliding_window_view(centred, v.taps, (1, 2))  # n, row, column, c, kh, kw
    windows = windows[:, :: v.strides[0], :: v.strides[1]][:, : v.oh, : v.ow]
    inside, out = v.c // v.groups, v.oc // v.groups
    sums = np.concatenate(
        [
            np.einsum(
                "nrqckl,ockl->nrqo",
                windows[..., g * inside : (g + 1) * inside, :, :],
                w[g * out : (g + 1) * out],
            )
            for g in range(v.groups)
        ],
        axis=-1,
    )
    real = sums.astype(np.float32) * scale + bias
    for step in kernel.steps:
        low = real * np.float32(step.numbers[0]) if step.numbers else np.float32(0)
        real = np.where(real > 0, real, low)
    y = kernel.y
    if not y.codes:
        return real
    codes = np.rint(real * (np.float32(1) / np.float32(y.scale))) + y.zero
    return np.clip(codes, y.low, y.high).astype(y.dtype)


def test_vectors_cover_the_channels_and_only_the_last_is_partial():
    for channels in range(1, 70):
        for lanes in (4, 8, 16):
            found = vectors_of(channels, lanes)
            assert sum(count for _, count in found) == channels
            assert all(size == count == lanes for size, count in found[:-1])
            assert found[-1][0] <= lanes
