"""The wide world's tables: which folders of a collection show things, and decisions about names that no rule can make.

Made by looking at the names and pictures of the packages in :data:`PACKAGES`.
"""

from typing import NamedTuple

from .npm_packages import KnownFile


class Package(NamedTuple):
    """A package of pictures or words.

    Attributes:
        registry: "debian" or "npm".
        known: The file that the tables were made for.
        licence: As the package or the collection in it declares.
    """

    registry: str
    known: KnownFile
    licence: str


WORDNET = "wordnet-base"
CLIP_ART = "openclipart-png"
EMOJI_FONT = "fonts-noto-color-emoji"
EMOJI = "@lobehub/fluent-emoji-3d"
LAYERED_EMOJI = "twemoji-colr-font"
FLASHCARDS = "pysiogame"

PACKAGES = {
    WORDNET: Package(
        "debian",
        KnownFile("1:3.0-37", 6467132, "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"),
        "WordNet License (permissive; words only, no pictures)",
    ),
    CLIP_ART: Package(
        "debian",
        KnownFile("1:0.18+dfsg-19", 130910028, "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"),
        "public domain",
    ),
    EMOJI_FONT: Package(
        "debian",
        KnownFile("2.042-0+deb12u1", 9893872, "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751"),
        "OFL-1.1",
    ),
    EMOJI: Package(
        "npm",
        KnownFile("1.1.0", 15792027, "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
        "MIT",
    ),
    LAYERED_EMOJI: Package(
        "npm",
        KnownFile("15.0.3", 472462, "10cb935907d7dc3d46e254d6ff54b3e042652eb08f6973c81cd2c4225e6ebac5"),
        "graphics CC BY 4.0, font OFL-1.1",
    ),
    FLASHCARDS: Package(
        "debian",
        KnownFile("4.20.01-1", 16287820, "6b22766dfd8ef3a046c2665fe2598ac8a1ecee3d331bda38accf53de65bc59bf"),
        "CC BY-SA 3.0: Art4Apps (art4apps.org)",
    ),
}

# What LICENSES.md says of each collection.
LICENCES = {
    "drawn stamps": "Debian package tuxpaint-stamps-default: GPL-2, copyright Bill Kendrick and contributors.",
    "flash cards": "Art4Apps, art4apps.org: CC BY-SA 3.0. Debian packages gcompris-qt-data and pysiogame.",
    "clip art": "Open Clip Art Library 0.18: public domain. Debian package openclipart-png.",
    "fluent emoji": "Fluent Emoji, copyright Microsoft Corporation: MIT. Package @lobehub/fluent-emoji-3d.",
    "twemoji": "Twemoji, copyright Twitter, Inc. and contributors: CC BY 4.0. Package twemoji-colr-font.",
    "noto emoji": "Noto Emoji, copyright Google: OFL-1.1. Debian package fonts-noto-color-emoji.",
}

# Folders of Open Clip Art, and what the things in them can be; the first prefix that fits counts, "" leaves out.
CLIP_ART_FOLDERS = {
    "animals/fantasy": "",
    "animals": "animal",
    "buildings": "artifact",
    "computer/hardware": "artifact",
    "computer/icons/lemon-theme/devices": "artifact",
    "containers": "artifact",
    "education": "artifact",
    "electronics": "artifact",
    "food": "food plant artifact",
    "geography/astronomy": "object",
    "geography": "artifact",
    "office": "artifact",
    "people/bodypart": "body",
    "people/clothing": "artifact",
    "people/smilies": "",
    "people/stickmen": "",
    "people": "person",
    "plants": "plant",
    "recreation/games/cards": "",
    "recreation/religion": "",
    "recreation": "artifact",
    "science/astronomy": "object",
    "science": "artifact body",
    "tools": "artifact",
    "transportation/aiga-symbols": "",
    "transportation/roadsigns": "",
    "transportation": "artifact",
    "unsorted": "animal artifact food plant",
}

# Folders of the flash cards, and what the things in them can be.
FLASHCARD_FOLDERS = {
    "animals": "animal",
    "clothes_n_accessories": "artifact",
    "construction": "artifact",
    "food": "food plant",
    "fruit_n_veg": "food plant",
    "jobs": "person",
    "transport": "artifact",
}

# Flash cards that show more, or less, than the thing; most of them with an arrow that touches it.
EXCLUDED_FLASHCARDS = frozenset(
    """
    clothes_n_accessories/sock clothes_n_accessories/swimming_suit clothes_n_accessories/raincoat construction/chimney
    food/meat food/sugar food/feast food/lunch food/bacon food/milk food/juice
""".split()
)

# Folders of Tux Paint whose drawings show things with names.
STAMP_FOLDERS = {
    "animals": "animal",
    "clothes": "artifact",
    "food": "food plant",
    "hobbies": "artifact",
    "household": "artifact",
    "medical": "artifact",
    "plants": "plant food",
    "sports": "artifact",
    "town": "artifact",
    "vehicles": "artifact",
}

# What emoji show, by the first code point of a range, and what the things of GCompris' word pictures can be.
EMOJI_RANGES = (
    (0x0000, "artifact object"),
    (0x1F32D, "food artifact"),
    (0x1F331, "plant food"),
    (0x1F345, "food plant artifact"),
    (0x1F380, "artifact object"),
    (0x1F382, "food"),
    (0x1F383, "artifact object"),
    (0x1F384, "plant"),
    (0x1F385, "person"),
    (0x1F386, "artifact object"),
    (0x1F3C2, "person"),
    (0x1F3C5, "artifact"),
    (0x1F3C7, "person"),
    (0x1F3C8, "artifact"),
    (0x1F3CA, "person"),
    (0x1F3CD, "artifact object"),
    (0x1F400, "animal"),
    (0x1F43E, "body"),
    (0x1F451, "artifact"),
    (0x1F464, "person"),
    (0x1F484, "artifact object food plant"),
    (0x1F54A, "animal"),
    (0x1F54B, "artifact object"),
    (0x1F574, "person"),
    (0x1F576, "artifact"),
    (0x1F577, "animal"),
    (0x1F578, "artifact object"),
    (0x1F6B4, "person"),
    (0x1F6B7, "artifact object"),
    (0x1F921, "person"),
    (0x1F93F, "artifact"),
    (0x1F940, "plant"),
    (0x1F941, "artifact"),
    (0x1F950, "food plant artifact"),
    (0x1F970, "person"),
    (0x1F97B, "artifact"),
    (0x1F980, "animal"),
    (0x1F9AF, "artifact"),
    (0x1F9B4, "body"),
    (0x1F9B8, "person"),
    (0x1F9BA, "artifact"),
    (0x1F9C0, "food plant artifact"),
    (0x1F9CC, "person"),
    (0x1F9E0, "body"),
    (0x1F9E1, "artifact object"),
    (0x1FAB0, "animal"),
    (0x1FAB4, "plant artifact object"),
    (0x1FAC0, "body"),
    (0x1FAC3, "person"),
    (0x1FAD0, "food plant artifact"),
    (0x1FAE0, ""),
)
WORD_KINDS = "animal food plant body artifact person object"

# The nearest of these that a thing is a kind of is its parent, by kind.
PARENTS = {
    "animal": (
        "bird fish insect arachnid reptile dinosaur amphibian crustacean mollusk rodent feline canine bear primate "
        "cetacean marsupial ungulate mammal"
    ),
    "artifact": (
        "motor vehicle,wheeled vehicle,boat,ship,watercraft,aircraft,spacecraft,vehicle,musical instrument,tool,weapon,"
        "furniture,footwear,headdress,jewelry,garment,clothing,bottle,bag,box,tableware,kitchen utensil,container,"
        "house,building,structure,toy,ball,game equipment,sports equipment,computer,electronic equipment,lamp,machine,"
        "measuring instrument,writing implement,optical instrument,home appliance,decoration,timepiece,lock,device"
    ),
    "food": (
        "edible fruit,vegetable,bread,cake,baked goods,dessert,candy,meat,beverage,cheese,sandwich,dish,nut,seafood"
    ),
    "plant": "tree,flower,herb,shrub,vascular plant",
    "body": "external body part,organ",
    "object": "celestial body,geological formation",
}

# Parents that questions count, with their plural.
COUNTED_PARENTS = {"bird": "birds", "insect": "insects", "musical instrument": "musical instruments"}
