"""What acdc costs, measured against what it must not cost: `python -m benchmarks [NAME …]`."""
