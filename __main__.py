"""`python -m branchgrpo` is the command `branchgrpo`."""

from .cluster.cli import main

main()
