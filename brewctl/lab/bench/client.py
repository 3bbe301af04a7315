"""One of several load clients, each a process of its own. clients.py starts them."""

import json
import pickle
import sys

from brewctl.errors import BrewError
from brewctl.lab.bench.clients import GO, READY
from brewctl.lab.load.measure import measure


def main(asked: str) -> None:
    """Wait for GO on stdin, run `measure` with the arguments `asked` (JSON), and write the pickled result."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    if sys.stdin.buffer.readline() != GO:
        return  # the parent process has ended
    try:
        result = measure(**json.loads(asked))
    except BrewError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(pickle.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
