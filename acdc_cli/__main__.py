"""`python -m acdc_cli`, for machines where the package is on the path but not installed."""

from acdc_cli.cli.app import main

main()
