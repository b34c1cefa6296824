"""The code of `python -m pipeline.shard`: recipe to spec, tasks on Ray, tables and pictures."""
