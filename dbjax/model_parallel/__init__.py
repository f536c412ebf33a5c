"""Model parallelism: sharding one replica's network over several devices (section 3)."""
