"""Accept or not, and say in words what the reader must know, with the next command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modelmill.line.report import FLOAT, AgreementReport, Deployment, Finding, Report
from modelmill.line.store import Json

WEAK_LAYER_DB = 10.0  # below this more than a tenth of a value's energy is noise


def conclude(
    report: Report, notes: Sequence[str], logs: Mapping[str, Json], allow_fallback: bool
) -> Report:
    """The report with `accepted` and `findings`; the build is accepted if every deployment is."""
    found: list[Finding] = []
    refused = False
    for deployment in report.deployments:
        refusals = _refusals(report, deployment, allow_fallback)
        refused = refused or bool(refusals)
        found += refusals + _remarks(report, deployment, logs[deployment.target])
    found += [Finding("note", "", note, "") for note in notes]
    return replace(report, accepted=not refused, findings=tuple(found))


def _refusals(report: Report, d: Deployment, allow_fallback: bool) -> list[Finding]:
    """Why this deployment is not accepted."""
    if d.failed is not None:
        artifact = Path(report.folder) / d.artifact
        again = f"modelmill bench {artifact} -t {d.target}"
        return [Finding("deployment failed", d.target, d.failed, again)]
    assert d.score is not None
    found = []
    drop = report.drop(d)
    if drop > report.max_drop + 1e-9:  # exactly the limit is allowed, whatever its last bit
        how, value = "deployed", d.score.deployed
        if value is None:
            how, value = "simulated", d.score.simulated
        why = (
            f"{how} {report.metric} {value:.4f} is {drop:.4f} below float {drop + value:.4f}; "
            f"--max-drop allows {report.max_drop:g}{_best_of(d)}"
        )
        advice = (
            f"modelmill explain {shlex.quote(report.folder or 'OUT')} -t {d.target}, which says "
            "where it went and what mends it"
        )
        found.append(Finding("accuracy drop above the limit", d.target, why, advice))
    if d.fallback_ops and not allow_fallback:
        why = (
            f"{len(d.fallback_ops)} planned integer operators ran in float: "
            f"{', '.join(d.fallback_ops[:5])}"
        )
        advice = f"modelmill check MODEL -t {d.target}, or accept it with --allow-fallback"
        found.append(Finding("operators fell back to float", d.target, why, advice))
    return found


def _best_of(d: Deployment) -> str:
    """What else was tried, where something was."""
    if len(d.attempts) < 2:
        return ""
    tried = [
        f"{a.name} failed" if a.score is None else f"{a.name} {a.score:.4f}" for a in d.attempts
    ]
    best = next(a.name for a in d.attempts if a.kept)
    return f". This is the best of all that was tried, {best}: {', '.join(tried)}"


def _learned(d: Deployment) -> list[Finding]:
    """Units of a reconstruction in which plain rounding was better and stayed."""
    if d.reconstruction is None or not d.reconstruction.kept_rounding:
        return []
    kept = d.reconstruction.kept_rounding
    listed = f"{', '.join(kept[:4])}{' ...' if len(kept) > 4 else ''}"
    why = (
        f"in {len(kept)} of {d.reconstruction.units} units {d.reconstruction.algorithm} made the "
        f"output worse on images held out; they keep plain rounding: {listed}"
    )
    return [Finding("units that learned nothing", d.target, why, "more images with --calibrate")]


def _remarks(report: Report, d: Deployment, log: Json) -> list[Finding]:
    """What does not refuse the deployment but should be known."""
    if d.failed is not None:
        return []
    found = _learned(d)
    if log.get("simulated"):
        advice = f"modelmill check MODEL -t {d.target} --precision {d.precision}"
        found.append(Finding("simulated only", d.target, log["simulated"], advice))
    if d.precision == FLOAT:
        found.append(_stays_float(d, log.get("search")))
    if d.agreement is None:
        return found
    if d.agreement.mismatched:
        found.append(_parting(report, d.target, d.agreement))
    if d.speedup is not None and d.speedup.verdict != "faster":
        why = (
            f"float / int8 latency is {d.speedup.ratio:.2f} "
            f"({d.speedup.low:.2f}..{d.speedup.high:.2f}): {d.speedup.verdict}"
        )
        advice = "deploy the float model on this engine, unless size or memory decides"
        found.append(Finding("int8 is not faster here", d.target, why, advice))
    weak = [layer for layer in log["layers"] if layer["sqnr_db"] < WEAK_LAYER_DB]
    if weak:
        worst = min(weak, key=lambda layer: float(layer["sqnr_db"]))
        why = (
            f"{len(weak)} values have an SQNR below {WEAK_LAYER_DB:g} dB, the lowest is "
            f"{worst['value']} ({worst['op']}) with {worst['sqnr_db']:.1f} dB"
        )
        found.append(Finding("weak layers", d.target, why, "see the SQNR chart in report.html"))
    if log.get("protected"):
        kept = ", ".join(f"{p['node']} ({p['sqnr_db']:.1f} dB)" for p in log["protected"])
        why = f"quantized alone they would lower the SQNR of the outputs to: {kept}"
        found.append(Finding("layers kept in float to save accuracy", d.target, why, ""))
    in_float = [v for v in log["verdicts"] if v["runs"] == "float"]
    if in_float:
        listed = ", ".join(f"{v['node']} ({v['op']})" for v in in_float[:4])
        why = f"{len(in_float)}: {listed}{' ...' if len(in_float) > 4 else ''}"
        advice = f"modelmill check MODEL -t {d.target}"
        found.append(Finding("operators left in float by plan", d.target, why, advice))
    return found


def _stays_float(d: Deployment, search: Json | None) -> Finding:
    """Why the float model is deployed; `search`: None where an earlier build has decided that."""
    if search is None:
        why = "an earlier build found nothing on integers that was as fast, or as accurate as asked"
    elif search["answer"] == FLOAT and search["objective"] == "latency":
        quantized, base = search["uniform"]["ms"], search["chosen"]["ms"]
        why = (
            f"int8 takes {quantized / base:.2f} times as long ({quantized:.3g} ms, float "
            f"{base:.3g} ms), and fewer layers on int8 do not help"
        )
        return Finding("float is the fastest here", d.target, why, "")
    else:
        drops = [a.drop for a in d.attempts if a.drop is not None and a.name != FLOAT]
        why = f"the best of what was tried on integers loses {min(drops):.4f}, more than allowed"
    return Finding("the float model is deployed", d.target, why, "")


def _parting(report: Report, target: str, a: AgreementReport) -> Finding:
    why = (
        f"{a.mismatched:,} of {a.elements:,} codes differ ({a.mismatched / a.elements:.2g}), by at "
        f"most {a.max_codes}; the first layer that parts is {a.first_divergence}. Given the "
        f"engine's own inputs, the layers themselves differ in {a.own_mismatched:,} of "
        f"{a.own_elements:,}, by at most {a.own_max_codes}; the rest is handed down"
    )
    details = Path(report.folder) / "details" / f"{target}.json"
    return Finding("simulation and engine part", target, why, f"{details} lists every tensor")
