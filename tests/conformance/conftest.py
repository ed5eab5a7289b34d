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
        engine = getattr(item, "callspec", None) and item.callspec.params.get("engine")
        if engine in COMPILES and item.originalname not in MAIN:
            item.add_marker(pytest.mark.slow)
