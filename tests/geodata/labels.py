"""Rows about label images."""
