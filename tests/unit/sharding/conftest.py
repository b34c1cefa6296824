"""Raw scenes for the tests of the parts of sharding."""

import pytest

from sharding.scenery import write_scenery


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Drawn scenes of 64 x 64 pixels; read only."""
    return write_scenery(tmp_path_factory.mktemp("raw"), scenes={"Train": 6, "Val": 3}, size=64)
