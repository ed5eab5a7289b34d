"""Fit, predict and query over a database of small models whose stored latencies were made up, and
one that is really measured.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch_geometric", reason="modelmill[latency]")

from modelmill import ir
from modelmill.cli.main import main
from modelmill.latency.gnn import Settings
from modelmill.latency.predictor import Effort, UnknownOperatorError
from modelmill.latency.zoo.net import Net
from modelmill.line.latency_query import (
    PREDICTED,
    Place,
    choose,
    fit,
    predict,
    query,
    read_table,
    telling,
)
from modelmill.records import (
    Database,
    Latencies,
    Measurement,
    ModelFacts,
    Platform,
    this_machine,
    utc_now,
)
from modelmill.records.measurement import CALM

QUICK = Effort(folds=4, groups=0, settings=Settings(width=12, steps=120, models=24))
HERE = Platform("ort_cpu", "1.0", this_machine().cpu, this_machine().isa)


def net(channels, depth, activation="relu"):
    made = Net(32)
    x = made.input
    for _ in range(depth):
        x = made.activation(made.conv(x, channels, 3), activation)
    return made.graph("net", made.linear(made.flatten(made.global_pool(x)), 10), _random())


def _random():
    return np.random.default_rng(0)


def measurement(structure, ms, platform=HERE):
    return Measurement(structure, platform, ms, ms, ms, 10, 0.01, utc_now())


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A database of 60 models that take 1 us per 100,000 MACs and 20 us each, and a predictor."""
    path = tmp_path_factory.mktemp("db") / "l.db"
    latencies = Latencies(Database(path))
    for channels in range(8, 68, 4):
        for depth in (1, 2, 3, 4):
            graph = net(channels, depth)
            key = ir.structure(graph)
            latencies.add_models([ModelFacts(key, f"n{channels}-{depth}", "n", ir.skeleton(graph))])
            ms = 0.02 + (ir.statistics(graph).macs or 0) * 1e-8
            latencies.add([measurement(key, ms)])
    return path, fit(latencies, QUICK)


def saved(tmp_path, graph):
    path = tmp_path / "model.onnx"
    ir.save(graph, path)
    return path


def invoke(*args):
    return CliRunner().invoke(main, ["latency", *map(str, args)])


def test_fit_says_how_good_it_is_and_counts_versions(filled):
    path, fitted = filled
    assert (fitted.version, fitted.models) == (1, 60)
    assert fitted.errors["ort_cpu float"].mape < 0.1
    assert Latencies(Database(path)).load_predictor("latency").facts["models"] == 60


def test_a_stored_latency_is_found_and_any_other_predicted_and_kept(filled, tmp_path):
    path, _ = filled
    latencies = Latencies(Database(path))
    stored = query(saved(tmp_path, net(32, 2)), Place("ort_cpu"), latencies)
    assert stored.source == "stored"
    assert stored.p50_ms == pytest.approx(0.02 + ir.statistics(net(32, 2)).macs * 1e-8)
    model = saved(tmp_path, net(34, 3))
    answer = query(model, Place("ort_cpu"), latencies)
    assert answer.source == "predicted"
    right = 0.02 + ir.statistics(net(34, 3)).macs * 1e-8
    assert answer.p50_ms == pytest.approx(right, rel=0.15)
    (record,) = latencies.database.query(PREDICTED, answer.structure)
    assert record.value == answer.p50_ms
    assert record.extra["predicted"] is True
    assert record.extra["predictor"] == 1
    assert predict(model, Place("ort_cpu"), latencies).prediction == answer.prediction


def test_what_cannot_be_predicted_is_measured_and_kept(filled, tmp_path):
    pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
    path, _ = filled
    latencies = Latencies(Database(path))
    model = saved(tmp_path, net(16, 1, "hardswish"))
    with pytest.raises(UnknownOperatorError, match="HardSwish"):
        predict(model, Place("ort_cpu"), latencies)
    answer = query(model, Place("ort_cpu"), latencies)
    assert answer.source == "measured"
    assert "HardSwish" in answer.why_not
    assert query(model, Place("ort_cpu"), latencies).source == "stored"


def test_platforms():
    with pytest.raises(
        ValueError, match=r"nothing was learned of ort_cpu w8a8.*are: ort_cpu float"
    ):
        choose([HERE], Place("ort_cpu", "w8a8"))
    others = [replace(HERE, device=d) for d in ("a", "b")]
    assert choose([*others, HERE], Place("ort_cpu")) == HERE
    assert choose(others[:1], Place("ort_cpu")) == others[0]
    with pytest.raises(ValueError, match=r"other machines only: a with 1.0; b with 1.0"):
        choose(others, Place("ort_cpu"))


def test_an_empty_database_says_how_to_fill_it(tmp_path):
    latencies = Latencies(Database(tmp_path / "empty.db"))
    for ask in (lambda: fit(latencies), lambda: predict("m.onnx", Place("ort_cpu"), latencies)):
        with pytest.raises(ValueError, match="modelmill latency measure --zoo all"):
            ask()


def stored(latencies):
    """(channels, structure) of twelve models that the database now has."""
    for channels in range(8, 32, 2):
        graph = net(channels, 1)
        key = ir.structure(graph)
        latencies.add_models([ModelFacts(key, "n", "n", ir.skeleton(graph))])
        yield channels, key


def test_repeated_measurements_count_with_their_median(tmp_path):
    latencies = Latencies(Database(tmp_path / "l.db"))
    for _, key in stored(latencies):
        latencies.add(measurement(key, ms) for ms in (1.0, 2.0, 9.0))
        latencies.add([measurement(key, 1.0, replace(HERE, batch=2))])
    table, platforms, left_out = read_table(latencies)
    assert platforms == [HERE]
    assert left_out == {"ort_cpu float, batch 2": "only batch 1 is predicted"}
    assert np.exp(table.log_ms) == pytest.approx(2.0)


def test_learned_is_what_the_calmest_inferences_took(tmp_path):
    latencies = Latencies(Database(tmp_path / "l.db"))
    for channels, key in stored(latencies):
        slow = 1.0 + (channels == 8)  # of the first network the reference was slower, then
        rows = ((1.0, 0.9, 3.0), (5.0, 0.8, slow), (0.7, None, 9.0))  # the last did not keep it
        latencies.add(
            replace(
                measurement(key, ms),
                extra={} if calm is None else {CALM: calm},
                reference_ms=reference,
            )
            for ms, calm, reference in rows
        )
    table = read_table(latencies)[0]
    assert np.exp(table.log_ms) == pytest.approx(0.8)
    assert sorted(np.exp(table.drift[:, 0])) == pytest.approx([1.0] * (len(table) - 1) + [2.0])


def test_the_commands(filled, tmp_path):
    path, _ = filled
    model = saved(tmp_path, net(30, 2))
    asked = (model, "-t", "ort_cpu", "--db", path)
    shown = invoke("predict", *asked)
    assert shown.exit_code == 0, shown.output
    for words in ("90 % interval", "trusted: within", "nearest measured models", "n32-2"):
        assert words in shown.output
    found = json.loads(invoke("predict", *asked, "--format", "json").stdout)
    assert found["low_ms"] < found["p50_ms"] < found["high_ms"]
    assert len(found["nearest"]) == 5
    assert json.loads(invoke("query", *asked, "--format", "json").stdout)["source"] == "predicted"
    again = invoke("fit", "--db", path, "--steps", 2, "--format", "json")
    assert json.loads(again.stdout)["version"] == 2, again.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--precision", "w8a8"), "platforms there are: ort_cpu float"),
        (("--threads", 4), "nothing was learned of ort_cpu float, 4 threads"),
    ],
)
def test_an_unknown_platform_is_wrong_input(filled, tmp_path, args, words):
    path, _ = filled
    result = invoke("predict", saved(tmp_path, net(8, 1)), "-t", "ort_cpu", *args, "--db", path)
    assert result.exit_code == 2
    assert words in result.output


def test_the_models_that_tell_most_are_measured_on_a_new_engine(filled, tmp_path):
    pytest.importorskip("onnxruntime", reason="modelmill[onnxruntime]")
    path = tmp_path / "copy.db"
    path.write_bytes(filled[0].read_bytes())
    latencies = Latencies(Database(path))
    chosen = [fact.structure for fact in telling(latencies, 4)]
    assert len(set(chosen)) == 4
    assert chosen[:2] == [fact.structure for fact in telling(latencies, 2)]
    asked = ["measure", "--choose", "4", "-t", "ort_cpu", "--precision", "w8a8", "--db", path]
    assert invoke(*asked).exit_code == 0
    there = Latencies(Database(path))
    (new,) = there.platforms(precision="w8a8")
    assert {row.structure for row in there.rows([new])} == set(chosen)
    result = invoke("measure", "--choose", "61", "-t", "ort_cpu", "--db", path)
    assert result.exit_code == 2
    assert "61 models to measure: must be 1..60" in result.output
