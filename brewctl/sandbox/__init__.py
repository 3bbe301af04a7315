"""Real PostgreSQL and Kafka as child processes of nobody, for a machine that has neither. Knows no roles."""
