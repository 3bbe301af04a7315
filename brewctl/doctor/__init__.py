"""Whether this machine and the servers are fit for the flow: questions that change nothing, and what mends the rest."""

from brewctl.doctor.examination import examine
from brewctl.doctor.finding import Finding, Verdict

__all__ = ["Finding", "Verdict", "examine"]
