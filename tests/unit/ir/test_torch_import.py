"""PyTorch networks become graphs that compute the same; files that could run code are refused."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from modelmill import ir

NETWORK = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x)))
        return self.linear(y.mean((2, 3)))

class NeedsOne(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3 * 8 * 8) * 2

def tiny():
    torch.manual_seed(0)
    return Tiny()

def needs_argument(width):
    return Tiny()

def no_network():
    return 3

def broken():
    raise RuntimeError("no such thing")
"""

RESNET20 = """
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.grow = (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:  # option A: every second pixel, new channels of zeros
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow, self.grow))
        return F.relu(y + x)

class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))
"""

SHAPE = (1, 3, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks")
    (path / "tinynet_for_test.py").write_text(NETWORK)
    (path / "resnet20_for_test.py").write_text(RESNET20)
    return path


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def tiny(folder: Path) -> torch.nn.Module:
    scope: dict = {}
    exec(NETWORK, scope)
    network = scope["tiny"]()
    with torch.no_grad():
        network.bn.running_mean.normal_()
    return network.eval()


def run(graph: ir.Graph, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_bytes(graph), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    return output


def same(graph: ir.Graph, network: torch.nn.Module) -> None:
    assert ir.is_batch_dynamic(graph)
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, *SHAPE[1:]), np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        # 27 products per output of the convolution, each rounded once
        np.testing.assert_allclose(run(graph, x), expected, rtol=0, atol=27 * 2**-23 * 8)


# ---------------------------------------------------------------- what is read


def test_resnet20_from_its_weights(data_dir: Path) -> None:
    models = data_dir / "models"
    weights = models / "resnet20_cifar10.safetensors"
    graph = ir.from_torch(f"resnet20_for_test:ResNet20@{weights}", (1, 3, 32, 32))
    reference = ir.load(models / "resnet20_cifar10.onnx")
    assert ir.inputs(graph)["x"].shape == ("batch", 3, 32, 32)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(run(graph, x), run(reference, x))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "parallel"])
def test_weights(kind: str, tiny: torch.nn.Module, folder: Path) -> None:
    state = tiny.state_dict()
    path = folder / f"{kind}.pt"
    if kind == "safetensors":
        path = folder / "tiny.safetensors"
        save_file({k: v for k, v in state.items() if not k.endswith("tracked")}, path)
    elif kind == "pt":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    same(ir.from_torch(f"tinynet_for_test:tiny@{path}", SHAPE), tiny)


def test_module_at_hand_is_left_as_it_was(tiny: torch.nn.Module) -> None:
    tiny.train()
    graph = ir.from_torch(tiny, SHAPE)
    assert tiny.training
    same(graph, tiny.eval())


@pytest.fixture(scope="module")
def program(tiny: torch.nn.Module, folder: Path) -> Path:
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(
        tiny.eval(), (torch.zeros(2, *SHAPE[1:]),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(exported, folder / "tiny.pt2")
    return folder / "tiny.pt2"


def test_exported_program(program: Path, tiny: torch.nn.Module) -> None:
    same(ir.from_torch(str(program), SHAPE), tiny)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("tinynet_for_test", "write package.module:factory"),
        ("nowhere_at_all:tiny", "cannot import 'nowhere_at_all'.*set PYTHONPATH"),
        ("tinynet_for_test:huge", r"has no 'huge'\. It has: .*tiny"),
        ("tinynet_for_test:needs_argument", "called without arguments"),
        ("tinynet_for_test:broken", "RuntimeError: no such thing"),
        ("tinynet_for_test:no_network", "returned a int, not a torch.nn.Module"),
        ("tinynet_for_test:tiny@absent.pt", "no weights file absent.pt"),
        ("tinynet_for_test:NeedsOne", "cannot be exported with a dynamic batch"),
        ("absent.pt2", "absent.pt2: no such file"),
    ],
)
def test_clear_errors(spec: str, match: str) -> None:
    with pytest.raises(ir.ModelError, match=match):
        ir.from_torch(spec, SHAPE)


def test_weights_that_do_not_fit(tiny: torch.nn.Module, folder: Path) -> None:
    state = dict(tiny.state_dict())
    state["conv.wieght"] = state.pop("conv.weight")
    state["linear.weight"] = torch.zeros(3, 4)
    torch.save(state, folder / "misfit.pt")
    with pytest.raises(ir.ModelError) as caught:
        ir.from_torch("tinynet_for_test:tiny@misfit.pt", SHAPE)
    assert str(caught.value) == (
        "misfit.pt does not fit Tiny: missing: conv.weight; unexpected: conv.wieght; "
        "of another shape: linear.weight (3, 4) instead of (2, 4)"
    )


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_pickles_are_not_executed(folder: Path) -> None:
    torch.save({"conv.weight": Bomb()}, folder / "bomb.pt")
    with pytest.raises(ir.ModelError, match=r"more than weights \(\w+\.mkdir\).*refused"):
        ir.from_torch("tinynet_for_test:tiny@bomb.pt", SHAPE)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_weights(content: bytes, suffix: str, folder: Path) -> None:
    (folder / f"bad.{suffix}").write_bytes(content)
    with pytest.raises(ir.ModelError, match=r"bad\.\w+ (cannot be read|holds more)"):
        ir.from_torch(f"tinynet_for_test:tiny@bad.{suffix}", SHAPE)


def edited(program: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(program) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    path = program.with_name("edited.pt2")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def in_model(change: Callable[[dict], object]) -> Callable[[dict[str, bytes]], None]:
    def do(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("models/model.json"))
        content = json.loads(members[name])
        change(content)
        members[name] = json.dumps(content).encode()

    return do


def put_pickle(members: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    torch.save((Bomb(),), buffer)
    name = next(name for name in members if "sample_inputs" in name)
    members[name] = buffer.getvalue()


def put_object(members: dict[str, bytes]) -> None:
    name = next(name for name in members if name.endswith("constants_config.json"))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}
    members[name] = json.dumps({"config": {"c": entry}}).encode()


def put_library(members: dict[str, bytes]) -> None:
    top = next(iter(members)).split("/")[0]
    members[f"{top}/data/aotinductor/model/x.so"] = b""


def first_target(target: str) -> Callable[[dict[str, bytes]], None]:
    return in_model(lambda c: c["graph_module"]["graph"]["nodes"][0].update(target=target))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (put_pickle, "the pickle 'data/sample_inputs"),
        (put_object, "opaque_obj_0"),
        (put_library, "aotinductor"),
        (first_target("torch.os.system"), "operator 'torch.os.system'"),
        (first_target("torch.ops.load_library.__call__"), "operator"),
        (first_target("_operator.methodcaller"), "operator"),
        (in_model(lambda c: c.update(guards_code=["__import__('os').mkdir('exploded')"])),
         "condition"),
        (in_model(lambda c: c.update(x={"expr_str": "open('exploded', 'w')"})), "expression"),
        (in_model(lambda c: c.update(x={"expr_str": "exit()"})), "expression"),
    ],
)  # fmt: skip
def test_exported_programs_that_run_code_are_refused(
    change: Callable[[dict[str, bytes]], None], match: str, program: Path
) -> None:
    with pytest.raises(ir.ModelError, match=f"{match}.*could execute code"):
        ir.from_torch(str(edited(program, change)), SHAPE)
    assert not Path("exploded").exists()


def test_damaged_program(folder: Path) -> None:
    (folder / "bad.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ir.ModelError, match="not an exported program"):
        ir.from_torch("bad.pt2", SHAPE)
