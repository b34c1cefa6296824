"""Sweeps: space, plan, trials, progress, report."""
