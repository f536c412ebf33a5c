"""What the speed claims come from: ratios within one run, never yesterday's number."""
