"""Results of a sweep: trials, their configurations, and a Markdown report that compares the lead with the noise."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.tuning.space import describe, trial_key

METRIC = "val/miou"
"""Metric that ranks trials: mean IoU over the scored classes of the val split."""

SEED = "seed"


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        key: hash of the values, see `pipeline.tuning.space.trial_key`.
        name: name of its training run.
        values: swept keys.
        status: `started`, `finished`, `pruned` or `failed`.
        score: best `METRIC` so far, None before the first evaluation.
        epoch: epochs done.
        best_epoch: epoch of `score`.
        curve: `METRIC` by epoch over all sessions; the epoch as text, as in JSON.
        seconds: wall time.
        run_id: its MLflow run.
        error: why it failed.
    """

    key: str
    name: str
    values: Mapping[str, Any]
    status: str = "started"
    score: float | None = None
    epoch: int = 0
    best_epoch: int = 0
    curve: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    run_id: str | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it ran to its end or was pruned."""
        return self.status in ("finished", "pruned")

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Configuration:
    """Trials that differ only in their seed.

    Attributes:
        values: swept keys without the seed.
        trials: at least one.
    """

    values: Mapping[str, Any]
    trials: Sequence[Trial]

    @property
    def scores(self) -> list[float]:
        """Scores of the seeds that have one."""
        return [trial.score for trial in self.trials if trial.score is not None]

    @property
    def mean(self) -> float:
        """Mean score; minus infinity if there is none."""
        return statistics.fmean(self.scores) if self.scores else -math.inf

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def complete(self) -> bool:
        """Whether every seed ran to its end."""
        return all(trial.status == "finished" for trial in self.trials)


@dataclass(frozen=True)
class SweepSummary:
    """All trials of a sweep, and their comparison.

    Attributes:
        name: of the sweep.
        trials: trials of the search, which decide the order.
        length: of a trial, in words.
        repeats: trials of the winner with more seeds (`--seeds`); they measure the noise and do not change the order.
    """

    name: str
    trials: Sequence[Trial]
    length: str
    repeats: Sequence[Trial] = ()

    @property
    def configurations(self) -> list[Configuration]:
        """Configurations by mean score, best first, then those without a score; ties keep the order of the search."""
        by_values: dict[str, list[Trial]] = {}
        for trial in self.trials:
            by_values.setdefault(trial_key(without_seed(trial.values)), []).append(trial)
        grouped = [Configuration(without_seed(trials[0].values), trials) for trials in by_values.values()]
        return sorted(grouped, key=lambda config: -config.mean)

    @property
    def best(self) -> Configuration | None:
        """The best configuration whose trials ran to their end, else the best of all; None without any score."""
        scored = [config for config in self.configurations if config.scores]
        return next(iter([config for config in scored if config.complete] or scored), None)

    @property
    def repeated(self) -> Configuration | None:
        """The best configuration with all its seeds, including those of `--seeds`."""
        best = self.best
        return best and Configuration(best.values, [*best.trials, *self.repeats])

    def verdict(self) -> str:
        """Returns a text on whether the winner's lead exceeds the noise, as far as the sweep has measured it."""
        best, repeated = self.best, self.repeated
        others = [
            config
            for config in self.configurations
            if config.scores and best and config.values != best.values
        ]
        if best is None or repeated is None or not others:
            return "One scored configuration: nothing to compare."
        second = others[0]
        lead = best.mean - second.mean
        if repeated.deviation is None:
            return (
                f"The winner leads by {lead:.4f} mIoU with one seed a configuration over {self.length}. "
                "The order may be noise: repeat the winner with `--seeds 3` before you rely on it."
            )
        # A runner-up with a single seed is assumed to be as noisy as the winner.
        variances = [(repeated.deviation**2, len(best.scores)), _spread(second, repeated.deviation)]
        noise = 2 * math.sqrt(sum(variance / seeds for variance, seeds in variances))
        word = "exceeds" if lead > noise else "is within"
        return (
            f"The winner's lead of {lead:.4f} mIoU {word} the noise of {noise:.4f} (twice the standard error of the "
            f"difference; the winner's {len(repeated.scores)} seeds: {_mean(repeated)}; next: "
            f"{describe(second.values)}, {_mean(second)})."
        )

    def rows(self) -> list[list[str]]:
        """Returns the cells of the trial table, best first, those without a score last, then the repeats."""
        ordered = sorted(self.trials, key=lambda trial: math.inf if trial.score is None else -trial.score)
        return [_row(rank, trial) for rank, trial in enumerate([*ordered, *self.repeats], start=1)]

    def summary_rows(self) -> list[list[str]]:
        """Returns the cells of the table of configurations, mean and deviation over seeds, best first."""
        best, repeated = self.best, self.repeated
        shown = [
            repeated if best and config.values == best.values else config for config in self.configurations
        ]
        return [_summary_row(rank, config) for rank, config in enumerate(filter(None, shown), start=1)]

    @property
    def has_seeds(self) -> bool:
        """Whether any configuration ran with more than one seed."""
        return bool(self.repeats) or any(len(config.trials) > 1 for config in self.configurations)

    def to_markdown(self) -> str:
        """Returns the report: best configuration, verdict, configurations (if there are seeds), all trials."""
        best, repeated = self.best, self.repeated
        lines = [f"# Sweep {self.name}", ""]
        if best and repeated:
            runs = ", ".join(trial.name for trial in repeated.trials)
            lines += [f"Best: **{describe(best.values)}**, {METRIC} {_mean(repeated)} (run {runs})", ""]
        lines += [self.verdict(), ""]
        if self.has_seeds:
            lines += [*_table(SUMMARY_HEADER, self.summary_rows()), ""]
        lines += _table(HEADER, self.rows())
        failed = [trial for trial in (*self.trials, *self.repeats) if trial.error]
        lines += [f"\n`{trial.name}` failed: {trial.error}" for trial in failed]
        return "\n".join(lines) + "\n"


HEADER = ("#", "configuration", METRIC, "epochs", "status", "minutes", "run")
SUMMARY_HEADER = ("#", "configuration", METRIC, "deviation", "seeds", "minutes each")


def without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns swept keys without the seed."""
    return {key: value for key, value in values.items() if key != SEED}


def _spread(configuration: Configuration, otherwise: float) -> tuple[float, int]:
    deviation = configuration.deviation
    return (otherwise if deviation is None else deviation) ** 2, len(configuration.scores)


def _mean(configuration: Configuration) -> str:
    deviation = configuration.deviation
    return f"{configuration.mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _row(rank: int, trial: Trial) -> list[str]:
    score = f"{trial.score:.4f}" if trial.score is not None else "-"
    minutes = f"{trial.seconds / 60:.1f}"
    return [str(rank), describe(trial.values), score, str(trial.epoch), trial.status, minutes, trial.name]


def _summary_row(rank: int, config: Configuration) -> list[str]:
    deviation = config.deviation
    minutes = statistics.fmean(trial.seconds for trial in config.trials) / 60
    return [
        str(rank),
        describe(config.values),
        f"{config.mean:.4f}" if config.scores else "-",
        "-" if deviation is None else f"{deviation:.4f}",
        str(len(config.scores)),
        f"{minutes:.1f}",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]
