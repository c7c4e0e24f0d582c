"""One training loop for every task: step, checkpoints, metrics."""
