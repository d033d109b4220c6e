"""A head of class words whose classifier sees colours, images for it, and a small model with it."""

import torch
import torch.nn.functional as F
from prompt_samples import make_prompt
from torch import nn

from glipv2_d2.modeling import build_model
from glipv2_d2.modeling.heads.class_words_head import ClassWordsHead


class ColourClassifier(nn.Module):
    """Its three classes are the colours of a cell of 32 pixels."""

    def forward_features(self, images):
        return F.avg_pool2d(images, 32)

    def get_classifier(self):
        return nn.Identity()


def make_head(language_dim=5, channels=6, **options):
    torch.manual_seed(0)
    texts = [make_prompt([4]), make_prompt([5, 6]), make_prompt([7])]
    return ClassWordsHead(
        classifier=ColourClassifier(), texts=texts, channels=channels, language_dim=language_dim, **options
    )


def model_with_class_words(cfg):
    """A model that finds something, with the head above."""
    cfg.merge_from_list(["MODEL.GLIPV2.TEST.SCORE_THRESH", 0.0, "MODEL.GLIPV2.GROUNDING.PRIOR_PROB", 0.3])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    head = make_head(language_dim=48, channels=32, weight=0.7, kept=2)
    head.read_classes(model.text_encoder)
    model.class_words_head = head.eval()
    return model


def make_image(seed=0, size=(64, 96)):
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
