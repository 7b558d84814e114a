"""Load on a server of this package over loopback: searches by id, uploads, and both mixed, for a while.

    python benchmarks/serve_load.py photos/ --out results/serve

Trains and indexes the folder, adds synthetic codes up to ``--items``, starts ``distillhash serve`` as a process of its own, and sends
requests from ``--clients`` connections (one request at a time each, kept alive). Prints one JSON object per scenario, and with ``--out``
writes them. Errors are counted, never retried. The clients are another process on the same cores: what they use is reported, and rates
are also given per second of CPU time of the server alone.

Scenarios: ``id`` searches by id, ``upload`` searches by JPEG upload, ``mixed`` nine of ten by id, the rest uploads, for ``--seconds``
(60) each; ``bare`` is the same backbone and hasher called in a loop over the same JPEGs in memory, in one thread per core, with nothing
around it, taking turns with ``upload``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BOUNDARY = b"x-load-x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of JPEGs, a few hundred at least")
    parser.add_argument("--items", type=int, default=100_000, help="codes in the index")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="turns of bare and upload")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        index = build(arguments.photos, Path(folder), arguments.items)
        contents = [path.read_bytes() for path in sorted(arguments.photos.rglob("*.jpg"))[:500]]
        records = list(measure(arguments, index, contents))
    facts = {
        "command": "python benchmarks/serve_load.py " + " ".join(["PHOTOS", *sys.argv[2:]]),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(busy, 1),
        "python": platform.python_version(),
        "processor": processor(),
        "items": arguments.items,
        "photos": len(contents),
        "kilobytes_per_photo": round(statistics.mean(map(len, contents)) / 1000, 1),
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "load.json").write_text(json.dumps({**facts, "scenarios": records}, indent=1) + "\n")


def measure(arguments: argparse.Namespace, index: Path, contents: list[bytes]) -> Any:
    """The scenarios, in turn."""
    command = [sys.executable, "-m", "distillhash.cli", "serve", "--index", str(index), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    port = next(int(line.split(":")[-1].split("/")[0]) for line in server.stderr if line.startswith("serving at"))
    try:
        while not ready(port):
            time.sleep(0.2)
        by_id = [search_by_id(i, arguments.k) for i in np.random.default_rng(0).integers(0, arguments.items, 5000)]
        uploads = [upload(content, arguments.k) for content in contents]
        step = 9
        mixed = [r for i, u in enumerate(uploads) for r in (*by_id[step * i % 4990 : step * i % 4990 + step], u)]
        for name, requests, seconds in (
            ("warm-up", mixed, min(5.0, arguments.seconds)),
            ("id", by_id, arguments.seconds),
            ("mixed", mixed, arguments.seconds),
        ):
            record = {"scenario": name, **asyncio.run(load(port, server.pid, requests, arguments.clients, seconds))}
            if name != "warm-up":
                yield shown(record)
        share = arguments.seconds / arguments.rounds
        turns = []
        for _ in range(arguments.rounds):
            alone = bare(index, contents, share)
            served = asyncio.run(load(port, server.pid, uploads, arguments.clients, share))
            turns.append((alone, served))
        together = {
            "scenario": "upload",
            "rounds": [
                {"bare_images_per_s": round(alone[0], 1), "bare_images_per_cpu_s": round(alone[1], 1), **served}
                for alone, served in turns
            ],
            "bare_images_per_s": round(statistics.median(alone[0] for alone, _ in turns), 1),
            "requests_per_s": statistics.median(served["requests_per_s"] for _, served in turns),
            "of_bare": round(statistics.median(served["requests_per_s"] / alone[0] for alone, served in turns), 3),
            "of_bare_per_cpu_s": round(
                statistics.median(served["requests_per_server_cpu_s"] / alone[1] for alone, served in turns), 3
            ),
            "errors": sum(served["errors"] for _, served in turns),
        }
        yield shown(together)
    finally:
        server.terminate()
        server.wait()


def build(photos: Path, folder: Path, n_items: int) -> Path:
    """A model of the photos, and an index of them and of synthetic codes around theirs."""
    from distillhash import Codes
    from distillhash.cli import main as command
    from distillhash.index import open_index

    index = folder / "index"
    assert command(["train", str(photos), "--method", "itq", "--bits", "64", "--out", str(folder / "model")]) == 0
    assert command(["index", str(photos), "--model", str(folder / "model"), "--index", str(index)]) == 0
    with open_index(index) as opened:
        n_photos = len(opened)
        codes = np.concatenate([item.code.packed for item in opened.get(list(range(n_photos)))])
        rng = np.random.default_rng(0)
        noise = np.packbits(rng.random((n_items - n_photos, 64)) < 0.1, axis=1)
        more = codes[rng.integers(0, n_photos, n_items - n_photos)] ^ noise
        for start in range(0, len(more), 20_000):
            opened.add(Codes.from_packed(more[start : start + 20_000], 64))
    return index


def search_by_id(identifier: int, k: int) -> bytes:
    return f"POST /search?id={identifier}&k={k} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n".encode()


def upload(content: bytes, k: int) -> bytes:
    field = b'content-disposition: form-data; name="file"; filename="a.jpg"\r\ncontent-type: image/jpeg\r\n\r\n'
    body = b"--" + BOUNDARY + b"\r\n" + field + content + b"\r\n--" + BOUNDARY + b"--\r\n"
    kind = b"content-type: multipart/form-data; boundary=" + BOUNDARY
    head = f"POST /search?k={k} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n".encode()
    return head + kind + b"\r\n\r\n" + body


class Client(asyncio.Protocol):
    """One connection, one request at a time; as little work as it can do, for it shares the server's cores."""

    def __init__(self, requests: Any, times: list[float], stop: Callable[[], bool]) -> None:
        self.requests, self.times, self.stop = requests, times, stop
        self.errors, self.buffer, self.wanted = 0, b"", -1
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        self.next()

    def next(self) -> None:
        """Send the next request, or end."""
        if self.stop():
            self.transport.close()
            return
        self.buffer, self.wanted = b"", -1
        self.started = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        """Wait for the whole answer."""
        self.buffer += data
        if self.wanted < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            place = self.buffer.index(b"content-length: ") + 16
            self.wanted = end + 4 + int(self.buffer[place : self.buffer.index(b"\r", place)])
        if len(self.buffer) >= self.wanted:
            self.times.append(time.perf_counter() - self.started)
            self.errors += not self.buffer.startswith(b"HTTP/1.1 200")
            self.next()

    def connection_lost(self, error: Exception | None) -> None:
        """A connection that ends too early is an error."""
        del error
        self.errors += not self.stop()
        if not self.done.done():
            self.done.set_result(None)


async def load(port: int, pid: int, requests: list[bytes], n_clients: int, seconds: float) -> dict[str, Any]:
    """Send for a while; what came back, and what the server used."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    endless, times = itertools.cycle(requests), list[float]()
    clients = []
    memory, used, own = [rss_mb(pid)], cpu_seconds(pid), time.process_time()
    started = time.perf_counter()
    for _ in range(n_clients):
        _, client = await loop.create_connection(
            lambda: Client(endless, times, lambda: loop.time() >= give_up), "127.0.0.1", port
        )
        clients.append(client)
    while loop.time() < give_up:
        await asyncio.sleep(min(seconds / 10, max(0.01, give_up - loop.time())))
        memory.append(rss_mb(pid))
    await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - started
    server_cpu = cpu_seconds(pid) - used
    half = len(memory) // 2
    return {
        "clients": n_clients,
        "seconds": round(elapsed, 1),
        "requests": len(times),
        "errors": sum(client.errors for client in clients),
        "requests_per_s": round(len(times) / elapsed, 1),
        "requests_per_server_cpu_s": round(len(times) / server_cpu, 1),
        "server_cores_used": round(server_cpu / elapsed, 2),
        "client_cores_used": round((time.process_time() - own) / elapsed, 2),
        **{f"p{p:g}_ms": round(1e3 * float(np.percentile(times, p)), 2) for p in (50, 90, 99, 99.9)},
        "rss_mb": [round(value, 1) for value in (memory[1], memory[half], memory[-1])],
    }


def bare(index: Path, contents: list[bytes], seconds: float) -> tuple[float, float]:
    """Images a second of the same model in a loop, one thread per core, full batches: of time on the clock, and of processor time."""
    import torch
    from threadpoolctl import threadpool_limits

    from distillhash import load_model
    from distillhash.backbones.extract import keep_freed_memory
    from distillhash.sources import decode_resized

    keep_freed_memory()
    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    model = load_model(index / "model")
    backbone = model.backbone
    backbone.prepare()
    counts = [0] * len(os.sched_getaffinity(0))

    def work(thread: int, until: float) -> None:
        places = itertools.cycle(range(len(contents)))
        while time.perf_counter() < until:
            batch = [decode_resized(contents[next(places)], backbone.image_size) for _ in range(backbone.batch_size)]
            model.hasher.encode(backbone.embed(np.stack(batch)))
            counts[thread] += len(batch)

    for length in (1.0, seconds):
        counts[:] = [0] * len(counts)
        started, used = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=work, args=(i, started + length)) for i in range(len(counts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(counts) / (time.perf_counter() - started), sum(counts) / (time.process_time() - used)


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """The process and its children, which encode for it."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [pid, *(int(child) for thread in threads for child in thread.read_text().split())]


def rss_mb(pid: int) -> float:
    """Of all of them; what they share is counted for each."""
    pages = sum(int(Path(f"/proc/{member}/statm").read_text().split()[1]) for member in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    fields = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in family(pid)]
    return sum(int(times[11]) + int(times[12]) for times in fields) / os.sysconf("SC_CLK_TCK")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def shown(record: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(record), flush=True)
    return record


if __name__ == "__main__":
    main()
