"""Show a page in the browser: drop a photograph, write what to find, see the boxes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..errors import InputError
from .config_arguments import add_config_arguments, config_keys
from .output import write_line

# Larger files are refused while they arrive.
_LARGEST_FILE = "100mb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``glipv2 serve``."""
    add_config_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address that listens; 0.0.0.0: the whole network may ask")
    parser.add_argument("--port", type=int, default=7860, help="its port")


def run(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: gradio is not installed, the port is taken, or the model cannot be built.
    """
    try:
        import gradio  # noqa: F401  is looked for before the model is built, which takes seconds
    except ImportError as error:
        raise InputError("glipv2 serve: expected gradio, found none; pip install 'glipv2_d2[web]'") from error
    from ..engine.command_line import build_config
    from ..engine.predictor import GLIPv2Predictor
    from .page import THEME, build_page

    cfg = build_config(arguments.config_file, config_keys(arguments))
    page = build_page(GLIPv2Predictor(cfg), Path(cfg.MODEL.WEIGHTS).name)
    # It logs every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
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
