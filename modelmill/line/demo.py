"""The whole line on data that needs no download: a small network on scikit-learn's digits.

The 1,797 handwritten digits (8x8 pixels, 17 grey levels; E. Alpaydin and C. Kaynak, UCI "Optical
Recognition of Handwritten Digits") are split in two. A residual network of 35 thousand parameters
is trained on one part with exactly the preparation its card describes, exported, and built for
every engine; the other part scores it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from modelmill import ir, tasks
from modelmill.line.options import BuildOptions
from modelmill.line.report import Report
from modelmill.line.run import build
from modelmill.line.show import SILENT, Show
from modelmill.line.store import OutputError

TARGETS = ("ort_cpu", "openvino_cpu")
MODEL, CARD, TRAIN, TEST = "digits.onnx", "digits.json", "train.npz", "test.npz"
MARKER = ".modelmill-demo"
TRAINING_IMAGES = 1297
SIDE, WIDTH, BATCH, RATE = 24, 16, 32, 0.1

DIGITS_CARD = {
    "task": "classification",
    "input": {
        "layout": "NCHW",
        "size": [SIDE, SIDE],
        "color": "GRAY",
        "resize": {"method": "pillow-bilinear", "mode": "stretch"},
        "scale": 1 / 255,
        "mean": [0.305],  # of all digits
        "std": [0.376],
    },
    "output": {"decode": "argmax"},
    "classes": 10,
}


@dataclass(frozen=True)
class DemoOptions:
    """out: the folder, replaced if an earlier demo made it. simulate: see BuildOptions."""

    out: Path
    targets: tuple[str, ...] = TARGETS
    epochs: int = 8
    seed: int = 0
    simulate: int = 500


def demo(options: DemoOptions, show: Show = SILENT) -> Report:
    """Train, export, and build for every target.

    Raises:
        ValueError: scikit-learn is not installed (the text holds the pip line), or the folder holds
            something else.
    """
    out = options.out
    x, y = _digits()
    _fresh(out)
    (out / CARD).write_text(json.dumps(DIGITS_CARD, indent=1) + "\n")
    order = np.random.default_rng(options.seed).permutation(len(x))
    for name, part in ((TRAIN, order[:TRAINING_IMAGES]), (TEST, order[TRAINING_IMAGES:])):
        np.savez(out / name, x=x[part], y=y[part])

    network = train(out, options.epochs, options.seed, show)
    with show.step("export to ONNX"):
        card = tasks.load_card(out / CARD)
        ir.save(ir.from_torch(network, card.input.shape(1)), out / MODEL)
    asked = BuildOptions(
        model=out / MODEL,
        data=out / TEST,
        targets=options.targets,
        out=out,
        calib=out / TRAIN,
        seed=options.seed,
        simulate=options.simulate,
    )
    return build(asked, show)


class Block(nn.Module):
    """relu(shortcut(x) + conv(conv(x))), half the resolution."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, wider, 3, 2, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.shortcut = nn.Conv2d(channels, wider, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.main(x))


def network() -> nn.Module:
    """Takes x (N, 1, SIDE, SIDE), gives logits (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, 1, 1, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        Block(WIDTH, 2 * WIDTH),
        Block(2 * WIDTH, 2 * WIDTH),
        nn.AvgPool2d(SIDE // 4),
        nn.Flatten(),
        nn.Linear(2 * WIDTH, 10),
    )


def train(folder: Path, epochs: int, seed: int, show: Show = SILENT) -> nn.Module:
    """The network trained on the training images of the folder; the same seed, the same weights."""
    card = tasks.load_card(folder / CARD)
    dataset = tasks.open_data(folder / TRAIN, card)
    prepare = tasks.prepare(card)
    samples = [dataset.sample(i) for i in range(len(dataset))]
    x = torch.from_numpy(np.stack([prepare(sample.image) for sample in samples]))
    y = torch.tensor([sample.truth for sample in samples])
    rounds = len(x) // BATCH
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.SGD(
            model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * rounds)
        with show.step("train on handwritten digits", epochs) as advance:
            for epoch in range(epochs):
                for batch in torch.randperm(len(x))[: rounds * BATCH].view(rounds, BATCH):
                    optimizer.zero_grad()
                    loss: torch.Tensor = nn.functional.cross_entropy(model(x[batch]), y[batch])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                advance(epoch + 1)
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of gradients do not depend on how many threads share them if there is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures (n, 8, 8) uint8 and their digits (n,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(
            f"the digits come with scikit-learn, which is not installed ({error}); run: "
            "pip install 'modelmill[demo]'"
        ) from None
    digits = load_digits()
    return (digits.images * (255 / 16)).round().astype(np.uint8), digits.target.astype(np.int64)


def _fresh(folder: Path) -> None:
    """An empty folder with the marker; only an earlier demo is ever removed."""
    try:
        if (folder / MARKER).is_file():
            shutil.rmtree(folder)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} holds something that no demo made; choose with -o")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose with -o") from error
