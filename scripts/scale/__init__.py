"""What training costs on many GPUs, from measured and assumed parts: `python -m scripts.scale`, docs/scale.md."""
