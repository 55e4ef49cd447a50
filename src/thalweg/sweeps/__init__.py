"""Many runs: a plan of cells, a ledger that survives, and many runs as one program."""
