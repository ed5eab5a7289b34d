"""One measured fact and where it came from, and the database that keeps all of them."""

from modelmill.records.database import Database
from modelmill.records.engine import UnreachableError
from modelmill.records.latencies import Latencies, Row, StoredPredictor
from modelmill.records.location import default_location
from modelmill.records.machine import Machine, has_vnni, this_machine
from modelmill.records.measurement import Measurement, ModelFacts, Platform
from modelmill.records.record import Record, Where, utc_now
from modelmill.records.spool import Delivery, deliver

__all__ = [
    "Database",
    "Delivery",
    "Latencies",
    "Machine",
    "Measurement",
    "ModelFacts",
    "Platform",
    "Record",
    "Row",
    "StoredPredictor",
    "UnreachableError",
    "Where",
    "default_location",
    "deliver",
    "has_vnni",
    "this_machine",
    "utc_now",
]
