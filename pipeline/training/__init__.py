"""A training run, between the command `pipeline.train` and the trainer of `d2ls`.

`run` goes from a request to a result: it claims the run folder (`run_folder`), opens the MLflow run (`tracked_run`) and
starts the workers (`launch`). Each `worker` builds its objects from the recipe (`build`) and trains. Rank 0 writes the
progress (`progress`), the driver shows it (`progress_view`).
"""
