"""Other frameworks' own interfaces, with the critic behind them; each needs its framework and nothing else."""
