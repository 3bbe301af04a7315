"""Real PostgreSQL and Kafka as background processes, for a machine that has neither. Knows no roles."""
