"""`Plan`: which tensors of a graph are quantized, and how; and the `Point`s it speaks of."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from modelmill.numerics import Encoding, QuantSpec


@dataclass(frozen=True, order=True)
class Point:
    """A place where a tensor is quantized.

    value: name of the value. node == "": the value itself, for all its consumers. Otherwise only
    what that node reads as its input number `index`.
    """

    value: str
    node: str = ""
    index: int = -1

    def __str__(self) -> str:
        return f"{self.value} -> {self.node}[{self.index}]" if self.node else self.value


class Plan(Mapping[Point, QuantSpec | Encoding]):
    """An immutable mapping from points to specs (before calibration) or encodings (after), in
    sorted order.

    ties: groups of points that must have one encoding, because the ops between them only move
    codes.
    """

    def __init__(
        self,
        points: Mapping[Point, QuantSpec | Encoding] | None = None,
        ties: Iterable[Iterable[Point]] = (),
    ) -> None:
        self._points = dict(sorted((points or {}).items()))
        self.ties = tuple(sorted(tuple(sorted(group)) for group in ties))

    def __getitem__(self, point: Point) -> QuantSpec | Encoding:
        return self._points[point]

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def replace(self, changes: Mapping[Point, QuantSpec | Encoding]) -> "Plan":
        """A plan with `changes` added or put in place of what was there."""
        return Plan({**self._points, **changes}, self.ties)

    def without(self, points: "set[Point]") -> "Plan":
        """A plan without `points`: those tensors stay float."""
        kept = {p: s for p, s in self._points.items() if p not in points}
        return Plan(kept, ([p for p in group if p in kept] for group in self.ties))

    def spec(self, point: Point) -> QuantSpec:
        """The spec at `point`, whether or not it has its numbers yet."""
        found = self._points[point]
        return found.spec if isinstance(found, Encoding) else found

    def encodings(self) -> dict[Point, Encoding]:
        """All points with their numbers.

        Raises:
            ValueError: a point was never calibrated.
        """
        missing = [p for p, s in self._points.items() if not isinstance(s, Encoding)]
        if missing:
            raise ValueError(
                f"{len(missing)} points of the plan have no encoding yet, the first is {missing[0]}"
            )
        return {p: s for p, s in self._points.items() if isinstance(s, Encoding)}

    def at(self, value: str, node: str, index: int) -> QuantSpec | Encoding | None:
        """What holds for input `index` of `node`, which reads `value`: the node's own point first,
        then the value's.
        """
        own = self._points.get(Point(value, node, index))
        return own if own is not None else self._points.get(Point(value))

    def fingerprint(self) -> str:
        """Hex sha256 over points, specs and numbers."""
        digest = hashlib.sha256()
        for point, spec in self._points.items():
            digest.update(repr(point).encode())
            if isinstance(spec, Encoding):
                digest.update(
                    repr(spec.spec).encode() + spec.scale.tobytes() + spec.zero_point.tobytes()
                )
            else:
                digest.update(repr(spec).encode())
        return digest.hexdigest()
