"""`python -m brewctl`: the same as `brewctl`, by the interpreter of one's choice."""

from brewctl.cli.main import main

main()
