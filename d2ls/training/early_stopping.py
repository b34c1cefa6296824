"""Early stopping as a pure function of the scores, so nothing has to be saved or restored."""

from collections.abc import Iterable, Mapping


def evaluations_since_best(scores: Iterable[float], min_delta: float = 0.0) -> int:
    """Counts the evaluations after the last improvement.

    Args:
        scores: of all evaluations, oldest first; higher is better.
        min_delta: a score is an improvement if it exceeds the last improvement by more than this.

    Returns:
        0 if the newest score is an improvement, or if there is none.

    Source:
        Prechelt, "Early Stopping - But When?" (1998), with patience counted in evaluations as in Keras and Lightning.
    """
    best, since = float("-inf"), 0
    for score in scores:
        if score > best + min_delta:
            best, since = score, 0
        else:
            since += 1
    return since


def is_over(
    history: Iterable[Mapping[str, float]],
    seconds: float,
    *,
    patience: int | None,
    min_delta: float,
    time_budget: float | None,
) -> bool:
    """Returns whether a training that ended early stays ended with these settings, which may have changed since.

    Args:
        history: flat metrics of its epochs, oldest first.
        seconds: time spent, over all sessions.
        patience: see `TrainerSettings`, also for the next two.
        min_delta: with `patience`.
        time_budget: in seconds.
    """
    scores = [row["val/miou"] for row in history if "val/miou" in row]
    waited = patience is not None and evaluations_since_best(scores, min_delta) >= patience
    return waited or (time_budget is not None and seconds >= time_budget)
