"""Models in MLflow's registry: what a version holds, who is champion, and how a challenger becomes it."""
