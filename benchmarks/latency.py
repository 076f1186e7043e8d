"""What a far store costs an ingest: `python benchmarks/latency.py FOLDER [--rounds 5] [--ms 25]`.

FOLDER is a drop. `cxr-ml ingest` takes it into a SeaweedFS of its own, under a new prefix each time: directly, through
a relay that passes bytes on at once, and through one that holds them for `--ms` milliseconds each way, in turns. It
holds bytes, it does not make them fewer: what is sent meanwhile is on its way, too. A new connection costs one round
trip before its first byte, as the handshake of TCP would. Printed are the seconds of each command from its start to its
end, imports and all; then, of `cxr-ml validate` and `cxr-ml dataset` on what was ingested, the same as information.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import ingest as ingest_benchmark

from cxr_ml import layout
from cxr_ml.store import ObjectStore

COMMAND = Path(sysconfig.get_path("scripts")) / "cxr-ml"


class End(asyncio.Protocol):
    """One end of a connection; what it receives is sent from the other end, later."""

    other: "End"
    transport: asyncio.Transport

    def __init__(self, delay: float, ready: float = 0) -> None:
        """`delay`: seconds; `ready`: the time of the loop before which nothing sets out."""
        self.delay, self.ready, self.loop = delay, ready, asyncio.get_running_loop()
        self.underway: deque[bytes | None] = deque()  # None: the connection ended

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes | None) -> None:
        self.underway.append(data)
        self.loop.call_at(max(self.loop.time(), self.ready) + self.delay, self.arrive)

    def connection_lost(self, error: Exception | None) -> None:
        self.data_received(None)

    def arrive(self) -> None:
        # Whichever timer this is: what set out first arrives first.
        data = self.underway.popleft()
        if data is None:
            self.other.transport.close()
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)


class Near(End):
    """The client's end, which opens the other one."""

    def __init__(self, delay: float, target: int) -> None:
        super().__init__(delay, asyncio.get_running_loop().time() + 2 * delay)
        self.target = target

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.pause_reading()
        self.opening = self.loop.create_task(self.open())

    async def open(self) -> None:
        _, self.other = await self.loop.create_connection(lambda: End(self.delay), "127.0.0.1", self.target)
        self.other.other = self
        self.transport.resume_reading()


async def relay(target: int, delay: float) -> None:
    """Passes connections on to a port of this machine, and prints the one to use instead of it."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Near(delay, target), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def relayed(endpoint: str, ms: float) -> Iterator[str]:
    """The address of a relay to `endpoint`, in a process of its own."""
    command = [sys.executable, __file__, "--relay", str(urlsplit(endpoint).port), "--ms", str(ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def timed(variables: dict[str, str], *arguments: str) -> float:
    """Seconds of a `cxr-ml` command."""
    begun = time.perf_counter()
    subprocess.run([COMMAND, *arguments, "--json"], env=os.environ | variables, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def run(folder: Path, drop: Path, rounds: int, ms: float, others: bool) -> None:
    """Measures and prints."""
    os.environ |= {"CXR_INBOX__PATH": str(drop.parent), "CXR_INBOX__PATIENT_SALT": "benchmark"}
    (folder / "store").mkdir()
    with ingest_benchmark.store(folder / "store") as settings, ExitStack() as relays:
        ways = {
            "direct": settings.store.endpoint_url,
            "relay, 0 ms": relays.enter_context(relayed(settings.store.endpoint_url, 0)),
            f"relay, {ms:g} ms": relays.enter_context(relayed(settings.store.endpoint_url, ms)),
        }
        seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number in range(rounds + 1):
            # The first run fills the caches of the disk; then no way is always the last, when the server tidies up.
            turn = number % len(ways)
            for way in [*ways][turn:] + [*ways][:turn] if number else [*ways][:1]:
                own = {
                    "CXR_STORE__ENDPOINT_URL": ways[way],
                    "CXR_STORE__PREFIX": f"{number}-{[*ways].index(way)}/",
                    "CXR_CACHE_DIR": str(folder / f"cache-{number}"),
                }
                took = {"ingest": timed(own, "ingest", drop.name)}
                if others and number:
                    batch = settings.replace(store={"prefix": own["CXR_STORE__PREFIX"]})
                    took["validate"] = timed(own, "validate", ingested(batch))
                    took["dataset"] = timed(own, "dataset")
                for what, found in took.items() if number else ():
                    print(f"{what}, {way}: {found:.2f} s", flush=True)
                    seconds[what][way].append(found)
    for what, by_way in seconds.items():
        print()
        least = {way: min(found) for way, found in by_way.items()}
        middle = {way: statistics.median(found) for way, found in by_way.items()}
        for way, found in by_way.items():
            each = " ".join(f"{one:.2f}" for one in found)
            print(f"{what}, {way}: median {middle[way]:.2f} s, least {least[way]:.2f} s ({each})")
        direct, control, far = ways
        pairs = statistics.median(f / c for f, c in zip(by_way[far], by_way[control], strict=True))
        print(
            f"{what}, {far} beside {control}: {middle[far] / middle[control]:.3f} times by medians, "
            f"{least[far] / least[control]:.3f} by the least, {pairs:.3f} by the median of pairs; beside {direct}: "
            f"{middle[far] / middle[direct]:.3f} by medians",
            flush=True,
        )


def ingested(settings: ingest_benchmark.Settings) -> str:
    """Name of the one batch under the prefix."""
    (batch,) = ObjectStore(settings.store).folders(layout.BATCHES)
    return batch


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drop", type=Path, nargs="?", help="a folder with X-rays")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ms", type=float, default=25, help="milliseconds each way")
    parser.add_argument("--ingest-only", action="store_true", help="without `validate` and `dataset`")
    parser.add_argument("--relay", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.relay:
        asyncio.run(relay(given.relay, given.ms / 1000))
        return
    if not given.drop:
        parser.error("a folder with X-rays was expected")
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), given.drop.resolve(), given.rounds, given.ms, not given.ingest_only)


if __name__ == "__main__":
    main()
