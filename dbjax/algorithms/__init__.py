"""The training methods, one module each: a Config, service classes, a client, and `program`."""
