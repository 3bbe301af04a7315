"""`python -m brewctl`: the command `brewctl`, run by a chosen interpreter."""

from brewctl.cli.main import main

main()
