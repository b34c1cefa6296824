"""Renamed recipe keys and options: an old name is refused, and the message names the new one."""

KEYS = {
    "storage": "output_dir",
    "roles.select": "roles.val",
    "roles.report": "roles.test",
    "data.strays": "data.treat_as_ignored",
    "data.custom.classes.codes": "data.custom.classes.label_values",
    "loader.cache": "loader.cache_dir",
    "loader.augmentation.class_balance": "loader.augmentation.max_class_fraction",
    "train.global_batch": "train.global_batch_size",
    "train.micro_batch": "train.micro_batch_size",
    "evaluate.augmentation": "evaluate.tta",
    "sweep.fixed": "sweep.overrides",
    "sweep.trial": "sweep.trial_overrides",
    "sweep.trials": "sweep.num_trials",
    "sweep.concurrent": "sweep.max_concurrent_trials",
}
"""Old dotted key to new one; positions in lists are left out."""

OPTIONS = {
    "--augmentation": "--tta",
    "--batches": "--preview-batches",
    "--inline": "--no-ray",
    "--repeat": "--seeds",
    "--storage": "--output-dir",
    "--store": "--tracking-uri",
    "--stretch": "--scale-range",
}
"""Old option of a command to the new one."""


def new_key(key: str) -> str | None:
    """Returns the new name of a dotted key or of its section; None if it has not changed."""
    name = ".".join(part for part in key.split(".") if not part.isdigit())
    for old, new in KEYS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None
