"""A pytest plugin that writes the results of fault injections: `pytest -p tests.fault_table --fault-table FILE`.

A test marked `survives("what happens")` is a row; the other cells come from `record_property("happened", ...)` and
`record_property("difference", ...)`. The page is written after every test, so it outlives an interrupt; rows of tests
that do not run stay as they are.
"""

import datetime
import os
import platform
import re
from importlib import metadata
from pathlib import Path

import psutil
import pytest

HEADER = ["fault", "what happened", "difference to the undisturbed run", "seconds"]


def pytest_addoption(parser):
    parser.addoption("--fault-table", type=Path, help="Markdown file that is written")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark, target = item.get_closest_marker("survives"), item.config.getoption("--fault-table")
    if mark and target and (report.when == "call" or not report.passed):
        properties = dict(item.user_properties)
        happened = properties.get("happened", "") if report.passed else f"test {report.outcome}"
        row = [mark.args[0], happened, properties.get("difference", "-"), f"{report.duration:.0f}"]
        rows = {each[0]: each for each in written(target)} | {row[0]: row}
        target.write_text(page(rows.values()), encoding="utf-8")
    return report


def written(target):
    """Returns the rows of the existing page."""
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row != HEADER]


def page(rows):
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "mlflow", "pyarrow"))
    today = datetime.datetime.now(datetime.UTC).date()
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        "# What training survived",
        "",
        "`python3 dev.py faults` brings these faults about and writes this page. Each run is compared with one in",
        "plain processes, without Ray and undisturbed. Rows of faults that a run leaves out stay from the run before.",
        f"The newest row: {today}, {os.cpu_count()} CPUs ({platform.machine()}), {memory:.0f} GiB, "
        f"load {os.getloadavg()[2]:.0f};",
        f"Python {platform.python_version()}, {versions}.",
        "",
        f"| {' | '.join(HEADER)} |",
        "|---|---|---|---|",
        *(f"| {' | '.join(re.sub('[|]', '/', cell) for cell in row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
