"""What a sweep is made of: space, plan, trials, progress, report."""
