"""Areas by class, in the whole map and by zone, and their adjustment for the errors of the model.

A map that confuses classes counts their areas wrongly. Olofsson et al. (2014), Good practices for estimating area and
assessing accuracy of land change, Remote Sensing of Environment 148, 42-57, correct the areas with the confusion
matrix:

    p_ij = W_i n_ij / n_i.        share of the ground that the map calls i and that is j (equation 4)
    A_j = A_total sum_i p_ij      adjusted area of class j (equations 9 and 11)
    S(p_j) = sqrt(sum_i (W_i p_ij - p_ij^2) / (n_i. - 1))      its standard error (equation 10)
    A_j +- 1.96 A_total S(p_j)    95 % interval (equation 11)

with W_i the share of the map in class i, n_ij the number of test units of map class i and true class j.
"""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls import storage
from d2ls.errors import ConfigError, DataError
from d2ls.labels import IGNORE, ClassTable

Z95 = 1.96

CAUTION = (
    "The adjusted areas assume that the test pixels of the evaluation report are a random sample of this map. The "
    "intervals also assume that errors are independent. But errors of neighbouring pixels are related, and test scenes "
    "differ from this map. So take the intervals as lower bounds of the uncertainty. For figures to publish, label a "
    "random sample of this map."
)


@dataclass(frozen=True)
class AdjustedArea:
    """Error-adjusted areas of K classes, in the unit of the total.

    Attributes:
        areas: estimates (K).
        half_widths: half widths of their 95 % intervals (K).
    """

    areas: npt.NDArray[np.float64]
    half_widths: npt.NDArray[np.float64]


def adjust(mapped: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> AdjustedArea:
    """Corrects mapped areas for the errors of the map, by the formulas above.

    Args:
        mapped: area of each class in the map (K).
        counts: test units by map class (rows) and true class (columns), K K.

    Raises:
        DataError: a mapped class has fewer than two test units.
    """
    total = mapped.sum()
    tested = counts.sum(axis=1)
    if total == 0:
        return AdjustedArea(np.zeros(len(mapped)), np.zeros(len(mapped)))
    for index in np.flatnonzero((mapped > 0) & (tested < 2)):
        raise DataError(f"class {index} is mapped, and has {tested[index]} test units; at least 2 are needed")
    used = tested >= 2
    weights = mapped[used] / total
    rows = counts[used].astype(np.float64)
    shares = weights[:, None] * rows / tested[used, None]
    variances = (weights[:, None] * shares - shares**2) / (tested[used, None] - 1)
    errors = np.sqrt(np.maximum(variances.sum(axis=0), 0))
    return AdjustedArea(total * shares.sum(axis=0), Z95 * total * errors)


def read_report(uri: str, classes: ClassTable) -> npt.NDArray[np.int64]:
    """Reads the confusion matrix of an evaluation report from a file; see `parse_report`."""
    return parse_report(storage.read_bytes(uri), classes, where=uri)


def parse_report(text: str | bytes, classes: ClassTable, *, where: str) -> npt.NDArray[np.int64]:
    """Takes the confusion matrix out of an evaluation report.

    Args:
        text: `report.json` of `pipeline.evaluate`, a report among the files of a run, or that of a registered model.
        classes: classes of the model.
        where: names the report in errors.

    Returns:
        Test pixels by predicted class (rows) and true class (columns).

    Raises:
        ConfigError: not an evaluation report, or one of several models or of other classes.
    """
    way_out = "name the report of this model with --evaluation-report"
    try:
        content = json.loads(text)
        content = content if isinstance(content, list) else [content]
        confusions = [report["confusion"] for report in content]
        names = [tuple(row["name"] for row in report["classes"]) for report in content]
    except (ValueError, KeyError, TypeError) as error:
        missing = (
            "has no" if isinstance(error, KeyError) else "is not a report of `python -m pipeline.evaluate`:"
        )
        raise ConfigError(f"{where}: {missing} {error}; {way_out}") from error
    if len(content) != 1:
        raise ConfigError(f"{where}: holds the reports of {len(content)} models; {way_out} alone")
    if names[0] != classes.names:
        raise ConfigError(
            f"{where}: is about {', '.join(names[0])}, the model knows {', '.join(classes.names)}; {way_out}"
        )
    return _counts(confusions[0], classes.num_classes, where, way_out)


def _counts(confusion: object, num_classes: int, where: str, way_out: str) -> npt.NDArray[np.int64]:
    """Returns the transpose of a confusion matrix, which must hold K K counts."""
    try:
        counts = np.array(confusion)
    except ValueError:  # rows of different lengths
        counts = np.array(None)
    if counts.shape != (num_classes, num_classes) or counts.dtype.kind != "i" or (counts < 0).any():
        raise ConfigError(
            f"{where}: its confusion matrix does not hold counts of {num_classes} classes; {way_out}"
        )
    return np.ascontiguousarray(counts.T.astype(np.int64))


@dataclass(frozen=True)
class AreaTable:
    """Areas of the whole map and of its zones.

    Attributes:
        zones: names; the first, empty, is the whole map.
        counts: pixels by zone and label (Z 256).
        classes: K classes.
        pixel_hectares: ground area of a pixel.
        confusion: test pixels by predicted and true class; None: no evaluation report.
    """

    zones: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    classes: ClassTable
    pixel_hectares: float
    confusion: npt.NDArray[np.int64] | None

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row for each zone and class, and one for the pixels without data."""
        rows: list[dict[str, Any]] = []
        for zone, counts in zip(self.zones, self.counts, strict=True):
            of_classes = counts[: self.classes.num_classes]
            adjusted = self._adjusted(zone, of_classes)
            for index, name in enumerate(self.classes.names):
                pixels = int(of_classes[index])
                row = {"zone": zone, "class": name, "class_id": index, "pixels": pixels}
                row["hectares"] = pixels * self.pixel_hectares
                row["share"] = pixels / max(int(of_classes.sum()), 1)
                if adjusted is not None:
                    area, half = adjusted.areas[index], adjusted.half_widths[index]
                    row |= {
                        "adjusted_hectares": area,
                        "low_95": max(area - half, 0.0),
                        "high_95": area + half,
                    }
                rows.append(row)
            pixels = int(counts[IGNORE])
            row = {"zone": zone, "class": "no data", "class_id": IGNORE, "pixels": pixels}
            rows.append(row | {"hectares": pixels * self.pixel_hectares})
        return rows

    def _adjusted(self, zone: str, counts: npt.NDArray[np.int64]) -> AdjustedArea | None:
        """Adjusts the areas of the whole map only: within a zone the errors may be quite different."""
        if self.confusion is None or zone:
            return None
        try:
            return adjust(counts.astype(np.float64) * self.pixel_hectares, self.confusion)
        except DataError:
            return None

    @property
    def untested(self) -> list[str]:
        """Mapped classes with fewer than two pixels in the evaluation report, for which no adjustment is possible."""
        if self.confusion is None:
            return []
        missing = (self.counts[0, : self.classes.num_classes] > 0) & (self.confusion.sum(axis=1) < 2)
        return [self.classes.names[index] for index in np.flatnonzero(missing)]

    def to_csv(self) -> bytes:
        """Returns the table as CSV with a header; hectares and shares are not rounded."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def to_markdown(self, title: str, comment: str) -> str:
        """Returns the table as Markdown, with notes on how to read it."""
        rows = self.rows()
        with_interval = "adjusted_hectares" in rows[0]
        head = ["zone", "class", "pixels", "hectares", "share"] + ["adjusted hectares (95 %)"] * with_interval
        head = head if len(self.zones) > 1 else head[1:]
        lines = [f"# Areas of {title}", "", _line(head), _line(["---"] * len(head))]
        for row in rows:
            cells = [
                row["zone"] or "whole map",
                row["class"],
                f"{row['pixels']:,}",
                _hectares(row["hectares"]),
            ]
            cells.append(f"{row['share']:.1%}" if "share" in row else "")
            if with_interval:
                known = "adjusted_hectares" in row
                keys = ("adjusted_hectares", "low_95", "high_95")
                area, low, high = (_hectares(row[key]) if known else "" for key in keys)
                cells.append(f"{area} ({low} to {high})" if known else "")
            lines.append(_line(cells[-len(head) :]))
        lines += [
            "",
            f"A pixel covers {self.pixel_hectares * 10_000:.6g} m2. Shares are of the pixels with data.",
        ]
        if with_interval:
            lines += ["", CAUTION]
        if self.untested:
            names = ", ".join(self.untested)
            lines += [
                "",
                f"No adjusted areas: the evaluation report has fewer than two pixels mapped as {names}.",
            ]
        return "\n".join([*lines, "", f"<!-- {comment} -->", ""])


def csv_digest(content: bytes) -> str:
    """Returns the digest by which a Markdown table identifies its CSV file."""
    return hashlib.sha256(content).hexdigest()


def _line(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _hectares(value: float) -> str:
    """Formats hectares with four significant digits, and at least two decimals below 100."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.4g}"
