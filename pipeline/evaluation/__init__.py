"""Evaluations as values, and their reports."""
