"""Whether the flow kept its promises, from the sources: PostgreSQL and the topic, and no counter of any process."""

from brewctl.verify.chain import verify
from brewctl.verify.result import Check, Facts, Verification
from brewctl.verify.settle import settle

__all__ = ["Check", "Facts", "Verification", "settle", "verify"]
