"""One group of processes for all tests of a session that need ranks."""

import pytest

from tests.rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks():
    with RankPool() as pool:
        yield pool
