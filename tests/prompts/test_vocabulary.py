"""Names of registered datasets."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.errors import InputError
from glipv2_d2.prompts.user_prompts import UserPrompts
from glipv2_d2.prompts.vocabulary import build_default_prompts, dataset_names, only_names


@pytest.fixture
def register():
    def add(name, names=None, names_on_load=None):
        def load():
            if names_on_load is not None:
                MetadataCatalog.get(name).thing_classes = names_on_load
            return []

        DatasetCatalog.register(name, load)
        if names is not None:
            MetadataCatalog.get(name).thing_classes = names

    return add


def test_names_come_from_the_metadata(register):
    register("vocabulary_known", names=("cat", "dog"), names_on_load=["never"])
    assert dataset_names("vocabulary_known") == ["cat", "dog"]


def test_names_are_loaded_where_the_metadata_lack_them(register):
    register("vocabulary_late", names_on_load=["cat", "bus"])
    assert dataset_names("vocabulary_late") == ["cat", "bus"]


def test_names_of_detectron2_datasets_need_no_files():
    assert dataset_names("coco_2017_val")[:2] == ["person", "bicycle"]


def test_unknown_dataset_is_refused_and_leaves_no_metadata():
    with pytest.raises(ValueError, match="'vocabulary_absent' is not registered"):
        dataset_names("vocabulary_absent")
    assert "vocabulary_absent" not in MetadataCatalog.list()


@pytest.mark.parametrize("names", [None, []])
def test_dataset_without_names_is_refused(register, names):
    register("vocabulary_empty", names_on_load=names)
    with pytest.raises(ValueError, match="dataset 'vocabulary_empty': expected thing_classes"):
        dataset_names("vocabulary_empty")


def test_default_prompts_ask_for_the_first_test_dataset(register, tiny_cfg):
    register("vocabulary_default", names=["cat", "hair drier", "dog"])
    tiny_cfg.DATASETS.TEST = ("vocabulary_default", "coco_2017_val")
    tiny_cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE = 2
    tiny_cfg.INPUT.PROMPT.SEPARATOR = " "
    prompts = build_default_prompts(tiny_cfg)
    assert [prompt.phrases for prompt in prompts] == [("cat", "hair drier"), ("dog",)]
    assert [prompt.category_ids.tolist() for prompt in prompts] == [[0, 1], [2]]
    assert len(prompts[0]) == 6  # [CLS] cat hair dr ##ier [SEP]


def test_default_prompts_say_what_the_metadata_tell_them_to(register, tiny_cfg):
    register("vocabulary_texts", names=["CoW", "cat"])
    MetadataCatalog.get("vocabulary_texts").prompt_texts = {"CoW": ("a ", "flat mushroom", "")}
    tiny_cfg.DATASETS.TEST = ("vocabulary_texts",)
    (prompt,) = build_default_prompts(tiny_cfg)
    assert prompt.phrases == ("flat mushroom", "cat") and prompt.category_ids.tolist() == [0, 1]
    assert not prompt.phrase_token_map[0, 1] and prompt.phrase_token_map[0, 2]


@pytest.mark.parametrize("alone", [True, False])
def test_a_model_of_own_names_alone_warns_once_of_others(register, tiny_cfg, caplog, alone):
    register("vocabulary_own", names=["Réd_car", "RBC"])
    MetadataCatalog.get("vocabulary_own").prompt_texts = {"RBC": ("a ", "blood cell", "")}
    tiny_cfg.DATASETS.TEST = ("vocabulary_own",)
    tiny_cfg.MODEL.GLIPV2.TEST.ONLY_OWN_NAMES = alone
    prompts = UserPrompts.from_config(tiny_cfg)
    for asked in (["red car", "blood cell", "a blood cell"], ["re\u0301d car"], None, "a dog beside a red car"):
        prompts(asked)
    assert not caplog.records
    for _ in range(2):
        prompts(["dog", "red car", "RBC"])
        prompts("dog . red car . RBC")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == alone
    for line in lines:
        assert line.startswith("names: expected those that the model was trained on, 'réd car', 'blood cell'")
        assert "found 'dog', 'RBC'; " in line and "--keep" in line


def test_names_that_are_not_known_here_give_no_warning(tiny_cfg):
    tiny_cfg.MODEL.GLIPV2.TEST.ONLY_OWN_NAMES = True
    for datasets in ((), ("vocabulary_nowhere",)):
        tiny_cfg.DATASETS.TEST = datasets
        assert only_names(tiny_cfg) == []


def test_a_user_is_asked_for_names_where_those_of_the_test_dataset_are_not_here(tiny_cfg):
    def load():
        raise FileNotFoundError("val.json does not exist")

    DatasetCatalog.register("vocabulary_gone", load)
    tiny_cfg.DATASETS.TEST = ("vocabulary_gone",)
    with pytest.raises(InputError, match=r"names: expected some, since .* found none \(val.json does not exist\)"):
        UserPrompts.from_config(tiny_cfg)(None)


def test_default_prompts_need_a_test_dataset(tiny_cfg):
    tiny_cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match="DATASETS.TEST: expected a dataset"):
        build_default_prompts(tiny_cfg)


def test_bad_names_are_reported_with_their_dataset(register, tiny_cfg):
    register("vocabulary_twice", names=["cat", "cat"])
    tiny_cfg.DATASETS.TEST = ("vocabulary_twice",)
    with pytest.raises(ValueError, match="dataset 'vocabulary_twice': names: rows 0 and 1 are both 'cat'"):
        build_default_prompts(tiny_cfg)
