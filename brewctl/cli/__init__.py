"""The commands: parse, call, print. One module per group; each imports what it needs when it runs."""
