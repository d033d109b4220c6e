"""Object Detection in the Wild: 35 small detection datasets of Roboflow, 13 of which are the benchmark of the paper."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.data import MetadataCatalog

from .coco import load_coco_grounding
from .value_checks import AnnotationError

SPLITS = ("train", "val", "test")

# The names of the splits in paths.
_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_ANNOTATIONS = "annotations_without_background.json"


class OdinwSet(NamedTuple):
    """Where a set lies, and how prompts name its categories.

    Attributes:
        folder: Below the folder of all sets. In it each split has a folder, ``train``, ``valid``, ``test``, of images
            and their json.
        is_one_folder: The images of all splits lie in ``folder`` itself, and the json of each has its name in front.
        has_test: Otherwise the validation split is tested on.
        names: The texts of the categories in prompts, by ascending id; empty: the names of the json.
        contexts: For some names the texts before and after them in a prompt: (name, before, after).
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


# Source: the official code's task files of ODinW-35, which agree with this table in the folders of all sets and in the
# texts of the six sets that have some. The official files of ODinW-13 have none of these texts: for their protocol set
# INPUT.PROMPT.DATASET_TEXTS to False. A wrong folder is an error that names it.
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


def load_odinw(json_file: str, image_root: str, odinw_set: OdinwSet, name: str) -> list[dict]:
    """Read a split.

    ``thing_classes`` in the metadata are the names of the json. Where prompts use another text, ``prompt_texts`` in the
    metadata holds it: a name with another text is still the same category.

    Returns:
        Dataset dicts as ``load_coco_grounding`` makes them.

    Raises:
        FileNotFoundError: The file does not exist.
        AnnotationError: The file cannot be used, has another number of categories than the set has names, or lacks a
            name that has a context.
    """
    records = load_coco_grounding(json_file, image_root, name)
    metadata = MetadataCatalog.get(name)
    categories = metadata.thing_classes
    texts = odinw_set.names or tuple(categories)
    found = f"found {', '.join(categories[:6])}"
    if len(texts) != len(categories):
        expected = f"{len(texts)} that prompts can call {', '.join(texts)}"
        raise AnnotationError(f"{json_file}: categories: expected {expected}, {found}")
    contexts = {text: (before, after) for text, before, after in odinw_set.contexts}
    missing = [text for text in contexts if text not in texts]
    if missing:
        raise AnnotationError(f"{json_file}: categories: expected {missing[0]!r} among them, {found}")
    prompt_texts = {}
    for category, text in zip(categories, texts, strict=True):
        before, after = contexts.get(text, ("", ""))
        if (before, text, after) != ("", category, ""):
            prompt_texts[category] = (before, text, after)
    metadata.prompt_texts = prompt_texts
    return records
