"""Check whether this machine and the servers can run the order flow. Changes nothing, names a fix for each failure."""

from brewctl.doctor.examination import examine
from brewctl.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
