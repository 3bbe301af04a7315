"""One client of several at the same time: `python -m brewctl.lab.bench.client`, which clients.py starts."""

import json
import pickle
import sys

from brewctl.errors import BrewError
from brewctl.lab.bench.clients import GO, READY
from brewctl.lab.load.measure import measure


def main(asked: str) -> None:
    """Wait for the word, load as `asked`, the arguments of `measure`, and write the result."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    if sys.stdin.buffer.readline() != GO:
        return  # the process that started it has ended
    try:
        result = measure(**json.loads(asked))
    except BrewError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(pickle.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
