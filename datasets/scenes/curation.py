"""StampWorld's tables: decisions made by looking at every stamp and every photograph of the two packages.

Stamps are named by their path below the folder of stamps, photographs by the GCompris activity and their path in its
resources. Made for the versions in :data:`CURATED_VERSIONS`; of later ones, files that are gone are passed over.
"""

from dataclasses import dataclass

STAMPS_PACKAGE = "tuxpaint-stamps-default"
PHOTOS_PACKAGE = "gcompris-qt-data"
CURATED_VERSIONS = {STAMPS_PACKAGE: "2022.06.04-1", PHOTOS_PACKAGE: "3.1-2"}


@dataclass(frozen=True)
class Curation:
    """Decisions that no rule can make.

    Attributes:
        excluded: Stamps that pass for photographs but are not, or show no single thing with a name; and why.
        included: Photographs that the rules would leave out, and why they would.
        renamed: Names where a stamp's caption gives none, a wrong one, or one that two stamps should share.
        determiners: Names that take another word than "a" or "an".
        also_called: What else one may call the thing. Questions tell no two things apart that meet here.
        groups: The coarse kind of the stamps below a path; the first path that fits counts.
        counted_groups: Groups that questions count, with their plural.
        backgrounds: Photographs to paste on, by activity, and what each shows.
        real: Photographs of one named animal each.
    """

    excluded: dict[str, str]
    included: dict[str, str]
    renamed: dict[str, str]
    determiners: dict[str, str]
    also_called: dict[str, tuple[str, ...]]
    groups: dict[str, str]
    counted_groups: dict[str, str]
    backgrounds: dict[str, dict[str, str]]
    real: dict[str, dict[str, str]]


CURATION = Curation(
    excluded={
        "food/pizza.png": "drawing",
        "household/key.png": "black and white line art",
        "household/tools/wrench_adjustable.png": "line drawing",
        "vehicles/flight/balloon360.png": "painting",
        "vehicles/ship/chineseJunk.png": "drawing",
        "animals/mammals/wildboar.png": "two animals in one cut-out",
        "plants/flowers/appooppanthady.png": "tiny seed head, nothing a person would name",
        "plants/flowers/flower7.png": "several flowers in one cut-out, no name",
        "plants/flowers/yellow-flower.png": "no name: other stamps are yellow flowers too",
        "animals/birds/albino_peahen.png": "half of the cut-out is grass",
    },
    included={
        "animals/fish/stripedfish.png": "photograph with few colours",
        "animals/insects/fly.png": "photograph with few colours",
        "animals/lizards/iguana.png": "photograph with few colours",
        "animals/mammals/bovines/yak.png": "photograph with few colours",
        "food/fruit/lemon.png": "photograph with few colours",
        "household/rubberduck.png": "photograph with few colours",
        "household/tools/mallet_metal.png": "photograph with few colours",
        "household/tools/paintbrush_large.png": "photograph with few colours",
        "plants/flowers/bolsom.png": "photograph with few colours",
        "plants/flowers/flower10.png": "photograph with few colours",
        "plants/flowers/rose.png": "photograph with few colours",
        "sports/tennis_racket.png": "photograph with few colours",
        "medical/mercurythermometer.png": "photograph in another folder",
        "medical/stethoscope.png": "photograph in another folder",
        "medical/syringe.png": "photograph in another folder",
        "people/fireman200b.png": "photograph in another folder",
        "people/fireman240a.png": "photograph in another folder",
        "people/toys/grannysmith.png": "photograph in another folder",
        "space/moon/moon_full.png": "photograph in another folder",
        "space/spacewalk.png": "photograph in another folder",
        "space/voyager2.png": "photograph in another folder",
        "town/monuments/inukshuk-photo.png": "photograph in another folder",
        "town/uk_post_box.png": "photograph in another folder",
        "town/usps_mailbox.png": "photograph in another folder",
    },
    renamed={
        "animals/birds/drake.png": "duck",
        "animals/birds/gander.png": "goose",
        "animals/birds/helmeted_guineafowl.png": "guinea fowl",
        "animals/birds/peacock.png": "peacock",
        "animals/birds/rooster.png": "rooster",
        "animals/birds/silver-gull.png": "seagull",
        "animals/fish/bluegroper.png": "blue groper",
        "animals/fish/lionfish.png": "lionfish",
        "animals/fish/lobster.png": "spiny lobster",
        "animals/insects/hoverfly.png": "hoverfly",
        "animals/insects/xanthia.png": "moth",
        "animals/mammals/bears/european-bear.png": "bear",
        "animals/mammals/bears/toys/edward_bear.png": "teddy bear",
        "animals/mammals/bovines/gnu-baby-stand.png": "gnu",
        "animals/mammals/bovines/gnu-baby.png": "gnu",
        "animals/mammals/bovines/gnu-sitting.png": "gnu",
        "animals/mammals/bovines/gnu-stand.png": "gnu",
        "animals/mammals/bovines/mountaingoat.png": "chamois",
        "animals/mammals/bovines/sheep_lamb.png": "lamb",
        "animals/mammals/cats/tiger_sumatran.png": "tiger",
        "animals/mammals/rabbit_little.png": "rabbit",
        "animals/mammals/rhino_black.png": "black rhino",
        "animals/mammals/rodents/capybara.png": "capybara",
        "animals/mammals/rodents/rabbit-2.png": "rabbit",
        "food/fruit/Cherry_Stella.png": "cherries",
        "food/fruit/avocado.png": "avocado",
        "food/fruit/cherimoya.png": "cherimoya",
        "food/fruit/grapes.png": "grapes",
        "food/fruit/orange_seville.png": "seville orange",
        "food/spices/ginger.png": "ginger",
        "food/vegetables/broccoli.png": "broccoli",
        "food/vegetables/corn.png": "corn",
        "hobbies/binoculars.png": "binoculars",
        "household/Lightbulb.png": "light bulb",
        "household/dishes/pitcher_small.png": "pitcher",
        "household/garbagecan.png": "garbage can",
        "household/home_compost_bin.png": "compost bin",
        "household/toilet.png": "toilet",
        "household/tools/mallet_metal.png": "mallet",
        "household/tools/measuring_tape.png": "measuring tape",
        "household/tools/paintbrush_large.png": "paintbrush",
        "household/tools/plyers.png": "pliers",
        "household/tools/wrench_plumbers.png": "pipe wrench",
        "household/wheelie_bin.png": "wheelie bin",
        "medical/mercurythermometer.png": "thermometer",
        "medical/stethoscope.png": "stethoscope",
        "people/toys/grannysmith.png": "rag doll",
        "plants/eggplant.png": "eggplant plant",
        "plants/flowers/adeenia.png": "desert rose",
        "plants/flowers/anemone_red.png": "red anemone",
        "plants/flowers/bolsom.png": "balsam",
        "plants/flowers/flower10.png": "hibiscus",
        "plants/flowers/whitestar-petunia.png": "petunia",
        "plants/lavender.png": "lavender",
        "plants/mushrooms/cep-1.png": "mushroom",
        "plants/mushrooms/cep-2.png": "mushroom",
        "plants/mushrooms/cep.png": "mushroom",
        "plants/thyme.png": "thyme",
        "plants/trees/holly_leaves.png": "holly",
        "plants/trees/pinecone.png": "pine cone",
        "plants/trees/rambutan.png": "rambutan",
        "space/moon/moon_full.png": "full moon",
        "space/spacewalk.png": "astronaut",
        "space/voyager2.png": "space probe",
        "sports/australian_rules_football.png": "australian football",
        "town/monuments/inukshuk-photo.png": "inukshuk",
        "town/uk_post_box.png": "post box",
        "vehicles/auto/sedan.png": "sedan",
        "vehicles/construction/dumper.png": "dumper",
    },
    determiners={
        "binoculars": "a pair of",
        "broccoli": "some",
        "cherries": "a pair of",
        "corn": "an ear of",
        "ginger": "some",
        "grapes": "a bunch of",
        "holly": "some",
        "lavender": "some",
        "pliers": "a pair of",
        "thyme": "some",
    },
    also_called={
        "american football": ("ball",),
        "anthurium": ("flower",),
        "astronaut": ("person",),
        "australian football": ("ball",),
        "balsam": ("flower",),
        "basketball": ("ball",),
        "brown hen": ("chicken",),
        "bull": ("cow",),
        "camel": ("dromedary",),
        "caribou": ("deer",),
        "cello": ("violin",),
        "compost bin": ("bin",),
        "cow": ("bull",),
        "crow": ("blackbird",),
        "daffodil": ("flower",),
        "desert rose": ("flower",),
        "doe": ("deer",),
        "donkey": ("horse",),
        "eggplant plant": ("eggplant",),
        "electric bass guitar": ("electric guitar",),
        "fire truck": ("truck",),
        "fireman": ("person",),
        "garbage can": ("bin",),
        "goat": ("chamois",),
        "goose": ("duck",),
        "hammer": ("mallet",),
        "hibiscus": ("flower",),
        "hornet": ("fly",),
        "hoverfly": ("fly",),
        "iris": ("flower",),
        "lamb": ("sheep",),
        "mailbox": ("post box",),
        "mandarin orange": ("orange",),
        "marigold": ("flower",),
        "mouse": ("rat",),
        "petunia": ("flower",),
        "pickup truck": ("car",),
        "race car": ("car",),
        "ram": ("sheep",),
        "red anemone": ("flower",),
        "red gazania": ("flower",),
        "rhea": ("ostrich",),
        "rooster": ("chicken",),
        "rose": ("flower",),
        "rubber duck": ("duck",),
        "sedan": ("car",),
        "sports car": ("car",),
        "vw beetle": ("car",),
        "wapiti": ("deer",),
        "wheelie bin": ("bin",),
        "zebu": ("cow",),
    },
    groups={
        "animals/mammals/bears/toys": "object",
        "animals": "animal",
        "food": "food",
        "hobbies/music": "musical instrument",
        "plants/mushrooms": "food",
        "plants": "plant",
        "vehicles/wheel_tractor.png": "object",
        "vehicles": "vehicle",
        "household/tools/cementmixer.png": "object",
        "household/tools/toolbox.png": "object",
        "household/tools": "tool",
    },
    counted_groups={
        "animal": "animals",
        "musical instrument": "musical instruments",
        "vehicle": "vehicles",
    },
    # Not used, of the same activities:
    #   explore_monuments/germany/aulaPalatina.webp: parked cars
    #   explore_monuments/germany/brandenburgGate.webp: a chariot with horses
    #   explore_monuments/india/gatewayofIndia.webp: a palm tree, people
    #   explore_monuments/india/mysorePalace.webp: an animal statue, people
    #   explore_monuments/usa/cabrillo.webp: too narrow for a square crop
    #   explore_monuments/usa/castleClinton.webp: black and white, a crowd of people
    #   explore_monuments/usa/georgeWashingtonBirthplace.webp: the frame of a slide is in the image
    #   explore_monuments/wonders/colosseum.webp: cars
    #   clickgame/sea6.webp: an animal
    backgrounds={
        "explore_monuments": {
            "egypt/bentPyramid.webp": "a pyramid",
            "egypt/greatPyramidOfGiza.webp": "a pyramid",
            "egypt/meidumPyramid.webp": "a pyramid",
            "egypt/redPyramid.webp": "a pyramid",
            "france/arlesAmphitheater.webp": "an amphitheatre",
            "france/chateaudeChambord.webp": "a castle",
            "france/chateaudeChenonceau.webp": "a castle",
            "france/citedeCarcassonne.webp": "a castle",
            "france/eiffelTower.webp": "a tower",
            "france/montStMichel.webp": "an abbey",
            "france/palaisdesPapes.webp": "a palace",
            "france/pontduGard.webp": "a bridge",
            "france/reimsCathedral.webp": "a cathedral",
            "france/rocamadour.webp": "a village",
            "germany/berlinCathedral.webp": "a cathedral",
            "germany/neuschwansteinCastle.webp": "a castle",
            "germany/schwerinPalace.webp": "a palace",
            "germany/trierImperialBaths.webp": "a ruin",
            "germany/wormsCathedral.webp": "a cathedral",
            "india/ajantaCave.webp": "a hillside",
            "india/charminar.webp": "a monument",
            "india/goldenTemple.webp": "a temple",
            "india/greatStupa.webp": "a temple",
            "india/hawaMahal.webp": "a palace",
            "india/konarkSunTemple.webp": "a temple",
            "india/qutubMinar.webp": "a tower",
            "india/rangGhar.webp": "a monument",
            "india/victoriaMemorial.webp": "a palace",
            "usa/canyondeChelly.webp": "a canyon",
            "usa/castillodeSanMarcos.webp": "a fort",
            "usa/fortSumter.webp": "a fort",
            "usa/lincolnMemorial.webp": "a monument",
            "usa/mountRushmore.webp": "a mountain",
            "usa/navajo.webp": "a cliff",
            "usa/statueofLiberty.webp": "a statue",
            "wonders/chichenItza.webp": "a pyramid",
            "wonders/christTheRedeemer.webp": "a city",
            "wonders/greatWallofChina.webp": "a wall",
            "wonders/machuPicchu.webp": "a mountain",
            "wonders/petra.webp": "a temple",
            "wonders/tajMahal.webp": "a monument",
        },
        "details": {
            "image/EgeskovSlotSpejling_background.webp": "a castle",
            "image/EilanDonanCastle_background.webp": "a castle",
            "image/GizahPyramids_background.webp": "a pyramid",
            "image/Nagoya_background.webp": "a castle",
            "image/OperaSidney_background.webp": "an opera house",
        },
        "clickgame": {
            "sea1.webp": "the sea floor",
            "sea2.webp": "the sea floor",
            "sea3.webp": "a reef",
            "sea4.webp": "the sea floor",
            "sea5.webp": "an underwater cave",
        },
    },
    real={
        "erase": {
            "horse.webp": "horse",
            "toucan.webp": "toucan",
            "goat.webp": "goat",
            "gorilla.webp": "gorilla",
        },
        "explore_farm_animals": {
            "animals/cow.webp": "cow",
            "animals/dog.webp": "dog",
            "animals/duck.webp": "duck",
            "animals/pig.webp": "pig",
            "animals/sheep.webp": "sheep",
        },
        "explore_world_animals": {
            "animals/bison.webp": "bison",
            "animals/kangaroo.webp": "kangaroo",
            "animals/koala.webp": "koala",
        },
    },
)
