"""One module per method: its Config, service classes, client, and `program`."""
