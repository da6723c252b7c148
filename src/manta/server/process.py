"""A server as long as a process runs."""

from contextlib import suppress
from socket import socket

import uvicorn
from fastapi import FastAPI


def serve(app: FastAPI, listening: socket) -> None:
    """Serve until INT or TERM ends it; what was accepted is finished, and nothing more is taken.

    Args:
        app: the application.
        listening: a socket that is bound.
    """
    config = uvicorn.Config(app, log_level="warning", server_header=False, date_header=False)
    with suppress(KeyboardInterrupt):  # uvicorn raises its signals again once all is done
        uvicorn.Server(config).run(sockets=[listening])
