"""The wire contract: orders.proto, and what `make proto` generates from it."""
