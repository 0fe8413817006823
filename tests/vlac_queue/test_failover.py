"""URLs of Redis behind Sentinel, and connections that RQ can make again elsewhere."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from vlac_queue.connection import AnyRedis, connect, reconnect
from vlac_queue.errors import ConfigError
from vlac_queue.failover import SentinelConnection, SentinelTlsConnection, TcpConnection, TlsConnection


def arguments(url: str) -> dict[str, Any]:
    pool = connect(url).connection_pool
    return {**pool.connection_kwargs, "class": pool.connection_class}


def test_a_url_of_sentinel_names_its_hosts_the_master_and_the_database() -> None:
    found = arguments(
        "redis+sentinel://user:s3cret@gpu1,gpu2:26380,[::1]:26381/mymaster/3?sentinel_password=other"
    )
    assert found["sentinels"] == (("gpu1", 26379), ("gpu2", 26380), ("::1", 26381))
    assert (found["service"], found["db"]) == ("mymaster", 3)
    assert (found["username"], found["password"], found["sentinel_password"]) == ("user", "s3cret", "other")
    assert found["class"] is SentinelConnection
    assert arguments("rediss+sentinel://gpu1/mymaster")["class"] is SentinelTlsConnection


@pytest.mark.parametrize("url", ["redis+sentinel://gpu1:26379", "redis+sentinel:///mymaster", "redis+sentinel://"])
def test_a_url_of_sentinel_without_hosts_or_master_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"redis\+sentinel://host:26379,host2:26379/mymaster/0"):
        connect(url)


def test_a_connection_is_made_again_elsewhere_as_it_was() -> None:
    first = AnyRedis.from_url("redis+sentinel://gpu1:26379/mymaster/3")
    again = reconnect(first).connection_pool
    assert again.connection_class is SentinelConnection
    assert again.connection_kwargs["sentinels"] == (("gpu1", 26379),)
    # RQ's scheduler is a process of its own.
    assert pickle.loads(pickle.dumps(again.connection_kwargs["sentinels"])) == (("gpu1", 26379),)  # noqa: S301
    assert reconnect(connect("redis://gpu1")).connection_pool.connection_class is TcpConnection
    assert reconnect(connect("rediss://gpu1")).connection_pool.connection_class is TlsConnection
