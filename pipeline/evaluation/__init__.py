"""Exact evaluations: `run` goes from a `request` to a `result`, `report` writes it down beside published figures."""
