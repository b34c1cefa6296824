"""What stands behind `python -m pipeline.shard`: tasks on Ray, and what is printed."""
