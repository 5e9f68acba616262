"""What acdc does on a GPU, measured by one command of a few minutes: `python -m benchmarks gpu`."""
