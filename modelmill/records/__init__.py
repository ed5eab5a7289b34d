"""One measured fact and where it came from, and the database that keeps all of them."""

from modelmill.records.database import Database
from modelmill.records.machine import Machine, has_vnni, this_machine
from modelmill.records.record import Record, Where, utc_now

__all__ = ["Database", "Machine", "Record", "Where", "has_vnni", "this_machine", "utc_now"]
