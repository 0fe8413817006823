"""What only the command line uses: one module or package for each command of `vlac-queue`."""
