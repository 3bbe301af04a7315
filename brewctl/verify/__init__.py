"""Check that the flow kept its promises. Reads PostgreSQL and the topic; trusts no counter of any process."""

from brewctl.verify.chain import LATE_S, STATEMENT_S, verify
from brewctl.verify.result import Check, Facts, Verification
from brewctl.verify.settle import settle

__all__ = ["LATE_S", "STATEMENT_S", "Check", "Facts", "Verification", "settle", "verify"]
