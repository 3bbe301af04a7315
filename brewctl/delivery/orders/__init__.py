"""The write path: an order and its event are written in one commit. Nothing here talks to Kafka."""
