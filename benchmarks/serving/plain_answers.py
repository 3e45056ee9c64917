"""A server of grpc.aio that parses a request for an explanation and sends an answer that it is given at its start.

    python benchmarks/serving/plain_answers.py ANSWER PORT

What a call costs here is gRPC's own part, in Python's event loop, of what it costs any server that is written so.
"""

import asyncio
import sys
from pathlib import Path

import grpc

from keylock.v1 import explanation_pb2 as pb
from keylock.v1 import explanation_pb2_grpc


class _Service(explanation_pb2_grpc.ExplanationServiceServicer):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    async def Explain(self, request: pb.ExplainRequest, context: object) -> pb.ExplainResponse:  # noqa: N802
        # Made for each call, as a server has to.
        return pb.ExplainResponse.FromString(self._answer)


async def main() -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
    explanation_pb2_grpc.add_ExplanationServiceServicer_to_server(_Service(Path(sys.argv[1]).read_bytes()), server)
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
