"""What a sweep found: a row a trial, a table, a Markdown report with an honest word about noise."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.searching.space import describe

METRIC = "select/miou"
"""What ranks trials: mean IoU over the scored classes of the selection split."""


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        key: name by content, see `pipeline.searching.space.trial_key`.
        name: name of its training run.
        values: swept keys.
        status: `started`, `finished`, `pruned` or `failed`.
        score: best `METRIC` so far, None before the first evaluation.
        epoch: epochs done.
        best_epoch: epoch of `score`.
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
    seconds: float = 0.0
    run_id: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Repeats:
    """The best configuration trained again with other seeds."""

    seeds: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN for a single score."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else float("nan")


@dataclass(frozen=True)
class SweepSummary:
    """All trials of a sweep and what follows from them."""

    name: str
    trials: Sequence[Trial]
    epochs: int
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def ranked(self) -> list[Trial]:
        """Trials with a score, best first; ties keep the order of the search."""
        return sorted((t for t in self.trials if t.score is not None), key=lambda t: -(t.score or 0.0))

    @property
    def best(self) -> Trial | None:
        """The best trial that ran to its end, else the best at all."""
        finished = [trial for trial in self.ranked if trial.status == "finished"]
        return next(iter(finished or self.ranked), None)

    def verdict(self) -> str:
        """Says whether the winner's lead exceeds the noise, as far as the sweep can know it."""
        ranked = self.ranked
        if len(ranked) < 2:
            return "One scored trial: nothing to compare."
        lead = (ranked[0].score or 0.0) - (ranked[1].score or 0.0)
        if len(self.repeats.scores) < 2:
            return (
                f"The winner leads by {lead:.4f} mIoU with one seed a configuration over {self.epochs} epoch(s). "
                "So short a sweep ranks by noise as much as by merit: `--repeat 3` before believing the order."
            )
        noise = 2 * self.repeats.deviation
        word = "exceeds" if lead > noise else "is within"
        return (
            f"The winner's lead of {lead:.4f} mIoU {word} the noise of {noise:.4f} (twice the deviation of "
            f"{len(self.repeats.scores)} seeds: {self.repeats.mean:.4f} ± {self.repeats.deviation:.4f})."
        )

    def rows(self) -> list[list[str]]:
        """Returns the cells of the trial table, best first, those without a score last."""
        ranked = self.ranked
        rest = [trial for trial in self.trials if trial.score is None]
        return [_row(rank, trial) for rank, trial in enumerate([*ranked, *rest], start=1)]

    def to_markdown(self) -> str:
        """Returns the report: best configuration, verdict, all trials."""
        best = self.best
        lines = [f"# Sweep {self.name}", ""]
        if best:
            lines += [f"Best: **{describe(best.values)}**, {METRIC} {best.score:.4f} (run {best.name})", ""]
        lines += [self.verdict(), "", "| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        lines += [f"\n`{trial.name}` failed: {trial.error}" for trial in self.trials if trial.error]
        return "\n".join(lines) + "\n"


HEADER = ("#", "configuration", METRIC, "epochs", "status", "minutes", "run")


def _row(rank: int, trial: Trial) -> list[str]:
    score = f"{trial.score:.4f}" if trial.score is not None else "-"
    minutes = f"{trial.seconds / 60:.1f}"
    return [str(rank), describe(trial.values), score, str(trial.epoch), trial.status, minutes, trial.name]
