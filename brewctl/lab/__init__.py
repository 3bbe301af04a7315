"""What drives the roles from outside, as `brewctl` subprocesses: the demo."""
