"""An SQLite store: made whole and quickly, and brought up to date with a copy kept."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

SQLITE = "sqlite:///"


def create(file: Path) -> None:
    """Makes an SQLite store beside its place and moves it there whole; without waiting for the disk, as it is new.

    MLflow would run its dozens of migrations on the final file, each waiting for the disk: seconds, and a broken
    store where they are interrupted.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    upgrade: Any = utils
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    engine = sqlalchemy.create_engine(f"{SQLITE}{partial}", poolclass=sqlalchemy.StaticPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
            connection.exec_driver_sql("PRAGMA journal_mode = MEMORY")
        upgrade._initialize_tables(engine)
        engine.dispose()
        try:
            os.link(partial, file)
        except FileExistsError:
            return  # another process was first; its store is as good
        except OSError:  # a file system without links
            partial.replace(file)
    finally:
        engine.dispose()
        partial.unlink(missing_ok=True)


def migrate(uri: str, file: Path) -> None:
    """Brings the schema of an older MLflow's SQLite file up to date, keeping a copy of the file beside it."""
    found = revision(file)
    if not found:
        return
    from mlflow.store.db import utils

    upgrade: Any = utils
    newest = upgrade._get_latest_schema_revision()
    if found == newest:
        return
    copy = file.with_name(f"{file.name}.{found}")
    with (
        contextlib.closing(sqlite3.connect(file)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    upgrade._upgrade_db(upgrade.create_sqlalchemy_engine_with_retry(uri))


def revision(file: Path) -> str | None:
    """Returns the revision of the schema, None where the file holds none yet."""
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
    return str(row[0]) if row else None
