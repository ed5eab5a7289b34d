"""Engines that compile for seconds run their main checks in `make test`, the others in `pytest`."""

import pytest

COMPILES = {"executorch", "iree", "torch_inductor", "tvm"}
MAIN = {
    "test_float_scores_are_those_of_the_reference",
    "test_a_quantized_convolution_runs_as_an_integer_kernel",
    "test_a_file_that_is_no_model_is_refused",
}


def pytest_collection_modifyitems(items):
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        side = given.get("engine") in COMPILES and item.originalname not in MAIN
        if item.originalname == "test_what_is_planned_as_integer_runs_as_integer":
            side = given["target"] in COMPILES and given["name"] != "residual"
        if side:
            item.add_marker(pytest.mark.slow)
