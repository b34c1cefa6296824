"""Exact evaluations: `run` turns a `request` into a `result`; `report` writes it, with published figures."""
