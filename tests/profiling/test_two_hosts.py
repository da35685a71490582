"""Two hosts on one machine: two network namespaces, a link between them that `tc` slows down, an all-reduce over it.

The model of time says what a ring's all-reduce takes from the bytes and the link's speed (utils.profiling.scaling).
Here it is held to gloo's. Where namespaces may not be made (not root, no `ip` or `tc`), it skips and says so.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.profiling.scaling import reduce_seconds

WORKER = Path(__file__).with_name("all_reduce_worker.py")
HEADERS = 1448 / 1514  # what TCP carries of an Ethernet frame of 1514 bytes, which tc counts whole


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line.split(), capture_output=True, text=True, timeout=20)


class TwoHosts:
    """Namespaces with one link between them: `a` has 10.77.0.1, `b` has 10.77.0.2."""

    def __init__(self) -> None:
        self.names = [f"lora-{os.getpid()}-{side}" for side in "ab"]
        self.links = [f"v{os.getpid()}{side}" for side in "ab"]

    def make(self) -> str | None:
        """None when it is done, else what was refused."""
        (a, b), (link_a, link_b) = self.names, self.links
        pair = f"ip link add {link_a} netns {a} type veth peer name {link_b} netns {b}"
        lines = [f"ip netns add {a}", f"ip netns add {b}", pair]
        for number, (name, link) in enumerate(zip(self.names, self.links, strict=True), 1):
            lines += [f"ip -n {name} addr add 10.77.0.{number}/24 dev {link}", f"ip -n {name} link set lo up"]
            lines += [f"ip -n {name} link set {link} up"]
        for line in [*lines, *self.limits(100)]:
            if (done := shell(line)).returncode:
                return f"{line!r} was refused: {(done.stderr or done.stdout).strip()}"
        return None

    def limits(self, megabits: float) -> list[str]:
        """What lets each side send so many Mb/s and no more."""
        return [
            f"ip netns exec {name} tc qdisc replace dev {link} root tbf rate {megabits}mbit burst 64kb latency 100ms"
            for name, link in zip(self.names, self.links, strict=True)
        ]

    def all_reduce(self, megabits: float, sizes: list[float], repeats: int = 3) -> dict[float, float]:
        """The median seconds of an all-reduce of so many MB at so many Mb/s."""
        for line in self.limits(megabits):
            assert not shell(line).returncode
        given = ["10.77.0.1", "29519", ",".join(map(str, sizes)), str(repeats)]
        running = []
        for rank, (name, link) in enumerate(zip(self.names, self.links, strict=True)):
            command = ["ip", "netns", "exec", name, sys.executable, str(WORKER), str(rank), *given]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": link, "OMP_NUM_THREADS": "1"}
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            said = [process.communicate(timeout=120) for process in running]
        finally:
            for process in running:
                process.kill()
        assert [process.returncode for process in running] == [0, 0], said
        return {float(size): statistics.median(times) for size, times in json.loads(said[0][0]).items()}

    def remove(self) -> None:
        for name in self.names:
            shell(f"ip netns del {name}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        pytest.skip(f"two hosts on one machine need {' and '.join(missing)} (Debian: iproute2)")
    made = TwoHosts()
    try:
        if refused := made.make():
            pytest.skip(f"no two network namespaces here: {refused}")
        yield made
    finally:
        made.remove()


@pytest.mark.slow
def test_an_all_reduce_between_two_hosts_takes_what_the_model_says(hosts):
    for megabits, sizes in ((100, [1.0, 4.0]), (400, [4.0, 16.0])):
        for size, measured in hosts.all_reduce(megabits, sizes).items():
            speed = megabits * 1e6 / 8 * HEADERS
            modelled = reduce_seconds(size * 1e6, 2, speed, latency=1e-3)
            print(f"{megabits} Mb/s, {size:g} MB: measured {1000 * measured:.0f} ms, model {1000 * modelled:.0f} ms")
            assert modelled == pytest.approx(measured, rel=0.15), (megabits, size)
