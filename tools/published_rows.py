"""The published figures of GLIP whose weights exist: what each needs, and how near a result has to come.

One row is one evaluation. A figure decides between pass and fail if it was measured with the file that the row names,
and its ``margin`` says how near is near enough and why. Figures of other weights have none: those of the papers are
often the best checkpoint of a training on that very test set (GLIP, App. C.2), or of models that were trained on web
data which nobody else has. They are shown beside the result. No GLIPv2 weights were ever published, so there are no
rows of GLIPv2; what its paper says of GLIP is here.

Sources, by their short names:

    README          the model zoo of github.com/microsoft/GLIP
    GLIP, GLIPv2    tables of arXiv 2112.03857 and 2206.05836
    official code   rows that configs/glip/README.md of mmdetection marks as official and that no paper has: we read
                    them as runs of the official code with the released files
    port            the other rows there: mmdetection's own code with the released files

The two columns for ODinW are of the validation splits: all sets of configs/odinw/*.py of mmdetection are "valid", and
both columns agree set by set. GLIP and GLIPv2 report the test splits (GLIPv2, Table 2; issue 2 of
github.com/Computer-Vision-in-the-Wild/DataDownload: the task files, which say "val", were changed to "test" for it).
"""

from __future__ import annotations

from typing import NamedTuple

from glipv2_d2.data.datasets.odinw import ODINW_SETS

# The official repository links to files of a storage account that is closed; its authors put the same files here.
HUB = "https://huggingface.co/GLIPModel/GLIP/resolve/main/"


class KnownFile(NamedTuple):
    """A file as it was published; None: no such value is known.

    Attributes:
        path: Below the folder of weights or the folder of all datasets.
        address: Where to get it.
        size: In bytes.
        sha256: In hexadecimal digits.
    """

    path: str
    address: str
    size: int | None = None
    sha256: str | None = None


class Margin(NamedTuple):
    """How many points a result may lie away from a figure, and why so many."""

    points: float
    reason: str


class Figure(NamedTuple):
    """A published number.

    Attributes:
        data: A dataset, or the title of a suite in result_table.json, whose mean it is.
        metric: Task and metric.
        value: In percent.
        source: Who says so.
        margin: None: it was measured with other weights.
    """

    data: str
    metric: str
    value: float
    source: str
    margin: Margin | None = None


class Model(NamedTuple):
    """A config with the released file that fits."""

    config: str
    file: KnownFile


class Suite(NamedTuple):
    """A protocol.

    Attributes:
        config: Its DATASETS.TEST is evaluated.
        options: What is set beside it.
        is_of_val: The validation splits of its sets take the place of the test splits.
    """

    config: str
    options: tuple[str, ...] = ()
    is_of_val: bool = False


# The sums and sizes are those that the pages of the files at HUB show; the page of glip_large_model_lvisbest.pth was
# not at hand, and most pages round the size.
def _model(config: str, name: str, sha256: str | None, size: int | None = None) -> Model:
    return Model(f"configs/glip/{config}.yaml", KnownFile(name, HUB + name, size, sha256))


_T_BYTES, _L_BYTES = 3_710_104_213, 6_896_153_761
MODELS = {
    "glip_t_a": _model(
        "glip_swin_t_a", "glip_a_tiny_o365.pth", "e81b13b86be3457f3c6e9ff659cd5f281d2120e980b62be83b23afa0f2f671f6"
    ),
    "glip_t_b": _model(
        "glip_swin_t_b", "glip_tiny_model_o365.pth", "a9ee881a09b72722c4649f71e7bb2bad714beb33b21b4f0068888b8d0beb46b1"
    ),
    "glip_t_c": _model(
        "glip_swin_t_c",
        "glip_tiny_model_o365_goldg.pth",
        "4274770c817b966621097df306c5ae857a2bdf3dfc242afc402382d9604382d3",
        _T_BYTES,
    ),
    "glip_t_c_lvisbest": _model(
        "glip_swin_t_c",
        "glip_tiny_model_o365_goldg_lvisbest.pth",
        "46ba3e67659141661986346838450d077f6653964f4ea3b9baadf28cedebc179",
    ),
    "glip_t": _model(
        "glip_swin_t_c",
        "glip_tiny_model_o365_goldg_cc_sbu.pth",
        "3bec0a3dea804fcb278d7106c5438de5116ee888e49dfae46270e7ad7bc4ccbf",
        _T_BYTES,
    ),
    "glip_t_lvisbest": _model(
        "glip_swin_t_c",
        "glip_tiny_model_o365_goldg_cc_sbu_lvisbest.pth",
        "246ea2b91b9b3e20c1478a6cc6e0831ae1c4f75502cf885225a99caa2e8b996a",
        _T_BYTES,
    ),
    "glip_l": _model(
        "glip_swin_l",
        "glip_large_model.pth",
        "dcb0178264b3193901a11560aa7f31b05821a5bf15225eeb0eeebbedaaa27791",
        _L_BYTES,
    ),
    "glip_l_lvisbest": _model("glip_swin_l", "glip_large_model_lvisbest.pth", None),
}

_ODINW_13 = "configs/zero_shot/odinw13.yaml"
SUITES = {
    "coco": Suite("configs/zero_shot/coco.yaml"),
    "lvis_minival": Suite("configs/zero_shot/lvis_minival.yaml"),
    "flickr30k": Suite("configs/zero_shot/flickr30k.yaml"),
    # With the texts of the official files of ODinW-35, and without them as in those of ODinW-13.
    "odinw13": Suite(_ODINW_13),
    "odinw13_val": Suite(_ODINW_13, is_of_val=True),
    "odinw13_val_names": Suite(_ODINW_13, ("INPUT.PROMPT.DATASET_TEXTS", "False"), is_of_val=True),
}

# What is known of the annotations. That of COCO is the member of annotations_trainval2017.zip, whose MD5 is
# f4bbac642086de4f52a3fdda2de5fa2c; many repositories give the sum of the member.
DATA_FILES = {
    one.path: one
    for one in (
        KnownFile(
            "coco/annotations/instances_val2017.json",
            "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            19_987_840,
            "e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f",
        ),
        KnownFile(
            "lvis/lvis_v1_minival_inserted_image_name.json",
            f"{HUB}lvis_v1_minival_inserted_image_name.json",
            None,
            "02301f6ccd89d1ee3d35112cb57d000c3396f34e4073066c90b2c1fbf47b55ce",
        ),
    )
}
# Where the rest comes from, by the first folder below that of all datasets.
ADDRESSES = {
    "coco": "images: http://images.cocodataset.org/zips/val2017.zip",
    "lvis": f"{HUB}lvis_v1_minival_inserted_image_name.json",
    "flickr30k": "https://github.com/BryanPlummer/flickr30k_entities, which says how to get the images; "
    "datasets/README.md says how one folder of images serves all splits",
    "odinw": f"{HUB}odinw_35/SET.zip, unpacked in the folder odinw",
}


def address_of(dataset: str) -> str:
    """Return where the files of a dataset come from."""
    folder = next(one for one in ADDRESSES if dataset.startswith(one))
    known = [one.address for one in DATA_FILES.values() if folder == "coco" and one.path.startswith("coco")]
    text = ", ".join([*known, ADDRESSES[folder]])
    if folder == "odinw":
        # An archive has the name of the folder in it, which may hold several sets: EgoHands.
        key = dataset.removeprefix("odinw_").rpartition("_")[0]
        text = text.replace("SET", ODINW_SETS[key].folder.split("/")[0])
    return text


# How many images the splits have (LVIS minival: the split of this name in tensorflow.org/datasets/catalog/lvis;
# Flickr30K: its release; ODinW: GLIP, Table 9, and GLIPv2, Table 7).
NUM_IMAGES = {
    "coco_2017_val": 5000,
    "lvis_v1_minival": 4809,
    "flickr30k_val": 1000,
    "flickr30k_test": 1000,
    "odinw_PascalVOC_test": 3422,
    "odinw_AerialMaritimeDrone_large_test": 7,
    "odinw_Aquarium_test": 63,
    "odinw_CottontailRabbits_test": 10,
    "odinw_EgoHands_generic_test": 480,
    "odinw_NorthAmericaMushrooms_test": 5,
    "odinw_Packages_test": 3,
    "odinw_Raccoon_test": 17,
    "odinw_ShellfishOpenImages_test": 58,
    "odinw_VehiclesOpenImages_test": 126,
    "odinw_pistols_test": 297,
    "odinw_pothole_test": 67,
    "odinw_thermalDogsAndPeople_test": 20,
    "odinw_PascalVOC_val": 3422,
    "odinw_AerialMaritimeDrone_large_val": 15,
    "odinw_Aquarium_val": 127,
    "odinw_CottontailRabbits_val": 19,
    "odinw_EgoHands_generic_val": 480,
    "odinw_NorthAmericaMushrooms_val": 5,
    "odinw_Packages_val": 4,
    "odinw_Raccoon_val": 29,
    "odinw_ShellfishOpenImages_val": 116,
    "odinw_VehiclesOpenImages_val": 250,
    "odinw_pistols_val": 297,
    "odinw_pothole_val": 133,
    "odinw_thermalDogsAndPeople_val": 41,
}

_COCO = Margin(0.3, "one decimal is published, and the port of the same files lies up to 0.2 away")
_LVIS = Margin(0.3, "runs of the official code with one file lie 0.1 apart in APr")
_LVIS_RARE = Margin(0.5, "rare categories have few boxes in minival, so that one detection moves their mean")
_LVIS_PORT = Margin(
    2.0,
    "only the port was measured; its AP lies 0.6 above the official code's with GLIP-T (C), and 1.8 below with GLIP-L",
)
_FLICKR = Margin(0.3, "one decimal is published, and the port lies up to 0.1 away")
_ODINW = Margin(0.5, "the port lies up to 0.2 away, and sets of 4 to 29 images weigh as much as large ones")
_ODINW_README = Margin(1.0, "the README says neither which prompts nor which checkpoint its figure is of")


def _coco(value: float, source: str = "README", margin: Margin | None = _COCO) -> Figure:
    return Figure("coco_2017_val", "bbox/AP", value, source, margin)


def _lvis(source: str, margin: Margin | None, **values: float) -> tuple[Figure, ...]:
    """Return Fixed AP on minival; that of rare categories has a wider margin."""

    def own_margin(metric: str) -> Margin | None:
        return _LVIS_RARE if margin is _LVIS and metric == "APr" else margin

    return tuple(
        Figure("lvis_v1_minival", f"bbox_fixed/{metric}", value, source, own_margin(metric))
        for metric, value in values.items()
    )


def _flickr(split: str, source: str, margin: Margin | None, *recalls: float) -> tuple[Figure, ...]:
    """Return R@1, R@5 and R@10 by the any-box protocol, or as many as are published."""
    return tuple(
        Figure(f"flickr30k_{split}", f"any_box/R@{k}", value, source, margin) for k, value in zip((1, 5, 10), recalls)
    )


def _odinw(value: float, source: str, margin: Margin | None = None, split: str = "test") -> Figure:
    return Figure(f"odinw13 {split}", "bbox/AP", value, source, margin)


# Means of the 13 sets of ODinW-13 in the table of ODinW-35, where prompts have the texts. The official task file of
# EgoHands would take a part of its validation split, mini_val; mmdetection takes all of it, and the two columns lie at
# most 0.2 apart there.
_OF_35 = "official code, 13 rows of its ODinW-35"
_CAP4M = "GLIPv2, Table 2: trained with Cap4M"
_CAP24M = "GLIP, trained with Cap24M"

# Row, MODEL/SUITE: its figures. The first ones decide.
ROWS: dict[str, tuple[Figure, ...]] = {
    "glip_t_a/coco": (_coco(42.9),),
    "glip_t_b/coco": (_coco(44.9),),
    "glip_t_c/coco": (_coco(46.7),),
    "glip_t/coco": (_coco(46.6), _coco(46.6, "GLIPv2, Table 2", None), _coco(46.3, "GLIP, Table 2: Cap4M", None)),
    "glip_l/coco": (_coco(51.4), _coco(49.8, f"{_CAP24M}, Table 2", None)),
    "glip_t_a/lvis_minival": (
        *_lvis("port", _LVIS_PORT, AP=20.2, APr=12.1),
        *_lvis("GLIP, Table 3: best checkpoint", None, AP=18.5, APr=14.2),
    ),
    "glip_t_b/lvis_minival": (
        *_lvis("port", _LVIS_PORT, AP=19.3, APr=8.6),
        *_lvis("GLIP, Table 3: best checkpoint", None, AP=17.8, APr=13.5),
    ),
    "glip_t_c/lvis_minival": (
        *_lvis("README", _LVIS, APr=14.3),
        *_lvis("official code", _LVIS, AP=24.6, APc=19.4, APf=31.1),
    ),
    "glip_t_c_lvisbest/lvis_minival": (
        *_lvis("README", _LVIS, APr=17.7),
        *_lvis("GLIP, Table 3", _LVIS, AP=24.9, APc=19.5, APf=31.0),
    ),
    "glip_t/lvis_minival": (*_lvis("README", _LVIS, APr=17.6), *_lvis("port", _LVIS_PORT, AP=26.7)),
    "glip_t_lvisbest/lvis_minival": (
        *_lvis("README", _LVIS, APr=20.1),
        *_lvis("GLIP, Table 6", _LVIS, AP=25.9, APc=21.3, APf=31.1),
        *_lvis(_CAP4M, None, AP=26.0),
    ),
    "glip_l/lvis_minival": (
        *_lvis("README", _LVIS, APr=29.3),
        *_lvis("official code", _LVIS, AP=37.9, APc=34.9, APf=42.1),
        *_lvis(f"{_CAP24M}, Table 3", None, AP=37.3, APr=28.2),
    ),
    "glip_l_lvisbest/lvis_minival": (
        *_lvis("README", _LVIS, APr=30.1),
        *_lvis(f"{_CAP24M}, Table 3", None, AP=37.3, APr=28.2),
    ),
    "glip_t_a/flickr30k": _flickr("val", "GLIP, Table 8: best checkpoint", None, 46.4, 63.2, 66.9),
    "glip_t_b/flickr30k": _flickr("val", "GLIP, Table 8: best checkpoint", None, 41.4, 57.7, 61.0),
    "glip_t_c/flickr30k": (
        *_flickr("val", "GLIP, Table 4", _FLICKR, 84.8, 94.9, 96.3),
        *_flickr("test", "GLIP, Table 4", _FLICKR, 85.5, 95.4, 96.6),
    ),
    "glip_t/flickr30k": (
        *_flickr("val", "port", _FLICKR, 85.3, 95.5, 96.9),
        *_flickr("test", "port", _FLICKR, 86.0, 95.9, 97.2),
        *_flickr("val", "GLIP, Table 6: best checkpoint", None, 85.3, 95.7, 97.2),
        *_flickr("test", _CAP4M, None, 85.7),
    ),
    "glip_l/flickr30k": (
        *_flickr("val", f"{_CAP24M}, Table 4", None, 86.7, 96.4, 97.9),
        *_flickr("test", f"{_CAP24M}, Table 4", None, 87.1, 96.9, 98.1),
    ),
    "glip_t_a/odinw13": (_odinw(28.7, "README: best checkpoint, texts for two sets"),),
    "glip_t_b/odinw13": (_odinw(33.2, "README: best checkpoint, texts for two sets"),),
    "glip_t_c/odinw13": (_odinw(44.4, "README: best checkpoint"),),
    "glip_t/odinw13": (_odinw(42.7, "README", _ODINW_README), _odinw(46.5, _CAP4M)),
    "glip_l/odinw13": (_odinw(51.2, "README", _ODINW_README), _odinw(52.1, f"{_CAP24M}, Table 14")),
    "glip_t_a/odinw13_val": (_odinw(32.4, _OF_35, _ODINW, "val"),),
    "glip_t_b/odinw13_val": (_odinw(33.9, _OF_35, _ODINW, "val"),),
    "glip_t_c/odinw13_val": (_odinw(42.6, _OF_35, _ODINW, "val"),),
    "glip_t_a/odinw13_val_names": (_odinw(32.4, "official code", _ODINW, "val"),),
    "glip_t_b/odinw13_val_names": (_odinw(31.8, "official code", _ODINW, "val"),),
    "glip_t_c/odinw13_val_names": (_odinw(39.2, "official code", _ODINW, "val"),),
}
