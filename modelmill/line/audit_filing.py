"""File what an audit measured: one Record an option, in the audit's folder and in the user's
database.
"""

from __future__ import annotations

from modelmill.line.audit_report import AuditReport, Outcome
from modelmill.line.show import Show
from modelmill.line.store import Store
from modelmill.records.database import Database
from modelmill.records.engine import UnreachableError
from modelmill.records.machine import this_machine
from modelmill.records.record import Record, Where, utc_now

OWN = "records.db"


def file_records(
    report: AuditReport, store: Store, audit: str, db: str | None, show: Show
) -> list[Record]:
    """Write the facts; what the audit's own database has already is not written again.

    Raises:
        ValueError: the database cannot be opened or written.
    """
    own = Database(store.path(OWN))
    known = {(r.what, r.extra["noise"], r.extra["option"]) for r in own.query(build=audit)}
    outcomes = [*report.outcomes]
    outcomes += [t.outcome for t in (report.combined, report.greedy) if t is not None]
    outcomes += [report.device] if report.device is not None else []
    found = [_record(report, o, audit) for o in outcomes]
    found = [r for r in found if (r.what, r.extra["noise"], r.extra["option"]) not in known]
    own.add(found)
    if db is not None and found:
        try:
            Database(db).add(found)
        except UnreachableError as error:
            show.say(f"{error}. The facts are in {store.path(OWN)}")
    return found


def _record(report: AuditReport, outcome: Outcome, audit: str) -> Record:
    """The difference, or without labels the share of changed predictions."""
    machine = this_machine()
    delta = outcome.delta
    spread = None
    if delta is not None and outcome.low is not None and outcome.high is not None:
        spread = (outcome.high - outcome.low) / 2
    return Record(
        what=f"audit_{report.metric}_delta" if delta is not None else "audit_changed",
        value=outcome.changed if delta is None else delta,
        unit="fraction",
        n=max(outcome.n, 1),
        spread=spread,
        subject=report.model["fingerprint"],
        where=Where(device=machine.cpu, engine=report.engine, threads=1, isa=machine.isa),
        when=utc_now(),
        build=audit,
        extra={
            "model": report.model["name"],
            "noise": outcome.noise,
            "option": outcome.option,
            "score": outcome.score,
            "changed": outcome.changed,
            "mistake": outcome.mistake,
        },
    )
