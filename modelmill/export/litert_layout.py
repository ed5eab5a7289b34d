"""How a value of the ONNX graph lies in a tensor of the file: as atoms, so that most layout changes
cost nothing.

LiteRT computes in NHWC, ONNX in NCHW. A `View` cuts a value into atoms (factors of its dimensions,
each longer than 1) and says in which order they lie in memory and which of them make up each ONNX
dimension. Transpose, Reshape and their likes only rewrite this description; elements move when a
kernel asks for an order that the memory does not have. A channel shuffle (Reshape, Transpose,
Reshape, Gather), for example, becomes one transpose of the memory, and the flattening before a
classifier none, because its weights are permuted instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

Atom = tuple[int, int]  # identity, length
_fresh = count()


@dataclass(frozen=True)
class View:
    """A value in tensor number `tensor` of the file.

    atoms: in the order of memory, major first. dims: the atoms of each ONNX dimension, major first;
    a dimension of length 1 has none. Every atom occurs once in `atoms` and once in `dims`.
    """

    tensor: int
    atoms: tuple[Atom, ...]
    dims: tuple[tuple[Atom, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that ONNX speaks of."""
        return tuple(length(dim) for dim in self.dims)

    @property
    def strides(self) -> tuple[int, ...]:
        """For each atom of `dims`, flattened: its place in `atoms`."""
        return tuple(self.atoms.index(atom) for dim in self.dims for atom in dim)

    def lies_as(self, order: Sequence[int]) -> bool:
        """Whether memory holds the dimensions in this order, each whole."""
        return self.atoms == tuple(atom for axis in order for atom in self.dims[axis])

    def order(self) -> tuple[int, ...] | None:
        """An order of the dimensions that memory has, None if their atoms are interleaved.

        Dimensions of length 1 stand where they stand in NHWC (rank 4) or in ONNX.
        """
        usual = channels_last(len(self.dims))
        if self.lies_as(usual):
            return usual
        places = {atom: i for i, atom in enumerate(self.atoms)}
        known = sorted(
            (axis for axis in usual if self.dims[axis]), key=lambda a: places[self.dims[a][0]]
        )
        found: list[int] = known
        for position, axis in enumerate(usual):
            if not self.dims[axis]:
                found.insert(position, axis)
        return tuple(found) if self.lies_as(found) else None


def length(atoms: Sequence[Atom]) -> int:
    """Product of the lengths."""
    product = 1
    for _, size in atoms:
        product *= size
    return product


def channels_last(rank: int) -> tuple[int, ...]:
    """NHWC for images, the order of ONNX otherwise."""
    return (0, 2, 3, 1) if rank == 4 else tuple(range(rank))


def fresh(tensor: int, shape: Sequence[int], order: Sequence[int]) -> View:
    """A view of a new tensor, whose memory holds the dimensions of `shape` in `order`."""
    dims = tuple(((next(_fresh), size),) if size != 1 else () for size in shape)
    return View(tensor, tuple(atom for axis in order for atom in dims[axis]), dims)


def transposed(view: View, order: Sequence[int]) -> View:
    """ONNX Transpose: nothing moves."""
    return replace(view, dims=tuple(view.dims[axis] for axis in order))


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """ONNX Reshape: nothing moves. None where a new dimension does not end between two factors."""
    left = [atom for dim in view.dims for atom in dim]
    memory = list(view.atoms)
    dims: list[tuple[Atom, ...]] = []
    for size in shape:
        dim: list[Atom] = []
        while length(dim) < size:
            if not left:
                return None
            atom = left.pop(0)
            wanted = size // length(dim)
            if size % length(dim) or (atom[1] > wanted and atom[1] % wanted):
                return None
            if atom[1] > wanted:
                head, tail = (next(_fresh), wanted), (next(_fresh), atom[1] // wanted)
                place = memory.index(atom)
                memory[place : place + 1] = [head, tail]
                left.insert(0, tail)
                atom = head
            dim.append(atom)
        if length(dim) != size:
            return None
        dims.append(tuple(dim))
    return View(view.tensor, tuple(memory), tuple(dims))
