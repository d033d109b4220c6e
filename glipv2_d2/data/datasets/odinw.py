"""Object Detection in the Wild: 35 small detection datasets of Roboflow, 13 of which are the benchmark of the paper."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from detectron2.data import MetadataCatalog

from .coco import load_coco_grounding
from .registration import register_dataset
from .value_checks import AnnotationError

SPLITS = ("train", "val", "test")

# The names of the splits in paths.
_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_ANNOTATIONS = "annotations_without_background.json"


class OdinwSet(NamedTuple):
    """Where a set lies, and what prompts say for its names.

    Attributes:
        folder: Below the folder of all sets. In it each split has a folder, ``train``, ``valid``, ``test``, of images
            and their json.
        is_one_folder: The images of all splits lie in ``folder`` itself, and the json of each has its name in front.
        has_test: Otherwise the validation split is tested on.
        names: What prompts say for the categories, by ascending id; empty: what the json says.
        contexts: For some names what stands before and after them in a prompt: (name, before, after).
    """

    folder: str
    is_one_folder: bool = False
    has_test: bool = True
    names: tuple[str, ...] = ()
    contexts: tuple[tuple[str, str, str], ...] = ()

    def paths(self, split: str) -> tuple[str, str]:
        """Return json and image directory of a split, below the folder of all sets."""
        if split == "test" and not self.has_test:
            split = "val"
        if self.is_one_folder:
            return f"{self.folder}/{split}_{_ANNOTATIONS}", self.folder
        images = f"{self.folder}/{_FOLDERS[split]}"
        return f"{images}/{_ANNOTATIONS}", images


# Source: the official code's task files of ODinW-13 (GLIPv2, Table 7) and ODinW-35, from memory: neither they nor the
# archives were at hand to compare with, but for the penguin of Aquarium. A wrong folder is an error that names it. The
# official files have texts for more sets than stand here; none was made up.
ODINW_SETS = {
    "AerialMaritimeDrone_large": OdinwSet("AerialMaritimeDrone/large"),
    "AerialMaritimeDrone_tiled": OdinwSet("AerialMaritimeDrone/tiled"),
    "AmericanSignLanguageLetters": OdinwSet("AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco"),
    "Aquarium": OdinwSet(
        "Aquarium/Aquarium Combined.v2-raw-1024.coco",
        contexts=(
            ("penguin", "", " , which is black and white"),
            ("puffin", "", " with orange beaks"),
            ("stingray", "", " which is flat and round"),
        ),
    ),
    "BCCD": OdinwSet("BCCD/BCCD.v3-raw.coco"),
    "ChessPieces": OdinwSet("ChessPieces/Chess Pieces.v23-raw.coco"),
    "CottontailRabbits": OdinwSet("CottontailRabbits", names=("rabbit",)),
    "DroneControl": OdinwSet("DroneControl/Drone Control.v3-raw.coco"),
    "EgoHands_generic": OdinwSet("EgoHands/generic", names=("hand",), contexts=(("hand", "", " of a person"),)),
    "EgoHands_specific": OdinwSet("EgoHands/specific"),
    "HardHatWorkers": OdinwSet("HardHatWorkers/raw"),
    "MaskWearing": OdinwSet("MaskWearing/raw"),
    "MountainDewCommercial": OdinwSet("MountainDewCommercial"),
    "NorthAmericaMushrooms": OdinwSet(
        "NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco", names=("flat mushroom", "yellow mushroom")
    ),
    "OxfordPets_by_breed": OdinwSet("OxfordPets/by-breed"),
    "OxfordPets_by_species": OdinwSet("OxfordPets/by-species"),
    "PKLot": OdinwSet("PKLot/640"),
    "Packages": OdinwSet("Packages/Raw", names=("package",), contexts=(("package", "there is a ", " on the porch"),)),
    "PascalVOC": OdinwSet("PascalVOC", has_test=False),
    "Raccoon": OdinwSet("Raccoon/Raccoon.v2-raw.coco"),
    "ShellfishOpenImages": OdinwSet("ShellfishOpenImages/raw"),
    "ThermalCheetah": OdinwSet("ThermalCheetah"),
    "UnoCards": OdinwSet("UnoCards/raw"),
    "VehiclesOpenImages": OdinwSet("VehiclesOpenImages/416x416"),
    "WildfireSmoke": OdinwSet("WildfireSmoke"),
    "boggleBoards": OdinwSet("boggleBoards/416x416AutoOrient/export", is_one_folder=True),
    "brackishUnderwater": OdinwSet("brackishUnderwater/960x540"),
    "dice": OdinwSet("dice/mediumColor/export", is_one_folder=True),
    "openPoetryVision": OdinwSet("openPoetryVision/512x512"),
    "pistols": OdinwSet("pistols/export", is_one_folder=True),
    "plantdoc": OdinwSet("plantdoc/416x416"),
    "pothole": OdinwSet("pothole", names=("holes",), contexts=(("holes", "there are some ", " on the road"),)),
    "selfdrivingCar": OdinwSet("selfdrivingCar/fixedLarge/export", is_one_folder=True),
    "thermalDogsAndPeople": OdinwSet("thermalDogsAndPeople"),
    "websiteScreenshots": OdinwSet("websiteScreenshots"),
}

# In the order of the columns of the paper's Table 11.
ODINW_13 = (
    *("PascalVOC", "AerialMaritimeDrone_large", "Aquarium", "CottontailRabbits", "EgoHands_generic"),
    *("NorthAmericaMushrooms", "Packages", "Raccoon", "ShellfishOpenImages", "VehiclesOpenImages"),
    *("pistols", "pothole", "thermalDogsAndPeople"),
)


def dataset_of_set(key: str, split: str) -> str:
    """Return the name under which a split of one of ``ODINW_SETS`` is registered."""
    return f"odinw_{key}_{split}"


def register_odinw(root: str | os.PathLike[str]) -> None:
    """Register all splits of all sets as detection datasets; no file is read before one is used.

    Args:
        root: Folder that holds the folders of the sets.

    Raises:
        ValueError: A name is taken.
    """
    root = os.fspath(root)
    for key, one in ODINW_SETS.items():
        for split in SPLITS:
            name = dataset_of_set(key, split)
            json_file, image_root = (os.path.join(root, path) for path in one.paths(split))
            load = functools.partial(load_odinw, json_file, image_root, name, one)
            entries = {"evaluator_type": "coco", "task": "detection"}
            register_dataset(name, load, json_file=json_file, image_root=image_root, **entries)


def load_odinw(json_file: str, image_root: str, name: str, one: OdinwSet) -> list[dict]:
    """Read a registered split; boxes that reach past their image are cut.

    ``thing_classes`` in the metadata are the names of the json. Where prompts say something else, ``prompt_texts`` in
    the metadata tells what: a name of another text is still the same category.

    Returns:
        Dataset dicts as ``load_coco_grounding`` makes them.

    Raises:
        FileNotFoundError: The file or the image directory does not exist.
        AnnotationError: The file breaks the format, has another number of categories than the set has names, or lacks a
            name that has a context.
    """
    records = load_coco_grounding(json_file, image_root, name, clip_boxes=True)
    metadata = MetadataCatalog.get(name)
    categories = metadata.thing_classes
    texts = one.names or tuple(categories)
    if len(texts) != len(categories):
        raise AnnotationError(
            f"{json_file}: categories are {', '.join(categories[:6])}, expected {len(texts)} that prompts can call "
            f"{', '.join(texts)}"
        )
    contexts = {text: (before, after) for text, before, after in one.contexts}
    missing = [text for text in contexts if text not in texts]
    if missing:
        raise AnnotationError(
            f"{json_file}: categories are {', '.join(categories[:6])}, expected {missing[0]!r} among them"
        )
    prompt_texts = {}
    for category, text in zip(categories, texts):
        before, after = contexts.get(text, ("", ""))
        if (before, text, after) != ("", category, ""):
            prompt_texts[category] = (before, text, after)
    metadata.prompt_texts = prompt_texts
    return records
