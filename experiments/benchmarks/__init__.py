"""Speed, each claim with its command; results in experiments/results."""
