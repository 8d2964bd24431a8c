import os
from collections.abc import Iterator

import pytest

from tests.support.api import BearerIsIdentity, CheckedClient, Person, PersonMaker, new_account
from tests.support.citus import VARIABLE, Cluster
from tests.support.postgres import settings_for
from todo_api.main import create_app


@pytest.fixture(scope="session")
def cluster(worker: str) -> Cluster:
    """A database on the cluster; it is not distributed before the first test."""
    if VARIABLE not in os.environ:
        pytest.skip(f"{VARIABLE} names no coordinator of a Citus cluster with two workers")
    return Cluster(f"cluster_{worker}")


@pytest.fixture
def distributed(cluster: Cluster) -> Cluster:
    """The same database, distributed."""
    if not cluster.is_distributed():
        cluster.distribute()
    return cluster


@pytest.fixture
def citizen(cluster: Cluster) -> Iterator[PersonMaker]:
    """Create users of the service on the cluster."""
    with CheckedClient(create_app(settings_for(cluster.url, pool_size=8), BearerIsIdentity())) as client:
        yield lambda user_id=None: Person(client, cluster.url, new_account(cluster.url, user_id))
