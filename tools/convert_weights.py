#!/usr/bin/env python
"""Convert weights of any accepted kind to this package's names and to safetensors, and report on every name.

Accepted are the official GLIP files, GLIP as mmdetection converts it, ImageNet weights of a Swin Transformer,
image-text models (CLIP, UniCL) and the checkpoints of this package. The names in the file tell the kind.

    python tools/convert_weights.py glip_tiny_model_o365_goldg.pth glip_t_c.safetensors \\
        --config-file configs/glip/glip_swin_t_c.yaml

With --config-file, nothing is written unless the model of that config has a parameter for every tensor in the file and,
for the file of a detector, a tensor for every parameter. OUT may then be a new folder. It gets the whole model, with
config and tokenizer, for GLIPv2Predictor.from_pretrained and for --config-file OUT/config.yaml.

    python tools/convert_weights.py output/mine/model_final.pth mine --config-file output/mine/config.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import Tensor

from glipv2_d2.checkpoint.checkpointer import check_fit
from glipv2_d2.checkpoint.conversion import find_kind
from glipv2_d2.checkpoint.model_shapes import build_meta_model
from glipv2_d2.checkpoint.name_rules import ConversionReport, summarize_names
from glipv2_d2.checkpoint.pretrained_folder import save_pretrained
from glipv2_d2.config_files import find_config_file
from glipv2_d2.engine.command_line import build_config, one_line_errors
from glipv2_d2.modeling import build_model
from glipv2_d2.tensor_files import CheckpointError, read_checkpoint, unwrap_weights, write_tensors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    description, _, examples = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", metavar="FILE", help="weights (.pth, .pt, .bin, .safetensors)")
    parser.add_argument("output", metavar="OUT", help="file to write, .safetensors; or a new folder")
    parser.add_argument("--ema", action="store_true", help="take the moving average kept under 'model_ema'")
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the model")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="keys of the config")
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert ``args.input`` to ``args.output``, and print a report on the names."""
    to_folder = Path(args.output).suffix != ".safetensors"
    if to_folder and not args.config_file:
        raise CheckpointError(
            f"{args.output}: expected a name that ends in .safetensors, or a folder together with --config-file"
        )
    cfg, expected = None, None
    if args.config_file:
        cfg = build_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
        expected = expected_tensors(cfg)
    content, _ = read_checkpoint(args.input, mmap=True)
    tensors = unwrap_weights(content, args.input, ema=args.ema)
    kind = find_kind(tensors)
    tensors, report = kind.convert(tensors, expected=expected, source=args.input)
    print(report)
    if expected is not None:
        check_places(tensors, report, expected, args.input, kind.fills_detector or to_folder)
    if to_folder:
        save_folder(tensors, cfg, args)
    else:
        write_tensors(args.output, tensors, {"source": report.source})
    print(f"wrote {len(tensors)} tensors to {args.output}")


def expected_tensors(cfg: CfgNode) -> dict[str, Tensor]:
    """Return the tensors of the model of a config; without values if the config gives the sizes of its text encoder."""
    if cfg.MODEL.TEXT_ENCODER.WEIGHTS:
        return build_model(cfg).state_dict()
    return build_meta_model(cfg).state_dict()


def check_places(
    tensors: Mapping[str, Tensor], report: ConversionReport, expected: Mapping[str, Tensor], source: str, is_whole: bool
) -> None:
    """Check that the model has a parameter for every tensor and, with ``is_whole``, a tensor for every parameter.

    Raises:
        CheckpointError: A tensor has another shape, is missing, or has no parameter.
    """
    check_fit(tensors, expected, source)
    if is_whole and report.missing:
        raise CheckpointError(f"{source}: expected weights for {summarize_names(report.missing)}, found none")
    surplus = [name for name in tensors if name not in expected]
    if surplus:
        raise CheckpointError(f"{source}: expected parameters of the model alone, found {summarize_names(surplus)} too")


def save_folder(tensors: Mapping[str, Tensor], cfg: CfgNode, args: argparse.Namespace) -> None:
    """Write the model of a config, filled with these tensors, as the folder ``args.output``."""
    tuning = cfg.MODEL.GLIPV2.TUNING
    if tuning.WEIGHTS or tuning.INTERPOLATE_WITH:
        raise CheckpointError(
            f"{args.output}: MODEL.GLIPV2.TUNING.WEIGHTS, INTERPOLATE_WITH: expected none, found "
            f"{tuning.WEIGHTS or tuning.INTERPOLATE_WITH!r}; GLIPv2Predictor.save_pretrained writes such models"
        )
    model = build_model(cfg)
    model.load_state_dict(tensors)
    portable = cfg.clone()
    portable.defrost()
    # The device of the user's config, which need not exist here.
    from_file = CfgNode.load_yaml_with_base(find_config_file(args.config_file)).get("MODEL", {}).get("DEVICE", "auto")
    portable.MODEL.DEVICE = dict(zip(args.opts[::2], args.opts[1::2], strict=True)).get("MODEL.DEVICE", from_file)
    save_pretrained(model, portable, args.output)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    with one_line_errors():
        convert(parse_args(argv))


if __name__ == "__main__":
    main()
