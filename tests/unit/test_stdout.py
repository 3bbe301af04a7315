"""What becomes of a line that can't be printed."""

import os
import sys
from pathlib import Path

import pytest

from brewctl import stdout
from brewctl.errors import BrewError


def test_a_disk_that_is_full_is_said_and_nothing_more_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(BrewError, match=r"^stdout can't be written \(no space left on device\)$"):
            stdout.put("a line")
        assert os.fstat(full.fileno()).st_rdev == Path(os.devnull).stat().st_rdev
