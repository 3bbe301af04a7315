"""`python -m tests.mutations.mutant ARGUMENTS` is `brewctl ARGUMENTS` with the changes that BREW_MUTATION names.

Its consumers keep the ledger, as those of `brewctl chaos` do.
"""

import os
import runpy

from brewctl.lab.chaos import ledger
from tests.mutations.changes import CHANGES

MODULE = "tests.mutations.mutant"
VARIABLE = "BREW_MUTATION"

if __name__ == "__main__":
    for name in os.environ.get(VARIABLE, "").split():
        CHANGES[name]()
    ledger.keep()
    runpy.run_module("brewctl", run_name="__main__", alter_sys=True)
