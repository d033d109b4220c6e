#!/usr/bin/env python
"""Convert an official GLIP checkpoint to this package's names and to safetensors.

    python tools/convert_glip_weights.py glip_tiny_model_o365_goldg.pth glip_t_c.safetensors \\
        --config-file configs/glip/glip_swin_t_c.yaml

With --config-file nothing is written unless every tensor of that model is there, with its shape.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glipv2_d2.checkpoint.checkpointer import check_fit
from glipv2_d2.checkpoint.glip_conversion import convert_glip_state_dict
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.checkpoint.name_rules import summarize_names
from glipv2_d2.engine.defaults import INPUT_ERRORS, build_config, describe
from glipv2_d2.tensor_files import CheckpointError, read_checkpoint, write_tensors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("input", metavar="IN", help="official checkpoint (.pth), or its tensors as .safetensors")
    parser.add_argument("output", metavar="OUT", help="file to write, .safetensors")
    parser.add_argument("--ema", action="store_true", help="take the moving average kept under 'model_ema'")
    parser.add_argument("--config-file", default="", metavar="FILE", help="check against the model of this config")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert ``args.input`` to ``args.output`` and print what became of the names."""
    if Path(args.output).suffix != ".safetensors":
        raise CheckpointError(f"{args.output}: expected a name that ends in .safetensors")
    model_tensors = None
    if args.config_file:
        model_tensors = build_meta_model(build_config(args.config_file, ["MODEL.DEVICE", "cpu"])).state_dict()
    content, _ = read_checkpoint(args.input, mmap=True)
    tensors, report = convert_glip_state_dict(content, expected=model_tensors, ema=args.ema, source=args.input)
    print(report)
    if model_tensors is not None:
        check_fit(tensors, model_tensors, args.input)
        if report.missing:
            raise CheckpointError(f"{args.input}: lacks weights for {summarize_names(report.missing)}")
        surplus = [name for name in tensors if name not in model_tensors]
        if surplus:
            raise CheckpointError(f"{args.input}: the model has no place for {summarize_names(surplus)}")
    write_tensors(args.output, tensors, {"source": report.source})
    print(f"wrote {len(tensors)} tensors to {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if the file was written, 1 with one line on the error stream if not."""
    try:
        convert(parse_args(argv))
    except INPUT_ERRORS as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
