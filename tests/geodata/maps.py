"""Rows about scenes to be mapped."""
