"""Many clients at a time against one at a time: latency, tokens per second, errors and memory of the server.

    python benchmarks/serve.py [--model NAME] [--clients 32] [--seconds 60] [--batch-size 16] [--kinds text,image,...]

Starts `anygpt serve` on a free port, warms it up, and has clients send one request after the other: chat in text,
pictures, captions, speech, transcription and music in turn, or the kinds that are named. A client that gets status
429 waits as it is told. Tokens are the ids that the server drew, by its own metrics; latency is that of whole answers.
Memory is the server's resident set: before, in the middle, after. Clients and server share the machine.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import httpx
import psutil

Kinds = dict[str, dict[str, Any]]


@dataclass
class Load:
    """What some clients met with."""

    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0
    errors: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or name; by default the one that the server takes")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--kinds", default="text,image,caption,speech,transcription,music")
    options = parser.parse_args()
    words = [sys.executable, "-m", "anygpt", "serve", "--port", "0", "--batch-size", str(options.batch_size)]
    words += ["--model-name-or-path", options.model] if options.model else []
    server = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        asyncio.run(measure(server, options))
    finally:
        server.terminate()
        server.wait(60)


async def measure(server: "subprocess.Popen[str]", options: argparse.Namespace) -> None:
    url = await asyncio.to_thread(address, server)
    memory = psutil.Process(server.pid).memory_info
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        kinds = await requests(client, options.kinds.split(","))
        await run(client, kinds, clients=options.clients, seconds=10)
        print("| clients | requests | 429 | other errors | p50 (s) | p95 (s) | tokens/s | server memory (MB) |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
        for clients in (1, options.clients):
            memories, tokens = [memory().rss], await drawn(client)
            began = time.perf_counter()
            first = await run(client, kinds, clients=clients, seconds=options.seconds / 2)
            memories.append(memory().rss)
            load = await run(client, kinds, clients=clients, seconds=options.seconds / 2, load=first)
            rate = (await drawn(client) - tokens) / (time.perf_counter() - began)
            memories.append(memory().rss)
            report(clients, load, rate, memories)


def address(server: "subprocess.Popen[str]") -> str:
    """Where the server listens, once it does; what it says later is read as well, lest it waits for that."""
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return found[1]
    raise SystemExit("the server did not start")


async def requests(client: httpx.AsyncClient, names: list[str]) -> Kinds:
    """The requests by kind; a picture and a sound of the model's own are what it is asked about."""
    image = (await client.post("/v1/images/generations", json={"prompt": "a large red apple", "seed": 1})).json()
    speech = await client.post("/v1/audio/speech", json={"input": "hello there", "response_format": "wav", "seed": 1})
    url = f"data:image/png;base64,{image['data'][0]['b64_json']}"
    picture = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is this?"}]

    def chat(content: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        return {"url": "/v1/chat/completions", "json": {"messages": messages, "modalities": ["text"], "max_tokens": 64}}

    all_kinds: Kinds = {
        "text": chat("what is a banana?"),
        "image": {"url": "/v1/images/generations", "json": {"prompt": "a large red apple on a white background"}},
        "caption": chat(picture),
        "speech": {"url": "/v1/audio/speech", "json": {"input": "the cat is under the table"}},
        "transcription": {"url": "/v1/audio/transcriptions", "files": {"file": speech.content}},
        "music": {"url": "/v1/audio/music", "json": {"prompt": "slow piano, calm and soft"}},
    }
    return {name: all_kinds[name] for name in names}


async def run(
    client: httpx.AsyncClient, kinds: Kinds, *, clients: int, seconds: float, load: Load | None = None
) -> Load:
    """Requests of so many clients; the last of each begins before the time is over."""
    load = load or Load()
    ends = time.perf_counter() + seconds
    await asyncio.gather(*(one_client(client, list(kinds.values()), number, ends, load) for number in range(clients)))
    return load


async def one_client(
    client: httpx.AsyncClient, kinds: list[dict[str, Any]], number: int, ends: float, load: Load
) -> None:
    while (began := time.perf_counter()) < ends:
        response = await client.post(**kinds[number % len(kinds)])
        if response.status_code == 429:
            load.refused += 1
            await asyncio.sleep(float(response.headers["retry-after"]))
            continue
        if response.status_code == 200:
            load.latencies_s.append(time.perf_counter() - began)
        else:
            load.errors.append(response.text)
        number += 1


async def drawn(client: httpx.AsyncClient) -> float:
    """Ids that the server has drawn so far."""
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith('anygpt_tokens_total{kind="generated"}'))


def report(clients: int, load: Load, rate: float, memories: list[int]) -> None:
    percentiles = quantiles(load.latencies_s, n=20)
    counts = f"{clients} | {len(load.latencies_s)} | {load.refused} | {len(load.errors)}"
    megabytes = ", ".join(f"{size / 1e6:.0f}" for size in memories)
    print(f"| {counts} | {percentiles[9]:.2f} | {percentiles[18]:.2f} | {rate:.0f} | {megabytes} |", flush=True)
    for error in dict.fromkeys(load.errors):
        print(json.dumps(error), file=sys.stderr)


if __name__ == "__main__":
    main()
