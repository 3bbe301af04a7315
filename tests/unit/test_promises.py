"""What `make mutations` breaks: each place in the code is there, each test is there, and the docs name both."""

import re

import pytest

from tests.mutations.promises import PROMISES, ROOT, Broken, break_it


@pytest.mark.parametrize("broken", PROMISES, ids=lambda broken: f"{broken.promise}: {broken.what}")
def test_a_promise_can_be_broken_and_has_tests(broken: Broken) -> None:
    text = (ROOT / broken.file).read_text()
    assert break_it(broken, text) != text
    assert broken.tests
    for test in broken.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_the_docs_list_what_is_broken() -> None:
    page = (ROOT / "docs" / "failure-modes.md").read_text()
    for broken in PROMISES:
        assert f"| {broken.promise} | {broken.what} |" in page
