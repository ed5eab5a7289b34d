"""A vision transformer small enough to train in a test, on scikit-learn's 8x8 digits.

Patches of 2x2 pixels by a convolution, a class token, positions, blocks of attention and MLP with
LayerNorm before each (Dosovitskiy et al. 2021, arXiv:2010.11929), 18 thousand parameters.
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn

from modelmill import ir

SIDE, PATCH, WIDTH, HEADS, DEPTH, CLASSES = 8, 2, 32, 4, 2, 10
TOKENS = (SIDE // PATCH) ** 2 + 1
TRAINING_IMAGES, EPOCHS, BATCH, RATE = 1297, 16, 64, 5e-3


class Attention(nn.Module):
    """Products of two activations: softmax(q k / sqrt(d)) v."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(-1, TOKENS, WIDTH))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention())
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class TinyViT(nn.Module):
    """Takes x (N, 1, 8, 8) in 0..1, gives logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH) * 0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.blocks(x)[:, 0])


def digits(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 1, 8, 8) float32 in 0..1 and labels: 1,297 to train on, then 500 to test on."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    x = (found.images / 16).astype(np.float32)[order, None]
    y, n = found.target[order], TRAINING_IMAGES
    return x[:n], y[:n], x[n:], y[n:]


def untrained() -> ir.Graph:
    """A network with random weights as a graph."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ir.from_torch(TinyViT().eval(), (2, 1, SIDE, SIDE))


@functools.cache
def trained(seed: int = 0) -> ir.Graph:
    """The trained network as a graph; some 5 s on one core. The same seed, the same weights."""
    x, y = (torch.from_numpy(array) for array in digits(seed)[:2])
    rounds = len(x) // BATCH
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = TinyViT()
            optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, RATE, total_steps=EPOCHS * rounds
            )
            for _ in range(EPOCHS):
                for batch in torch.randperm(len(x))[: rounds * BATCH].view(rounds, BATCH):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()
                    schedule.step()
    finally:
        torch.set_num_threads(threads)
    return ir.from_torch(model.eval(), (2, 1, SIDE, SIDE))
