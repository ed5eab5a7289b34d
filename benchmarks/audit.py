"""What does each noise cost? Audits of a classifier and of a detector, all noises, with intervals.

    python benchmarks/audit.py [--workers 2] [--limit N] [--out FOLDER] [--note WORDS] [--write]

Also: a card whose colour order is swapped, a card with another filter, and whether the same seed
gives the same bytes. With --out the audits are kept there, and a stopped benchmark goes on. CPU
seconds are those of all processes together. Exit code 1: a goal is missed.
"""

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from provenance import data_folder, passed, publish, table

from modelmill.line.audit import AuditOptions, audit_deployment
from modelmill.line.figures import Unit

MODELS = (("mobilenetv1_025_imagenet", "imagenet"), ("fastestdet_coco", "coco"))
MOST_S = 360
ORDER = ("resize", "decode", "colour")  # as published, by their worst option


def numbers(unit, o):
    interval = f"[{unit.delta(o.low)}, {unit.delta(o.high)}]"
    return (unit.delta(o.delta), interval, f"{100 * o.changed:.1f} %", f"{o.largest or 0:.3g}")


def cpu_s():
    """CPU seconds of this process and of those that it waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(s.ru_utime + s.ru_stime for s in spent)


def timed(model, images, options, out):
    """One audit with all noises: (report, wall seconds, CPU seconds)."""
    start, spent = time.perf_counter(), cpu_s()
    report = audit_deployment(model, images, dataclasses.replace(options, out=out))
    kept = out / "times.json"
    if not kept.exists():
        kept.write_text(json.dumps([time.perf_counter() - start, cpu_s() - spent]))
    return report, *json.loads(kept.read_text())


def whole(model, images, options, out):
    """The same, with its tables: (report, markdown, wall seconds, CPU seconds)."""
    report, seconds, cpu = timed(model, images, options, out)
    unit = Unit(report.metric)
    rows = [
        (s.noise, s.options, unit.delta(s.mean), s.worst.option, *numbers(unit, s.worst))
        for s in report.summaries
    ]
    for t in (report.combined, report.greedy):
        if t is not None:
            steps = ", ".join(f"{noise} {option}" for noise, option, _ in t.steps)
            rows.append((t.outcome.option, len(t.steps), "", steps, *numbers(unit, t.outcome)))
    columns = (
        "noise", "options", "mean", "worst option", "difference", "95 % interval", "changed",
        "largest output change",
    )  # fmt: skip
    made = sorted((o for o in report.outcomes if o.mistake), key=lambda o: o.delta)
    mistakes = [(o.noise, o.about, *numbers(unit, o)) for o in made]
    options_of = [(o.noise, o.option, *numbers(unit, o)) for o in report.outcomes if not o.mistake]
    left_out = [f"- {' '.join(filter(None, name))}: {why}" for *name, why in report.left_out]
    text = "\n".join([
        f"## {report.model['name']}, {report.n} images, {unit.label} {unit.score(report.score)}",
        "", f"{len(report.outcomes)} options, {seconds:.0f} s, {cpu:.0f} s of CPU. Differences are "
        f"option minus card{', in points' if unit.percent else ''}.", "",
        table(columns, rows), "", "Mistakes:", "",
        table(("noise", "what", *columns[4:]), mistakes), "",
        "<details><summary>Every option</summary>", "",
        table(("noise", "option", *columns[4:]), options_of), "", "</details>", "",
        "Left out:", "", *left_out, "",
    ])  # fmt: skip
    return report, text, seconds, cpu


def device(model, images, card, options, out):
    """A device's card: (named stage, its difference in words, report)."""
    path = Path(f"{out}.json")
    path.write_text(json.dumps(card))
    asked = dataclasses.replace(options, out=out, deployed=path, fix=True)
    report = audit_deployment(model, images, asked)
    (said,) = [f for f in report.findings if f.what == "this stage costs the accuracy"] or [None]
    unit, o = Unit(report.metric), report.device
    words = f"{unit.score(report.score)} to {unit.score(o.score)}, {numbers(unit, o)[0]} "
    fixed = unit.delta(report.fix.outcome.delta)
    named = said.where if said else "none"
    return named, (named, words + numbers(unit, o)[1], fixed), report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    folder = data_folder()
    options = AuditOptions(workers=asked.workers, limit=asked.limit, resume=True)
    parts, goals = [], []
    with tempfile.TemporaryDirectory(prefix="modelmill-") as temporary:
        scratch = asked.out or temporary
        for name, images in MODELS:
            model = str(folder / "models" / f"{name}.onnx")
            report, text, seconds, cpu = whole(
                model, folder / images, options, Path(scratch) / name
            )
            parts.append(text)
            took = f"{seconds:.0f} s ({cpu:.0f} s of CPU)"
            goals.append((f"{name}, all noises", took, f"{MOST_S} s", passed(seconds <= MOST_S)))
            if images == "imagenet":
                worst = {s.noise: s.worst.delta for s in report.summaries}
                order = sorted(ORDER, key=worst.get)
                goals.append(("worst of resize, decode, colour", " > ".join(order),
                              " > ".join(ORDER), passed(tuple(order) == ORDER)))  # fmt: skip
                lowest = min(s.worst.delta for s in report.summaries)
                sets = (report.combined, report.greedy)
                both = [t.outcome.delta for t in sets if t is not None] or [0.0]
                goals.append(("together worst of all", f"{100 * min(both):.1f} points",
                              f"{100 * lowest:.1f} points alone",
                              passed(min(both) <= lowest)))  # fmt: skip
        model = str(folder / "models" / f"{MODELS[0][0]}.onnx")
        card = json.loads(Path(model).with_suffix(".json").read_text())
        rows = []
        swapped = {**card, "input": {**card["input"], "color": "BGR"}}
        resize = {**card["input"]["resize"], "method": "opencv-linear"}
        other = {**card, "input": {**card["input"], "resize": resize}}
        for what, held, stage in (("colour order swapped", swapped, "channel order"),
                                  ("opencv-linear", other, "resize")):  # fmt: skip
            named, row, _ = device(model, folder / "imagenet", held, options,
                                   Path(scratch) / stage.replace(" ", "-"))  # fmt: skip
            rows.append((what, *row))
            goals.append((what, f"{named} named", f"{stage} named", passed(named == stage)))
        again = [
            audit_deployment(model, folder / "imagenet", dataclasses.replace(
                options, out=Path(scratch) / f"again-{workers}", noises=("crop",), limit=48,
                workers=workers,
            ))
            for workers in (1, 2)
        ]  # fmt: skip
        same = len({(Path(r.folder) / "audit.json").read_bytes() for r in again}) == 1
        goals.append(("same seed, one process and two", "same bytes" if same else "other bytes",
                      "same bytes", passed(same)))  # fmt: skip
    note = [asked.note, ""] if asked.note else []
    goal_table = table(("what", "found", "goal", ""), goals)
    parts.insert(0, "\n".join([*note, goal_table, ""]))
    parts.append("\n".join([
        "## A device's card against the training card", "",
        table(("device", "stage named", "the device", "after --fix"), rows),
    ]))  # fmt: skip
    title = "What the deployed pipeline costs: audits of a classifier and a detector"
    publish(__file__, title, "\n".join(parts), asked.write)
    sys.exit(0 if all(goal[-1] == "pass" for goal in goals) else 1)


if __name__ == "__main__":
    main()
