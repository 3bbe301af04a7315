"""Which process runs which tests."""

from xdist.scheduler import LoadFileScheduling

# They play on a sandbox of three brokers, which takes a while to start.
_OF_THREE_BROKERS = {f"tests/acceptance/test_{name}.py" for name in ("demo", "kills", "mutations", "story", "top")}


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """File by file; all files of three brokers in one process, which brings these up once."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "three brokers" if file in _OF_THREE_BROKERS else file
