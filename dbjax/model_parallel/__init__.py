"""Programs cut over devices, and what they cost."""
