"""The whole audit on small photographs with real libraries, engines and processes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelmill import ir, tasks
from modelmill.audit import Answers
from modelmill.line import audit_fix
from modelmill.line.audit import AuditOptions
from modelmill.line.audit import audit_deployment as run_audit
from modelmill.line.audit_measure import Asked, judge_for
from modelmill.line.audit_work import spans
from modelmill.records import Database
from modelmill.tasks.classification import Ranking
from modelmill.tasks.images import scaled


def audit_deployment(model, data, **kept):
    return run_audit(model, data, AuditOptions(**kept))


QUICK = ("resize", "crop", "channel_order")


@pytest.fixture
def device(photos, tmp_path):
    """device(color="BGR") -> the path of a card that differs in this."""

    def make(**changes):
        held = json.loads(photos.card.read_text())
        held["input"] |= changes
        path = tmp_path / "device.json"
        path.write_text(json.dumps(held))
        return path

    return make


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    """Everything once, in this process."""
    out = tmp_path_factory.mktemp("audit") / "out"
    return audit_deployment(photos.model, photos.data, out=out, int8=("ort_cpu", "tensorrt"))


def test_the_whole(whole):
    by_name = {(o.noise, o.option): o for o in whole.outcomes}
    assert whole.score == 1.0 and whole.n == 40 and whole.accepted
    assert by_name["decode", "opencv"].same  # the same library, libjpeg-turbo
    assert by_name["channel_order", "bgr"].delta < -0.2 and by_name["channel_order", "bgr"].mistake
    for o in whole.outcomes:
        assert o.low <= o.delta <= o.high and o.score == pytest.approx(1 + o.delta)
        assert o.changed == pytest.approx(-o.delta)  # the labels are the model's own answers
        assert (o.delta, o.low, o.high) == (0, 0, 0) or o.changed > 0
    assert by_name["precision", "int8-ort_cpu"].largest > 0
    assert "simulated" in by_name["precision", "int8-tensorrt"].about
    assert ("pooling", "padding-counts", "no average pool has padding") in whole.left_out
    assert whole.combined.outcome.delta <= min(s.worst.delta for s in whole.summaries) + 0.1
    assert whole.greedy.outcome.delta <= min(s.worst.delta for s in whole.summaries)
    names = [noise for noise, _, _ in whole.greedy.steps]
    assert len(set(names)) == len(names) and "channel_order" not in names
    losses = [loss for _, _, loss in whole.greedy.steps]
    assert losses == sorted(losses)


def test_report_page_and_records(whole):
    folder = Path(whole.folder)
    held = json.loads((folder / "audit.json").read_text())
    assert held["score"] == 1.0 and len(held["outcomes"]) == len(whole.outcomes)
    page = (folder / "audit.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page
    for summary in whole.summaries:
        assert summary.noise in page
    records = Database(folder / "audit" / "records.db").query()
    assert len(records) == len(whole.outcomes) + 2
    found = {(r.extra["noise"], r.extra["option"]): r for r in records}
    swapped = found["channel_order", "bgr"]
    assert swapped.what == "audit_top1_delta" and swapped.n == 40 and swapped.spread > 0
    said = " ".join(f"{f.what} {f.why}" for f in whole.findings)
    assert "costs most" in said and "worst case" in said and "int8 was calibrated on 40" in said


def test_two_processes_give_the_same_bytes_and_resume_computes_nothing(photos, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    audit_deployment(photos.model, photos.data, out=one, noises=QUICK)
    audit_deployment(photos.model, photos.data, out=two, noises=QUICK, workers=2)
    for name in ("audit.json", "audit.html"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    entries = {p: p.stat().st_mtime_ns for p in (one / "audit" / "cache").glob("*.npz")}
    (one / "audit.json").unlink()
    with pytest.raises(ValueError, match="--resume"):
        audit_deployment(photos.model, photos.data, out=one, noises=QUICK)
    broken = next(iter(entries))
    broken.write_bytes(b"half")  # as a stopped disk leaves it: this one is done again
    audit_deployment(photos.model, photos.data, out=one, noises=QUICK, resume=True)
    assert (one / "audit.json").read_bytes() == (two / "audit.json").read_bytes()
    again = {p: p.stat().st_mtime_ns for p in (one / "audit" / "cache").glob("*.npz")}
    assert {p for p in entries if again[p] != entries[p]} == {broken}
    assert len(Database(one / "audit" / "records.db").query()) == len(
        Database(two / "audit" / "records.db").query()
    )


def test_another_seed_is_another_interval(photos, tmp_path):
    found = [
        audit_deployment(photos.model, photos.data, out=tmp_path / str(s), noises=QUICK, seed=s)
        for s in (0, 1)
    ]
    assert [o.delta for o in found[0].outcomes] == [o.delta for o in found[1].outcomes]
    assert [o.low for o in found[0].outcomes] != [o.low for o in found[1].outcomes]


def test_the_swapped_card_is_found_named_and_mended(photos, device, tmp_path):
    path = device(color="BGR")
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", deployed=path, fix=True, tolerance=0.005
    )
    (stage,) = found.stages
    assert (stage.stage, stage.trained, stage.device) == ("channel order", "RGB", "BGR")
    assert stage.alone.delta == found.device.delta < -0.2 and stage.differing > 0
    assert not found.accepted and found.outcomes == ()
    said = {f.what: f for f in found.findings}
    assert said["this stage costs the accuracy"].where == "channel order"
    assert found.fix.outcome.same and found.fix.left == ()
    card = tasks.load_card(tmp_path / "o" / "fixed.json")
    assert card.input.color == "BGR"
    # The files alone, without this package's knowledge of what they are: as good as training's.
    from modelmill.line.evaluate import evaluate

    score = evaluate(str(tmp_path / "o" / "fixed.onnx"), photos.data, runtime="onnxruntime").score
    assert score.value == 1.0


def test_everything_at_once_is_taken_apart(photos, device, tmp_path):
    held = json.loads(photos.card.read_text())["input"]["resize"]
    path = device(
        color="BGR", resize=held | {"method": "opencv-nearest", "to": 16}, layout="NHWC",
        scale=1.0, mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", deployed=path, added=["decode=ffmpeg"],
        fix=True,
    )  # fmt: skip
    names = ["decode", "resize", "crop", "channel order", "scaling"]
    assert [s.stage for s in found.stages] == names
    assert found.findings[0].what == "bits part first" and found.findings[0].where == "decode"
    assert found.stages[-1].until.score == found.device.score
    assert dict(found.fix.mended).keys() == {*names[1:], "layout"}
    assert [stage for stage, _ in found.fix.left] == ["decode"]
    alone = found.stages[0].alone
    assert found.fix.outcome.delta == alone.delta and found.fix.outcome.largest == alone.largest
    graph = ir.load(tmp_path / "o" / "fixed.onnx")
    assert ir.inputs(graph)["x"].shape[1:] == (16, 16, 3)


def test_two_cards_that_differ_in_the_filter(photos, device, tmp_path):
    held = json.loads(photos.card.read_text())["input"]["resize"]
    path = device(resize=held | {"method": "opencv-linear"})
    found = audit_deployment(photos.model, photos.data, out=tmp_path / "o", deployed=path)
    (stage,) = found.stages
    assert stage.stage == "resize" and stage.device == "opencv-linear"
    assert stage.alone.low <= stage.alone.delta <= stage.alone.high


def test_the_same_card_twice(photos, tmp_path):
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", deployed=photos.card, tolerance=0.0
    )
    assert found.stages == () and found.device.same and found.accepted
    assert found.findings[0].what == "training and device agree"


def test_preprocessing_moves_into_the_network_without_a_device(photos, tmp_path):
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", noises=["crop"], fix=True
    )
    assert found.fix.outcome.same
    card = tasks.load_card(tmp_path / "o" / "fixed.json")
    assert (card.input.scale, card.input.layout) == (1.0, "NHWC")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_what_a_device_scaled_is_undone_exactly(photos, layout, color):
    """Any level through any device's scaling and back: the bits of training's own input."""
    import torch

    from modelmill import executor

    card = tasks.load_card(photos.card)
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    spec = replace(
        card.input, layout=layout, color=color, scale=1 / 128, mean=(1.0, 0.99, 0.5),
        std=(0.7, 1.3, 1.0),
    )  # fmt: skip
    graph = audit_fix.inside(ir.load(photos.model), card.input, spec)
    first = next(n for n in ir.nodes(graph) if n.op_type == "Conv")
    with torch.inference_mode():
        fed = {"x": torch.from_numpy(scaled(levels, spec))}
        x = executor.Module(graph)(fed, [first.inputs[0].name])
    assert np.array_equal(next(iter(x.values())).numpy(), scaled(levels, card.input))


def test_without_labels_changes_are_counted(photos, tmp_path):
    found = audit_deployment(
        photos.model, photos.unlabelled, out=tmp_path / "o", noises=QUICK, tolerance=0.0
    )
    by_name = {o.option: o for o in found.outcomes}
    assert found.score is None and by_name["bgr"].delta is None and by_name["bgr"].changed > 0.2
    assert not found.accepted and any("no labels" in f.why for f in found.findings)
    records = Database(tmp_path / "o" / "audit" / "records.db").query()
    assert {r.what for r in records} == {"audit_changed"}


def test_on_an_engine(photos, tmp_path):
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", noises=("pooling", "precision"),
        target="ort_cpu", int8=("none",),
    )  # fmt: skip
    assert found.engine == "onnxruntime" and found.score == 1.0
    assert [o.option for o in found.outcomes] == ["ceil"] and found.outcomes[0].largest > 0
    left = [why for noise, _, why in found.left_out if noise == "precision"]
    assert len(left) == 2 and all("without -t" in why for why in left)


def test_pixels_are_not_decoded(tiny, tmp_path):
    found = audit_deployment(tiny.model, tiny.data, out=tmp_path / "o", int8=("none",))
    assert ("decode", "", "the data are pixels, not files: nothing is decoded") in found.left_out
    assert {o.noise for o in found.outcomes} == {"colour", "scaling", "precision"}


def test_from_python(photos, tmp_path):
    card = tasks.load_card(photos.card)
    data = tasks.open_data(photos.data, card)
    pairs = [data.read(i) for i in range(20)]
    found = audit_deployment(photos.model, pairs, out=tmp_path / "o", noises=("resize",), workers=2)
    assert found.n == 20 and found.score == 1.0


def test_a_file_of_another_kind_among_jpegs(photos, tmp_path):
    """A 16-bit PNG: decoders of JPEG leave it to the card's, OpenCV reads it itself."""
    data = tmp_path / "data"
    shutil.copytree(photos.data, data)
    deep = np.arange(48 * 61, dtype=np.uint16).reshape(48, 61) * 20
    Image.fromarray(deep).save(data / "images" / "07.jpg", "PNG")
    found = audit_deployment(photos.model, data, out=tmp_path / "o", noises=("decode",))
    assert found.score >= 39 / 40 and all(o.n == 40 for o in found.outcomes)


def test_both_sides_are_scored_on_what_the_option_could_read(photos):
    """Of four pictures the card has the first two right; the option cannot read the first."""
    card = tasks.load_card(photos.card)
    base = [Ranking((0,)), Ranking((0,)), Ranking((1,)), Ranking((1,))]
    judge = judge_for(card, [0, 0, 0, 0], list("abcd"), Answers(tuple(base)), 0)
    answers = Answers((None, Ranking((0,)), Ranking((0,)), Ranking((2,))), ((0, "broken"),))
    found = judge.judge(Asked("decode", "decode", "x", "", answers))
    assert judge.score == 0.5 and found.n == 3 and found.refused == (("a", "broken"),)
    assert found.score == 2 / 3 and found.delta == pytest.approx(1 / 3)
    assert found.changed == 2 / 3


@pytest.mark.parametrize(
    "content, words, workers",
    [
        (b"", "empty", 1),
        (b"\xff\xd8\xff nothing", "broken|not a picture", 1),
        (b"text", "not a picture", 2),
    ],
)
def test_files_that_the_card_cannot_read_are_named(photos, tmp_path, content, words, workers):
    data = tmp_path / "data"
    shutil.copytree(photos.data, data)
    (data / "images" / "11.jpg").write_bytes(content)
    with pytest.raises(tasks.DataError, match=rf"11\.jpg: .*({words})"):
        audit_deployment(photos.model, data, out=tmp_path / "o", noises=("crop",), workers=workers)


@pytest.mark.parametrize(
    "kept, words",
    [
        ({"noises": ["blur"]}, "unknown noise 'blur'"),
        ({"added": ["resize=blur"]}, "no option 'blur'"),
        ({"added": ["decode"]}, "no option ''"),
        ({"added": ["blur=x"]}, "unknown noise"),
        ({"tolerance": -1.0}, "--tolerance"),
        ({"workers": 0}, "--workers"),
        ({"int8": ["nothing"]}, "unknown target"),
        ({"limit": 0}, "--limit"),
        ({"deployed": "gone.json"}, "does not exist"),
    ],
)
def test_what_is_refused(photos, tmp_path, kept, words):
    with pytest.raises(ValueError, match=words):
        audit_deployment(photos.model, photos.data, out=tmp_path / "o", **kept)


def test_cards_that_do_not_belong_together(photos, device, tmp_path):
    for changes, words in (
        ({"size": [8, 8]}, "input.size"),
        ({"color": "GRAY", "mean": [0.0], "std": [1.0]}, "number of channels"),
    ):
        with pytest.raises(ValueError, match=words):
            audit_deployment(
                photos.model, photos.data, out=tmp_path / "o", deployed=device(**changes)
            )
    held = json.loads(photos.card.read_text())["input"]["resize"]
    with pytest.raises(ValueError, match=r"input.resize.method: found .opencv-bilinear."):
        path = device(resize=held | {"method": "opencv-bilinear"})
        audit_deployment(photos.model, photos.data, out=tmp_path / "o", deployed=path)


def test_intervals_are_those_of_compare(photos):
    """One side against the other by `line.compare.bootstrap`, on the same draws."""
    from modelmill.line.compare import bootstrap

    card = tasks.load_card(photos.card)
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 5, 40).tolist()
    before = [Ranking((int(c),)) for c in rng.integers(0, 5, 40)]
    after = [Ranking((int(c),)) for c in rng.integers(0, 5, 40)]
    judge = judge_for(card, truths, [str(i) for i in range(40)], Answers(tuple(before)), 3)
    found = judge.judge(Asked("s", "n", "o", "", Answers(tuple(after))))
    right = [np.array([p.classes[0] == t for p, t in zip(side, truths, strict=True)])
             for side in (before, after)]  # fmt: skip
    expected = bootstrap(lambda i: right[0][i].mean(), lambda i: right[1][i].mean(), 40, 3)
    assert (found.delta, found.low, found.high) == pytest.approx(
        (expected.difference, expected.low, expected.high)
    )


def test_pieces():
    assert [list(s) for s in spans(5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_device_that_only_decodes_otherwise_leaves_the_network_as_it_is(photos, tmp_path):
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", added=("decode=ffmpeg",), fix=True
    )
    assert [s.stage for s in found.stages] == ["decode"] and found.fix.mended == ()
    assert ir.fingerprint(ir.load(tmp_path / "o" / "fixed.onnx")) == found.model["fingerprint"]
    again = [f.next for f in found.findings if "--fix" in f.next]
    assert again == []  # it was asked for


def test_advice_repeats_the_device(photos, device, tmp_path):
    found = audit_deployment(
        photos.model, photos.data, out=tmp_path / "o", deployed=device(color="BGR"),
        added=("decode=opencv",),
    )  # fmt: skip
    (step,) = [f.next for f in found.findings if "--fix" in f.next]
    assert "--deployed" in step and "--with decode=opencv --fix" in step
