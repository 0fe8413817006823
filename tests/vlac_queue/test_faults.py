"""What an error of Redis means: every error that a server can answer, and what the client makes of it."""

from __future__ import annotations

import http.server
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager

import numpy as np
import pytest
import redis

from tests.conftest import Workers
from tests.refusals import REFUSALS, Refusal
from tests.workers.critics import NAME, frame
from vlac_queue import (
    CriticClient,
    QueueFull,
    RedisDenied,
    RedisFailed,
    RedisUnavailable,
    RolloutGate,
    VlacConfig,
    VlacQueueError,
)
from vlac_queue.connection import Script, connect, exchange
from vlac_queue.credentials import DASHBOARD, ROLLOUT, WORKER
from vlac_queue.errors import ConfigError
from vlac_queue.faults import Fault, as_ours, error_code, fault_of
from vlac_queue.keys import Keys
from vlac_queue.server import RedisServer, free_port

#: Each error that Redis 6.2 to 8 and Valkey 7 to 9 answer, by its first word (src/server.c, script.c, cluster.c,
#: replication.c, acl.c, t_stream.c and others of both), with what it means to us.
REPLIES = {
    "LOADING Redis is loading the dataset in memory": Fault.AWAY,
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": Fault.AWAY,
    "READONLY You can't write against a read only replica.": Fault.AWAY,
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": Fault.AWAY,
    "REDIRECT 127.0.0.1:6380": Fault.AWAY,
    "ERR max number of clients reached": Fault.AWAY,
    "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist": Fault.REFUSED,
    "MISCONF Errors writing to the AOF file: No space left on device": Fault.REFUSED,
    "NOREPLICAS Not enough good replicas to write.": Fault.REFUSED,
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": Fault.REFUSED,
    "ERR Error running script: Script killed by user with SCRIPT KILL...": Fault.REFUSED,
    "INPROG Failover already in progress": Fault.REFUSED,
    "TRYAGAIN Multiple keys request during rehashing of slot": Fault.REFUSED,
    "CLUSTERDOWN Hash slot not served": Fault.REFUSED,
    "OOM command not allowed when used memory > 'maxmemory'.": Fault.FULL,
    "NOAUTH Authentication required.": Fault.DENIED,
    "WRONGPASS invalid username-password pair or user is disabled.": Fault.DENIED,
    "ERR invalid password": Fault.DENIED,
    "ERR AUTH <password> called without any password configured for the default user. "
    "Are you sure your configuration is correct?": Fault.DENIED,
    "NOPERM this user has no permissions to run the 'set' command": Fault.DENIED,
    "NOPERM No permissions to access a key": Fault.DENIED,
    "ERR The user executing the script can't run this command or subcommand script: 1": Fault.DENIED,
    "ERR ACL failure in script: User low has no permissions to run the 'set' command": Fault.DENIED,
    "DENIED Redis is running in protected mode because protected mode is enabled": Fault.DENIED,
    "WRONGTYPE Operation against a key holding the wrong kind of value": Fault.BUG,
    "WRONGTYPE Operation against a key holding the wrong kind of value script: 5c, on @user_script:1.": Fault.BUG,
    "MOVED 3999 127.0.0.1:6381": Fault.BUG,
    "ASK 3999 127.0.0.1:6381": Fault.BUG,
    "CROSSSLOT Keys in request don't hash to the same slot": Fault.BUG,
    "NOSCRIPT No matching script.": Fault.BUG,
    "EXECABORT Transaction discarded because of previous errors.": Fault.BUG,
    "NOGROUP No such consumer group": Fault.BUG,
    "BUSYGROUP Consumer Group name already exists": Fault.BUG,
    "BUSYKEY Target key name already exists.": Fault.BUG,
    "NOPROTO unsupported protocol version": Fault.BUG,
    "NOTBUSY No scripts in execution right now.": Fault.BUG,
    "UNKILLABLE Sorry the script already executed write commands against the dataset.": Fault.BUG,
    "INVALIDOBJ Corrupted HyperLogLog object detected": Fault.BUG,
    "IOERR error or timeout writing to target instance": Fault.BUG,
    "NOMASTERLINK Can't SYNC while not connected with my master": Fault.BUG,
    "NOGOODSLAVE No suitable replica to promote": Fault.BUG,
    "NOQUORUM 1 usable Sentinels. Not enough available Sentinels": Fault.BUG,
    "NOSUB 'SUBSCRIBE' was not called": Fault.BUG,
    "ERR unknown command 'NOSUCH'": Fault.BUG,
    "ERR value is not an integer or out of range": Fault.BUG,
    "ERR a text with WRONGPASS and BUSY in it": Fault.BUG,
}


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A port at which everything is answered by the same line."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                self.request.sendall(reply)

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        yield port


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[int]:
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def bare(port: int) -> redis.Redis:
    """A connection that asks nothing by itself."""
    return connect(f"redis://127.0.0.1:{port}?protocol=2", retry=None)


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.split()[0])
@pytest.mark.parametrize("framed", [False, True], ids=["", "in a pipeline"])
def test_every_error_that_a_server_answers_is_known(reply: str, framed: bool) -> None:
    with (
        answering(f"-{reply}\r\n".encode()) as port,
        bare(port) as connection,
        connection.pipeline(transaction=False) as pipeline,
        pytest.raises(redis.RedisError) as caught,
    ):
        if framed:
            pipeline.set("key", "BUSY of pipeline caused error: OOM ").execute()
        else:
            connection.get("key")
    assert fault_of(caught.value) is REPLIES[reply]
    ours = as_ours(caught.value, f"redis://:secret@127.0.0.1:{port}")
    kinds = {Fault.FULL: QueueFull, Fault.DENIED: RedisDenied, Fault.BUG: RedisFailed}
    assert type(ours) is kinds.get(REPLIES[reply], RedisUnavailable)
    assert "secret" not in str(ours) and str(ours).endswith(".")


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
def test_a_script_meets_the_same_faults(connection: redis.Redis, refusal: Refusal) -> None:
    # Redis 6.2 wraps what a script meets into an error of the script's own.
    script = ("EVAL", Script("redis.call('SET', KEYS[1], 'x') return 1"), 1, "key")
    with refusal(connection):
        replies = exchange(connection, [script, ("SET", "key", "x")])
    assert all(isinstance(reply, redis.RedisError) for reply in replies)
    assert fault_of(replies[0]) is fault_of(replies[1]) and fault_of(replies[0]).passes
    assert error_code(replies[0]) == error_code(replies[1]) != ""


@pytest.fixture
def worker(workers: Workers) -> Workers:
    workers.start(NAME)
    return workers


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
def test_a_refusal_for_now_is_waited_for(
    worker: Workers, client: CriticClient, connection: redis.Redis, refusal: Refusal
) -> None:
    with client.episode("t") as episode, ThreadPoolExecutor(1) as threads:
        assert not episode.observe(frame(1)).result(20).done
        with refusal(connection):
            answer = threads.submit(lambda: episode.observe(frame(255)).result(20))
            with pytest.raises(NotYet):
                answer.result(0.5)
        assert answer.result(20).done


def test_a_refusal_that_lasts_is_told_with_its_remedy(server: RedisServer, connection: redis.Redis) -> None:
    config = VlacConfig(redis_url=server.url, patience_s=0.3)
    with CriticClient(config) as client, client.episode("t") as episode:
        episode.push(frame(1))
        with REFUSALS[1](connection), pytest.raises(RedisUnavailable, match="min-replicas-to-write"):
            episode.push(frame(2))
        episode.push(frame(2))
        assert episode.frames == 2


def test_a_key_of_a_wrong_type_is_an_error_of_its_own_which_a_gate_masks(
    worker: Workers, client: CriticClient, connection: redis.Redis
) -> None:
    with RolloutGate(client, ["t"], on_failure="mask") as gate:
        gate.observe(1, {0: frame(1)})
        answers = Keys("vlac").client_answers(client.id)
        connection.delete(answers)
        connection.set(answers, "not a stream")
        gate.observe(2, {0: frame(1)})
        (outcome,) = gate.settle()
        assert outcome.masked and "WRONGTYPE" in outcome.error
        connection.delete(answers)
        with client.episode("t") as episode, pytest.raises(RedisFailed, match="wrong kind of value"):
            connection.delete(Keys("vlac").episode(episode.id).frames)
            connection.set(Keys("vlac").episode(episode.id).frames, "not a list")
            episode.push(frame(1))


def test_totals_of_a_wrong_type_do_not_fail_a_rollout(
    worker: Workers, client: CriticClient, connection: redis.Redis
) -> None:
    connection.set(Keys("vlac").totals, "not a hash")
    with RolloutGate(client, ["t"]) as gate:
        gate.observe(1, {0: frame(255)})
        assert gate.settle()[0].reward == 1.0


def test_what_is_no_redis_is_told() -> None:
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    with serving(web) as port:
        config = VlacConfig(redis_url=f"redis://127.0.0.1:{port}/0")
        with CriticClient(config) as client, pytest.raises(RedisUnavailable, match="that is not Redis"):
            client.episode("t")


def test_a_port_that_wants_tls_is_told() -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # As redis-server's port for TLS: closed at once, with what was sent unread.
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        config = VlacConfig(redis_url=f"redis://127.0.0.1:{port}/0")
        with CriticClient(config) as client, pytest.raises(RedisUnavailable, match="wants TLS, use rediss://"):
            client.episode("t")


def test_a_file_for_tls_that_is_not_there_is_named() -> None:
    config = VlacConfig(redis_url="rediss://gpu7:6379/0?ssl_ca_certs=/none.crt")
    with pytest.raises(ConfigError, match=r"ssl_ca_certs .* can't be read: /none.crt; copy the file there"):
        CriticClient(config)


@pytest.mark.parametrize("user", [ROLLOUT, WORKER, DASHBOARD])
def test_a_refusal_names_the_one_user_that_is_needed(user: str) -> None:
    for error in (redis.exceptions.NoPermissionError("no"), redis.exceptions.AuthenticationError("no")):
        message = str(as_ours(error, "redis://gpu7", user))
        assert [each for each in (ROLLOUT, WORKER, DASHBOARD) if each in message] == [user]


def test_a_port_without_tls_is_told(server: RedisServer) -> None:
    # A Redis waits for the rest of what it takes for a command; other servers answer with their own words.
    silent = as_ours(redis.TimeoutError("Timeout connecting to server"), server.url.replace("redis", "rediss", 1))
    assert "does not speak TLS" in str(silent)
    with (
        answering(b"+PONG\r\n") as port,
        CriticClient(VlacConfig(redis_url=f"rediss://127.0.0.1:{port}")) as client,
        pytest.raises(RedisUnavailable, match="does not speak TLS: use redis://"),
    ):
        client.episode("t")


def test_a_server_that_wants_a_user_asks_for_one() -> None:
    port = free_port()
    remedy = "asks for a user.*VLAC_REDIS_USERNAME and VLAC_REDIS_PASSWORD_FILE"
    with (
        RedisServer("--requirepass", "pw", port=port),
        CriticClient(VlacConfig(redis_url=f"redis://127.0.0.1:{port}")) as client,
        pytest.raises(RedisDenied, match=remedy),
    ):
        client.episode("t")


def test_a_password_that_nobody_asks_for_is_told(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as connection, pytest.raises(redis.exceptions.RedisError) as caught:
        connection.execute_command("AUTH", "hush")
    message = str(as_ours(caught.value, server.url, ROLLOUT))
    assert "it has no password, and was given one" in message and "leave the password out" in message


def test_a_user_without_the_right_is_told_which_one_has_it(server: RedisServer, connection: redis.Redis) -> None:
    connection.acl_setuser("looker", enabled=True, nopass=True, commands=["+@read", "+hello", "+eval"], keys=["*"])
    try:
        config = VlacConfig(redis_url=server.url.replace("//", "//looker:x@"))
        with (
            CriticClient(config) as client,
            pytest.raises(RedisDenied, match="VLAC_REDIS_PASSWORD_FILE to vlac-rollout") as caught,
        ):
            client.episode("t")
        assert "redis.call" not in str(caught.value)
    finally:
        connection.acl_deluser("looker")


def test_a_wrong_address_is_told_at_once() -> None:
    began = time.monotonic()
    config = VlacConfig(redis_url=f"redis://127.0.0.1:{free_port()}")
    with CriticClient(config) as client, pytest.raises(VlacQueueError, match="start redis-server there"):
        client.episode("t").push(np.zeros((8, 8, 3), np.uint8))
    assert time.monotonic() - began < 10
