"""The meeting before JAX starts: who is missing, or not the same, or not one of us. All hear the same verdict."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from t_elaine.errors import UserError
from t_elaine.parallel.line import Line
from t_elaine.parallel.pace import Pace, slow_ones
from t_elaine.parallel.roll_call import Meeting, Peer, attend

SAME = {"jax": "0.10.2", "python": "3.11.9"}


def free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


def meet(*wanted: dict[str, Any], processes: int = 0, seconds: float = 5.0, port: int = 0) -> list[Any]:
    """What `attend` gives or raises for each; an entry: fields of the card, and of the meeting under "meeting"."""
    address = ("localhost", port or free_port())
    found: list[Any] = [None] * len(wanted)

    def one(index: int, given: dict[str, Any]) -> None:
        fields = {"address": address, "processes": processes or len(wanted), "process": index, "seconds": seconds}
        meeting = Meeting(**fields | given.pop("meeting", {}), names=tuple("abcdef"))
        card = {"host": f"host{index}", "pid": index, "same": SAME, "config": "Loop.steps = 3\n"} | given
        try:
            found[index] = attend(meeting, card)
        except UserError as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=(index, dict(given))) for index, given in enumerate(wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def close(found: list[Any]) -> None:
    for peers, _ in found:
        for peer in peers.values():
            peer.close()


def test_all_meet_and_know_each_other_and_the_port_is_free_again() -> None:
    port = free_port()
    found = meet({}, {}, {}, port=port)
    assert [sorted(peers) for peers, _ in found] == [[1, 2], [0], [0]]
    assert all([card["host"] for card in cards] == ["host0", "host1", "host2"] for _, cards in found)
    with socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True):
        close(found)


def test_who_is_missing_is_named_to_all_in_time() -> None:
    start = time.monotonic()
    first, second = meet({}, {}, processes=4, seconds=1.0)
    assert time.monotonic() - start < 8
    assert first.what == second.what
    assert "2 of 4 processes did not come within 1 s: missing process 2 (c), process 3 (d)" in first.what
    assert "here: 0 on host0, 1 on host1" in first.what and "Hosts.seconds" in first.mend


def test_without_process_0_its_address_is_named() -> None:
    port = free_port()
    (found,) = meet({"meeting": {"process": 1, "processes": 2}}, port=port, seconds=0.5)
    assert f"process 0 (a) could not be reached at localhost:{port} within 0.5 s: Connection refused" in found.what
    assert "localhost means each host itself" in found.mend


def test_a_name_that_nobody_knows_is_told() -> None:
    (found,) = meet({"meeting": {"process": 1, "processes": 2, "address": ("no.such.host.invalid", 9)}}, seconds=0.5)
    assert "the name 'no.such.host.invalid' cannot be resolved" in found.what


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"same": SAME | {"jax": "0.10.1"}}, "process 1 on host1 has jax 0.10.1, process 0 on host0 has 0.10.2"),
        ({"same": {"jax": "0.10.2"}}, "process 1 on host1 has python None, process 0 on host0 has 3.11.9"),
        ({"config": "Loop.steps = 4\n"}, "process 1 on host1 has other settings: -Loop.steps = 3 | +Loop.steps = 4"),
        ({"meeting": {"processes": 3}}, "process 1 on host1 was told of 3 processes, process 0 of 2"),
    ],
)
def test_what_is_not_the_same_is_named_to_all(other: dict[str, Any], told: str) -> None:
    first, second = meet({}, other)
    assert first.what == second.what and told in first.what


def test_two_of_one_number_are_named() -> None:
    found = meet({}, {}, {"meeting": {"process": 1}}, processes=3)
    assert all("two processes come as number 1: one on host" in error.what for error in found)


def test_a_port_in_use_is_named_by_who_must_listen() -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as other:
        port = other.getsockname()[1]
        (found,) = meet({}, processes=2, port=port)
    assert f"port {port} of this host" in found.what and "in use" in found.what


def test_another_program_on_the_port_is_not_taken_for_process_0() -> None:
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        (found,) = meet({"meeting": {"process": 1, "processes": 2}}, port=port, seconds=0.5)
    assert "another program answers there" in found.what


def test_a_stranger_on_our_port_disturbs_nobody() -> None:
    port = free_port()

    def knock() -> None:
        for _ in range(3):
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(0.05)

    threading.Thread(target=knock).start()
    found = meet({}, {}, port=port)
    assert len(found[0][1]) == 2
    close(found)


def test_one_that_leaves_the_meeting_is_missing() -> None:
    port = free_port()

    def come_and_go() -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                peer = Peer(socket.create_connection(("localhost", port), 1))
                peer.read(1)
                card = {"hello": "t-elaine roll call 1", "process": 1, "processes": 3, "host": "b"}
                peer.send(card | {"same": SAME, "config": "Loop.steps = 3\n"})
                peer.close()
                return

    threading.Thread(target=come_and_go).start()
    (found,) = meet({}, processes=3, seconds=6.0, port=port)
    assert "2 of 3 processes did not come" in found.what


def lines(heartbeat: float = 60.0) -> tuple[Line, Line, list[Any]]:
    found = meet({}, {})
    hosts = {0: "a", 1: "b"}
    return Line(0, hosts, found[0][0], heartbeat), Line(1, hosts, found[1][0], heartbeat), found


def test_the_slow_host_is_named_once_all_have_told() -> None:
    first, second, found = lines()
    said: list[str] = []
    pace = Pace(first, 2, 2.0, said.append)
    other = Pace(second, 2, 2.0, said.append)
    for done in (1, 2):
        pace.step(done, 0.01, 1.0)
        assert said == []
        other.step(done, 0.6, 1.0)
    until(lambda: bool(said))
    assert said[0].startswith("slow host at step 2: process 1 on b spends 0.600 s of 1.000 s a step on its own work")
    assert "the others 0.010 s" in said[0] and len(said) == 1
    first.leave()
    second.leave()
    close(found)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_nobody_is_slow_where_it_matters_not() -> None:
    assert slow_ones({0: [0.5, 1.0], 1: [0.1, 1.0], 2: [0.12, 1.0]}, 2.0) == [0]
    assert slow_ones({0: [0.2, 1.0], 1: [0.11, 1.0]}, 2.0) == [], "less than twice"
    assert slow_ones({0: [0.02, 1.0], 1: [0.001, 1.0]}, 2.0) == [], "two hundredths of a step keep nobody waiting"
