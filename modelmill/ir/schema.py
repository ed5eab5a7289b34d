"""What the ONNX standard says about operators: their names and attributes."""

from functools import cache

import onnx.defs


@cache
def _attributes() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found[schema.name] = found.get(schema.name, frozenset()) | set(schema.attributes)
    return found


def operator_attributes(op: str) -> frozenset[str] | None:
    """Names of the attributes that `op` has in any version of the standard; None: no such op."""
    return _attributes().get(op)


def operator_names() -> list[str]:
    """All operators of the standard, sorted."""
    return sorted(_attributes())
