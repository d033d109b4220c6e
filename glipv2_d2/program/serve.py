"""Show a page in the browser: drop a photograph, write what to find, see the boxes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .config_arguments import add_model_arguments, build_predictor
from .output import write_line

# Larger files are refused while they arrive.
_LARGEST_FILE = "100mb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 serve``."""
    add_model_arguments(parser)
    parser.add_argument("--allow-downloads", action="store_true", help="fetch a model at an address")
    parser.add_argument("--host", default="127.0.0.1", help="address that listens; 0.0.0.0: the whole network may ask")
    parser.add_argument("--port", type=int, default=7860, help="its port")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys; last")


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: gradio is not installed, nothing can listen at the address, or the model cannot be built.
    """
    if not 1 <= arguments.port <= 65535:
        raise InputError(f"--port: expected a number from 1 to 65535, found {arguments.port}")
    try:
        import gradio  # noqa: F401  is looked for before the model is built, which takes seconds
    except ImportError as error:
        raise InputError("glipv2 serve: expected gradio, found none; pip install 'glipv2_d2[web]'") from error
    check_address(arguments.host, arguments.port)
    from .page import THEME, build_page

    predictor = build_predictor(arguments, arguments.opts)
    # It logs every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with surroundings(arguments.host):
        page = build_page(predictor, Path(arguments.model or arguments.config_file).resolve().stem)
        try:
            page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                max_file_size=_LARGEST_FILE,
                theme=THEME,
                footer_links=[],
                share=False,
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise InputError(f"--port: expected a free port, found {arguments.port} taken; try another") from error
        write_line(f"Open http://{arguments.host}:{arguments.port} in a browser; Ctrl-C ends.")
        page.block_thread()


@contextlib.contextmanager
def surroundings(host: str) -> Iterator[None]:
    """Within the context gradio keeps files where nobody else does, and asks for its own page without a proxy.

    Its folder is one for all users of a machine otherwise, and only the first of them may write to it.

    Args:
        host: The address that listens.
    """
    with tempfile.TemporaryDirectory(prefix="glipv2_serve_", ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)
        known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join([*([known] if known else []), "localhost", "127.0.0.1", host])
        yield


def check_address(host: str, port: int) -> None:
    """Check that this program can listen at an address.

    Raises:
        InputError: Another program does, or it is none of this machine or not for everyone.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: connections of one that has ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port: expected a free port, found {port} taken; try another") from error
        raise InputError(
            f"--host: expected an address of this machine, found {host} with port {port}: {error.strerror}"
        ) from error
