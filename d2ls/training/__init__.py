"""The training loop and what it needs; knows no Ray, no MLflow and no recipe file."""
