"""Which visual tokens to keep: scores, budgets and methods as pure tensor functions."""
