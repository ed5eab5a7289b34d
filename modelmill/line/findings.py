"""Accept or not, and say in words what the reader must know, with the next command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from modelmill.line.report import Deployment, Finding, Report
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
        return [
            Finding(
                "deployment failed",
                d.target,
                d.failed,
                f"modelmill eval {d.artifact} -t {d.target} --data DATA",
            )
        ]
    assert d.score is not None
    found = []
    drop = float(report.float_score["score"]) - d.score.deployed
    if (
        drop > report.max_drop + 1e-9
    ):  # a drop of exactly the limit is allowed, whatever its last bit
        found.append(
            Finding(
                "accuracy drop above the limit",
                d.target,
                f"deployed {report.metric} {d.score.deployed:.4f} is {drop:.4f} below float "
                f"{report.float_score['score']:.4f}; --max-drop allows {report.max_drop:g}",
                "look at the layers with the lowest SQNR in report.html; try more calibration "
                "images: --calibrate 2048",
            )
        )
    if d.fallback_ops and not allow_fallback:
        found.append(
            Finding(
                "operators fell back to float",
                d.target,
                f"{len(d.fallback_ops)} planned integer operators ran in float: "
                f"{', '.join(d.fallback_ops[:5])}",
                f"modelmill check MODEL -t {d.target}, or accept it with --allow-fallback",
            )
        )
    return found


def _remarks(report: Report, d: Deployment, log: Json) -> list[Finding]:
    """What does not refuse the deployment but should be known."""
    if d.failed is not None or d.agreement is None or d.speedup is None:
        return []
    found = []
    if d.agreement.mismatched:
        share = d.agreement.mismatched / max(d.agreement.elements, 1)
        found.append(
            Finding(
                "simulation and engine part",
                d.target,
                f"{d.agreement.mismatched:,} of {d.agreement.elements:,} codes differ "
                f"({share:.2g}), by at most {d.agreement.max_codes}; the first layer that parts is "
                f"{d.agreement.first_divergence}. Given the engine's own inputs, the layers "
                f"themselves differ in {d.agreement.own_mismatched:,} of "
                f"{d.agreement.own_elements:,}, by at most {d.agreement.own_max_codes}; the rest "
                "is handed down",
                f"details/{d.target}.json lists every tensor",
            )
        )
    if d.speedup.verdict != "faster":
        found.append(
            Finding(
                "int8 is not faster here",
                d.target,
                f"float / int8 latency is {d.speedup.ratio:.2f} "
                f"({d.speedup.low:.2f}..{d.speedup.high:.2f}): "
                f"{d.speedup.verdict}",
                "deploy the float model on this engine, unless size or memory decides",
            )
        )
    weak = [layer for layer in log["layers"] if layer["sqnr_db"] < WEAK_LAYER_DB]
    if weak:
        worst = min(weak, key=lambda layer: float(layer["sqnr_db"]))
        found.append(
            Finding(
                "weak layers",
                d.target,
                f"{len(weak)} values have an SQNR below {WEAK_LAYER_DB:g} dB, the lowest is "
                f"{worst['value']} "
                f"({worst['op']}) with {worst['sqnr_db']:.1f} dB",
                "see the SQNR chart in report.html",
            )
        )
    if log["protected"]:
        kept = ", ".join(f"{p['node']} ({p['sqnr_db']:.1f} dB)" for p in log["protected"])
        found.append(
            Finding(
                "layers kept in float to save accuracy",
                d.target,
                f"quantized alone they would lower the SQNR of the outputs to: {kept}",
                "",
            )
        )
    in_float = [v for v in log["verdicts"] if v["runs"] == "float"]
    if in_float:
        listed = ", ".join(f"{v['node']} ({v['op']})" for v in in_float[:4])
        found.append(
            Finding(
                "operators left in float by plan",
                d.target,
                f"{len(in_float)}: {listed}{' ...' if len(in_float) > 4 else ''}",
                f"modelmill check MODEL -t {d.target}",
            )
        )
    return found
