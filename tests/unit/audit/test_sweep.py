"""Many pipelines over pictures: the card's own is what `modelmill eval` scores."""

import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modelmill import tasks
from modelmill.audit import (
    FLOAT32,
    LeftOut,
    Network,
    Option,
    Pipeline,
    Reading,
    Step,
    Subject,
    Sweep,
    noises,
    stages,
)
from modelmill.audit.decode import by_library, pillow
from modelmill.audit.noise import missing
from modelmill.audit.sweep import Chunk
from modelmill.line.source import load_source
from modelmill.tasks.images import Prepare, place, scaled
from modelmill.tasks.images import resize as card_resize

ALL = list(range(40))


@pytest.fixture
def sweep(photos):
    source = load_source(photos.model, None)
    data = tasks.open_data(photos.data, source.card)
    network = Network(FLOAT32, Path(photos.model), "")
    return Sweep(data, source.task, source.card, network, Path(), source.input_name, 16)


@pytest.fixture
def asked(sweep, photos):
    graph = load_source(photos.model, None).graph
    return Subject(sweep.card, graph, sweep.task, 40, True, 40, 0, sweep.network)


def test_the_cards_pipeline_is_what_eval_scores(sweep):
    run = sweep.run(Pipeline(sweep.card))
    expected = tasks.evaluate(sweep.task, run, sweep.dataset, sweep.card, 16, "x")
    (found,) = sweep.answers(ALL, [Pipeline(sweep.card)])
    assert found.predictions == expected.predictions and expected.value == 1.0
    chunk = Chunk(sweep, tuple(ALL))
    images = [sweep.dataset.sample(i).image for i in ALL]
    inputs = chunk.inputs(Pipeline(sweep.card))
    assert np.array_equal(inputs, Prepare(sweep.card.input).batch(images))


def test_identity_options_change_nothing(sweep):
    """Each stage replaced by what the card does there, as a step of its own."""
    base = Pipeline(sweep.card)
    bilinear = partial(card_resize, method="pillow-bilinear")
    same = [
        replace(base, decode=Step("same", partial(by_library, run=pillow, jpeg_only=True))),
        replace(base, colour=Step("same", np.copy)),
        replace(base, resize=Step("same", bilinear)),
        replace(base, place=Step("same", place)),
        replace(base, feed=Step("same", scaled)),
        replace(base, rewrites=(Step("same", lambda graph: graph),)),
    ]
    first, *found = sweep.answers(ALL, [base, *same])
    for answers in found:
        assert answers.predictions == first.predictions and answers.change == 0.0


def test_every_option_of_every_noise_runs_and_travels(sweep, asked):
    base = Pipeline(sweep.card)
    seen = set()
    for noise in noises():
        for offer in noise.options(asked):
            if isinstance(offer, LeftOut):
                assert offer.why
                continue
            assert (noise.name, offer.name) not in seen and offer.about
            seen.add((noise.name, offer.name))
            pipeline = offer.change(base)
            assert pickle.loads(pickle.dumps(pipeline)) == pipeline != base
            assert sweep.failure(pipeline) == "", offer
    assert {noise for noise, _ in seen} == {
        "decode", "colour", "resize", "crop", "channel_order", "scaling", "pooling", "upsample",
        "activation", "precision",
    }  # fmt: skip


def test_what_is_shared_is_what_it_would_be_alone(sweep, asked):
    base = Pipeline(sweep.card)
    pipelines = [
        offer.change(base)
        for noise in noises()
        for offer in noise.options(asked)
        if isinstance(offer, Option) and noise.name != "precision"
    ]
    together = sweep.answers([3, 4, 5], [base, *pipelines])[1:]
    for pipeline, found in zip(pipelines, together, strict=True):
        alone = sweep.answers([3, 4, 5], [base, pipeline])[1]
        assert (alone.predictions, alone.change) == (found.predictions, found.change)


def test_stages_add_up(sweep, asked):
    base = Pipeline(sweep.card)
    device = base
    for noise in noises(["resize", "channel_order", "scaling"]):
        device = noise.options(asked)[0].change(device)
    found = stages(base, device)
    assert [s.name for s in found] == ["resize", "channel order", "scaling"]
    assert found[-1].until == device and found[0].alone == found[0].until
    assert found[0].trained == "pillow-bilinear" and found[1].device == "BGR"
    assert stages(base, base) == []


def test_a_picture_that_a_decoder_cannot_read(sweep):
    def no(data, name, spec):
        raise tasks.DataError(f"{name}: no") if name.endswith("04.jpg") else ValueError("never")

    def some(data, name, spec):
        return no(data, name, spec) if name.endswith("04.jpg") else pillow(data, name, spec)

    base = Pipeline(sweep.card)
    _, found = sweep.answers([3, 4, 5], [base, replace(base, decode=Step("some", some))])
    assert found.predictions[1] is None and found.predictions[0] is not None
    assert found.refused == ((4, "images/04.jpg: no"),) and found.change == 0.0


def test_sixteen_bits_are_torchs_kernels(sweep):
    import torch

    from modelmill import executor, ir

    base = Pipeline(sweep.card)
    chunk = Chunk(sweep, (0, 1))
    chunk.answer(base)
    half = replace(base, precision=replace(sweep.network, name="bfloat16"))
    found = chunk.answer(half)
    module = executor.Module(ir.load(sweep.network.path)).to(torch.bfloat16)
    with torch.inference_mode():
        y = module({"x": torch.from_numpy(chunk.inputs(base)).to(torch.bfloat16)})["y"]
    exact = sweep.run(base)({"x": chunk.inputs(base)})["y"]
    assert found.change == float(np.abs(y.float().numpy() - exact).max()) > 0


def test_what_is_not_installed_is_named():
    left = missing("no_such_library", "webp")
    assert left.name == "webp" and "pip install 'modelmill[audit]'" in left.why
    assert missing("numpy", "x") is None


def test_a_reading_is_part_of_what_is_done(sweep):
    base = Pipeline(sweep.card)
    assert replace(base, reading=Reading("agnostic")) != base
    with pytest.raises(ValueError, match="unknown noise 'blur'"):
        noises(["blur"])
