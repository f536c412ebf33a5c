"""Benchmarks behind the speed claims: ratios measured within one run, never to older numbers."""
