"""What `python -m pipeline.shard` does: recipe to spec, tasks on Ray, tables and pictures."""
