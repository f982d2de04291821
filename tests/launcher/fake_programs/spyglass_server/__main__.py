"""Stands in for the server: healthy at once, ends at SIGTERM, and tells what it was given.

FAKE_STUBBORN lets it ignore SIGTERM.
"""

import asyncio
import json
import os
import signal
import sys

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fake_service import FakeService
from spyglass.v1 import inference_pb2_grpc as pb_grpc


async def main() -> None:
    server = grpc.aio.server()
    pb_grpc.add_InferenceServiceServicer_to_server(FakeService(), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["SPYGLASS_GRPC"])
    stop = asyncio.Event()
    stubborn = "FAKE_STUBBORN" in os.environ
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if stubborn else stop.set)
    await server.start()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    given = {name: value for name, value in os.environ.items() if name.startswith("SPYGLASS_")}
    # One write for the whole line: the other program writes to the same pipe.
    sys.stdout.write(json.dumps({"server": os.getpid(), "environ": given}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(grace=None)


if __name__ == "__main__":
    asyncio.run(main())
