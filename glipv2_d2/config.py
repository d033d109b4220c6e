"""Configuration keys that the package adds to detectron2's, with their defaults: those of GLIPv2-T."""

from detectron2.config import CfgNode as CN


def add_glipv2_config(cfg: CN) -> None:
    """Add the keys of GLIPv2 to a config made by ``detectron2.config.get_cfg``.

    Source of the defaults: the released GLIP-T configuration, which GLIPv2-T shares (GLIPv2 paper, App. D.1).
    """
    _add_backbone(cfg)
    _add_text_encoder(cfg)
    _add_tower(cfg)
    _add_detector(cfg)
    _add_pretraining(cfg)
    _add_mask_head(cfg)
    _add_tuning(cfg)
    _add_understanding(cfg)
    _add_data(cfg)
    _add_solver(cfg)


def _add_backbone(cfg: CN) -> None:
    # Probability of DropBlock on the merged maps of P3 and P4 during training; 0 switches it off.
    cfg.MODEL.FPN.DROP_BLOCK_PROB = 0.3

    # build_glipv2_swin_fpn_backbone: detectron2's SwinTransformer under its FPN.
    cfg.MODEL.SWIN = CN()
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    # Largest stochastic depth rate; it grows linearly from 0 over the blocks.
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.2
    # Stages that feed the FPN, 0..3.
    cfg.MODEL.SWIN.OUT_INDICES = [1, 2, 3]
    # Recompute activations in the backward pass.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False

    # build_timm_fpn_backbone: any timm model that offers features_only, under the same FPN.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Weights file (safetensors, or a tensors-only .pth); package://PACKAGE/FILE reads it from an installed package;
    # empty: random, to be filled by MODEL.WEIGHTS.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Feature indices of timm that feed the FPN; their strides must be 8, 16, 32.
    cfg.MODEL.TIMM.OUT_INDICES = [2, 3, 4]
    # Batch normalization uses its stored statistics and does not train.
    cfg.MODEL.TIMM.FREEZE_NORM = True


def _add_text_encoder(cfg: CN) -> None:
    cfg.MODEL.TEXT_ENCODER = CN()
    # Name in TEXT_ENCODER_REGISTRY.
    cfg.MODEL.TEXT_ENCODER.NAME = "BertTextEncoder"
    # Directory, package://PACKAGE/DIRECTORY or hub name of an encoder of the type above, for CLIPTextEncoder also a
    # file of tensors; empty: built from the sizes below and filled by MODEL.WEIGHTS.
    cfg.MODEL.TEXT_ENCODER.WEIGHTS = ""
    # Directory, package://PACKAGE/DIRECTORY or hub name of a fast tokenizer; empty: the packaged uncased WordPiece
    # vocabulary of BERT.
    cfg.MODEL.TEXT_ENCODER.TOKENIZER = ""
    # Hub names are looked up in the local cache only, unless this is True.
    cfg.MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD = False
    # Longest prompt in tokens, special tokens included.
    cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 256
    # Sizes, used when WEIGHTS is empty (CLIPTextEncoder: MAX_POSITIONS always, NUM_HEADS for a file of tensors).
    # Defaults: bert-base-uncased.
    cfg.MODEL.TEXT_ENCODER.VOCAB_SIZE = 30522
    cfg.MODEL.TEXT_ENCODER.HIDDEN_SIZE = 768
    cfg.MODEL.TEXT_ENCODER.NUM_LAYERS = 12
    cfg.MODEL.TEXT_ENCODER.NUM_HEADS = 12
    cfg.MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE = 3072
    cfg.MODEL.TEXT_ENCODER.MAX_POSITIONS = 512
    # Dropout of the encoder and of the text layers in the fusion tower; of CLIPTextEncoder, which has none, the largest
    # rate of its stochastic depth.
    cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.1
    # Keep the encoder fixed, in eval mode and out of the optimizer.
    cfg.MODEL.TEXT_ENCODER.FREEZE = False
    cfg.MODEL.TEXT_ENCODER.USE_CHECKPOINT = False


def _add_tower(cfg: CN) -> None:
    cfg.MODEL.GLIPV2 = CN()
    # Levels of the pyramid that the tower reads; "p6" and "p7" are made on top of P5 when they are listed.
    cfg.MODEL.GLIPV2.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    cfg.MODEL.GLIPV2.TOWER = CN()
    cfg.MODEL.GLIPV2.TOWER.NUM_BLOCKS = 6
    cfg.MODEL.GLIPV2.TOWER.CHANNELS = 256
    # Modulated deformable convolutions in DyConv; False: plain 3x3.
    cfg.MODEL.GLIPV2.TOWER.DEFORMABLE = True
    cfg.MODEL.GLIPV2.TOWER.DYNAMIC_RELU = True
    cfg.MODEL.GLIPV2.TOWER.USE_CHECKPOINT = False

    cfg.MODEL.GLIPV2.FUSION = CN()
    # False: GLIP-T (A), a tower of DyConv only; the head then reads the encoder's text.
    cfg.MODEL.GLIPV2.FUSION.ENABLED = True
    # Width of the attention over all heads.
    cfg.MODEL.GLIPV2.FUSION.EMBED_DIM = 2048
    cfg.MODEL.GLIPV2.FUSION.NUM_HEADS = 8
    cfg.MODEL.GLIPV2.FUSION.DROPOUT = 0.1
    # Initial value of the residual scales; 0 means 1 / TOWER.NUM_BLOCKS.
    cfg.MODEL.GLIPV2.FUSION.LAYER_SCALE = 0.0
    # What attends to the image also reads where its positions lie, for questions on relations ("left of"); the official
    # models have no such weights, and over theirs it has to be trained.
    cfg.MODEL.GLIPV2.FUSION.POSITIONS = False


def _add_detector(cfg: CN) -> None:
    cfg.MODEL.GLIPV2.MATCHER = CN()
    # Nearest anchors per level that are candidates for a box (ATSS).
    cfg.MODEL.GLIPV2.MATCHER.TOPK = 9

    cfg.MODEL.GLIPV2.GROUNDING = CN()
    # Of the alignment of regions and words within an image. Every loss is switched off by the weight 0.
    cfg.MODEL.GLIPV2.GROUNDING.LOSS_WEIGHT = 1.0
    cfg.MODEL.GLIPV2.GROUNDING.FOCAL_ALPHA = 0.25
    cfg.MODEL.GLIPV2.GROUNDING.FOCAL_GAMMA = 2.0
    # Probability that an untrained anchor gives to a token; sets the initial bias.
    cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.01
    # Initial log of the temperature that divides the region-token products.
    cfg.MODEL.GLIPV2.GROUNDING.LOG_SCALE = 0.0

    cfg.MODEL.GLIPV2.BOX = CN()
    # Initial value of the learned factor of the box deltas of each level.
    cfg.MODEL.GLIPV2.BOX.LEVEL_SCALE = 1.0
    cfg.MODEL.GLIPV2.BOX.REG_LOSS_WEIGHT = 2.0
    cfg.MODEL.GLIPV2.BOX.CENTERNESS_LOSS_WEIGHT = 1.0

    cfg.MODEL.GLIPV2.TEST = CN()
    # A phrase score must pass this before it is multiplied by the centerness.
    cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.05
    # Best (anchor, phrase) pairs kept per level before non-maximum suppression.
    cfg.MODEL.GLIPV2.TEST.TOPK_CANDIDATES = 1000
    cfg.MODEL.GLIPV2.TEST.NMS_THRESH = 0.6
    # How token probabilities become the score of a phrase: "mean", "max" or "power" (geometric mean).
    cfg.MODEL.GLIPV2.TEST.SCORE_AGGREGATION = "mean"
    # Names per prompt; 0: as many as fit into TEXT_ENCODER.MAX_TOKENS.
    cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE = 0
    # Prompts, over all images of a batch, that run through the tower together: memory grows with them.
    cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS = 8
    # Detections kept of each prompt; 0: as many as TEST.DETECTIONS_PER_IMAGE, which limits an image over all of its
    # prompts (0 there: no limit). The official evaluation of LVIS keeps 300 of each prompt and limits no image.
    cfg.MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT = 0

    # Meta-architecture "DyHead", the same detector without text: classes of its data, by their contiguous ids.
    cfg.MODEL.GLIPV2.CLASS_HEAD = CN()
    cfg.MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES = 80


def _add_pretraining(cfg: CN) -> None:
    # Inter-image region-word contrast, on the features before fusion (GLIPv2, Eq. 4 and 5).
    cfg.MODEL.GLIPV2.CONTRASTIVE = CN()
    cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = False
    cfg.MODEL.GLIPV2.CONTRASTIVE.LOSS_WEIGHT = 1.0
    # Width of the space that regions and words are projected into and compared in.
    cfg.MODEL.GLIPV2.CONTRASTIVE.EMBED_DIM = 64
    # Initial log of the learned temperature that divides the cosines: log(0.07), the usual start of contrastive
    # learning; the official helper starts at 0.
    cfg.MODEL.GLIPV2.CONTRASTIVE.LOG_SCALE = -2.66
    # Positive anchors of an image that take part, chosen at random where it has more.
    cfg.MODEL.GLIPV2.CONTRASTIVE.MAX_REGIONS_PER_IMAGE = 100

    # Masked language modelling on the fused text.
    cfg.MODEL.GLIPV2.MLM = CN()
    cfg.MODEL.GLIPV2.MLM.ENABLED = False
    cfg.MODEL.GLIPV2.MLM.LOSS_WEIGHT = 1.0
    # Probability that a token is masked.
    cfg.MODEL.GLIPV2.MLM.MASK_PROB = 0.15
    # Detection data: only masked tokens of names that have a box are scored; False: every masked token. Of sentences
    # every masked token is scored.
    cfg.MODEL.GLIPV2.MLM.ONLY_POSITIVES = True

    # Find the centre of a phrase's box from the fused text, wherever boxes train: not of the paper. With
    # FUSION.POSITIONS the text learns in a short training where things lie.
    cfg.MODEL.GLIPV2.PHRASE_CENTER = CN()
    cfg.MODEL.GLIPV2.PHRASE_CENTER.ENABLED = False
    cfg.MODEL.GLIPV2.PHRASE_CENTER.LOSS_WEIGHT = 1.0


def _add_mask_head(cfg: CN) -> None:
    # The language-guided mask head, which MODEL.MASK_ON adds to the model.
    cfg.MODEL.GLIPV2.MASK_HEAD = CN()
    # What regions are pooled from: "fpn", the pyramid before fusion, or "fused", the levels of the tower.
    cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = "fpn"
    # Halvings of the resolution inside an hourglass, and hourglasses in a row; of T and B (GLIPv2, App. B.2).
    cfg.MODEL.GLIPV2.MASK_HEAD.HOURGLASS_DEPTH = 1
    cfg.MODEL.GLIPV2.MASK_HEAD.NUM_HOURGLASSES = 1
    cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = 256
    # Cells along a side of what is pooled; masks have twice as many pixels.
    cfg.MODEL.GLIPV2.MASK_HEAD.POOLER_RESOLUTION = 14
    # Predicted boxes of an image that train the head, beside the annotated ones.
    cfg.MODEL.GLIPV2.MASK_HEAD.MAX_PROPOSALS = 100
    cfg.MODEL.GLIPV2.MASK_HEAD.LOSS_WEIGHT = 1.0
    # Probability from which on a pixel belongs to the mask.
    cfg.MODEL.GLIPV2.TEST.MASK_THRESH = 0.5
    # Score from which on a detection is part of what a phrase refers to; where none has it, the best alone is.
    cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH = 0.5

    # Protocols of LVIS: "standard", the best 300 detections of an image, and "fixed", the best 10,000 of a class.
    cfg.TEST.LVIS_PROTOCOLS = ("standard", "fixed")


def _add_tuning(cfg: CN) -> None:
    cfg.MODEL.GLIPV2.TUNING = CN()
    # What trains; everything else is fixed, in eval mode and out of the optimizer: "full", everything that no other key
    # freezes, "mask_head" (GLIPv2, App. D.1: the second stage), "linear_probe", the last layers of the detector,
    # "prompt", a table that is added to the text before fusion (GLIPv2, Sec. 3.3), "text_encoder", or "lora".
    cfg.MODEL.GLIPV2.TUNING.MODE = "full"
    # The mask head trains as well, whatever MODE is.
    cfg.MODEL.GLIPV2.TUNING.MASK_HEAD = False
    # File that such a training wrote (tuned.safetensors), applied over MODEL.WEIGHTS; MODE has to be the file's.
    cfg.MODEL.GLIPV2.TUNING.WEIGHTS = ""
    # Weights to interpolate with when weights are loaded, and the share of MODEL.WEIGHTS in the result, 0 to 1; empty:
    # MODEL.WEIGHTS as they are.
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATE_WITH = ""
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATION = 1.0
    # MODE "lora": low-rank updates of the linear and convolution weights in these parts, times ALPHA / RANK.
    cfg.MODEL.GLIPV2.TUNING.LORA = CN()
    cfg.MODEL.GLIPV2.TUNING.LORA.RANK = 8
    cfg.MODEL.GLIPV2.TUNING.LORA.ALPHA = 16.0
    cfg.MODEL.GLIPV2.TUNING.LORA.PARTS = ("fusion_tower", "backbone")


def _add_understanding(cfg: CN) -> None:
    # Visual question answering, as classification over a list of answers (GLIPv2, App. D.2).
    cfg.MODEL.GLIPV2.VQA = CN()
    cfg.MODEL.GLIPV2.VQA.ENABLED = False
    cfg.MODEL.GLIPV2.VQA.LOSS_WEIGHT = 1.0
    # File with the answers, in the order of the classes: a json list or one a line, or json with how frequent each is.
    cfg.MODEL.GLIPV2.VQA.ANSWERS = ""
    # Width of the classifier; 0: twice that of the text.
    cfg.MODEL.GLIPV2.VQA.HIDDEN_SIZE = 0
    # Between its layers and their GELU: "" for nothing (the paper) or "LN", which a short training needs.
    cfg.MODEL.GLIPV2.VQA.NORM = ""
    # False: only the text reads the image, as for captions; the image then passes the tower once for all its questions.
    cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION = True
    # Also find the objects that question and answer name; the question then ends with a mask token for the answer.
    cfg.MODEL.GLIPV2.VQA.GROUNDED = False

    # Captioning by next-word prediction (GLIPv2, App. D.2).
    cfg.MODEL.GLIPV2.CAPTIONING = CN()
    cfg.MODEL.GLIPV2.CAPTIONING.ENABLED = False
    cfg.MODEL.GLIPV2.CAPTIONING.LOSS_WEIGHT = 1.0
    # Share of the target that is spread evenly over the vocabulary.
    cfg.MODEL.GLIPV2.CAPTIONING.LABEL_SMOOTHING = 0.0
    # Also find the objects that the caption names.
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = False
    # Captions that are kept while one is written; 1: the likeliest word at every step.
    cfg.MODEL.GLIPV2.CAPTIONING.BEAM_SIZE = 5
    # Length of a caption in tokens, without start and end.
    cfg.MODEL.GLIPV2.CAPTIONING.MAX_LENGTH = 40
    cfg.MODEL.GLIPV2.CAPTIONING.MIN_LENGTH = 1
    # A caption is rated by its log probability divided by its length to this power.
    cfg.MODEL.GLIPV2.CAPTIONING.LENGTH_PENALTY = 1.0
    # A sequence of so many tokens comes at most once in a caption; 0: no limit.
    cfg.MODEL.GLIPV2.CAPTIONING.NO_REPEAT_NGRAM = 3


def _add_data(cfg: CN) -> None:
    # Questions about an image that train together, chosen anew each time, all of them if it has fewer: its features
    # are computed once for all. SOLVER.IMS_PER_BATCH counts images.
    cfg.INPUT.QUESTIONS_PER_IMAGE = 1

    cfg.INPUT.PROMPT = CN()
    # Between two names of a detection prompt.
    cfg.INPUT.PROMPT.SEPARATOR = ". "
    # Names drawn as negatives for a training prompt; -1: all names of the dataset, every time.
    cfg.INPUT.PROMPT.NUM_NEGATIVES = 85
    # Probability of drawing all NUM_NEGATIVES; otherwise a uniform number from 1 to NUM_NEGATIVES.
    cfg.INPUT.PROMPT.FULL_NEGATIVES_PROB = 0.5
    # What NUM_NEGATIVES counts: "drawn", the names drawn as negatives of which the positive ones are dropped again
    # (official code), or "total", all names of the prompt (GLIP paper).
    cfg.INPUT.PROMPT.NEGATIVE_SAMPLING = "drawn"
    # Order of the names is random in training.
    cfg.INPUT.PROMPT.SHUFFLE = True
    # A horizontal flip of the image swaps "left" and "right" in its caption; the official code leaves them.
    cfg.INPUT.PROMPT.FLIP_WORDS = True
    # Caption data: captions of other images that share the prompt as negatives, the probability of none of them, and
    # otherwise the probability of all; else a uniform number from 0 to one less.
    cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS = 20
    cfg.INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB = 0.4
    cfg.INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 0.5
    # Caption data: pseudo boxes count from this score on.
    cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE = 0.5

    # Share of the training images that come from each dataset of DATASETS.TRAIN, in its order, up to a common factor;
    # empty: by their sizes.
    cfg.DATASETS.TRAIN_RATIOS = ()
    # Images of each category that are taken of the training data, all of which has to be detection data; 0: everything.
    cfg.DATASETS.FEW_SHOT = CN()
    cfg.DATASETS.FEW_SHOT.SHOTS = 0
    # Order in which images are chosen; 0: by ascending id. 3, 30 and 300 are those of the prepared splits of ODinW.
    cfg.DATASETS.FEW_SHOT.SEED = 3
    # Of categories that have fewer images all are taken; False: that is an error.
    cfg.DATASETS.FEW_SHOT.ALLOW_FEWER = False
    # Encoded samples of a streamed dataset that every worker of every process keeps in memory to choose the next one
    # from; for a moment twice as many.
    cfg.DATALOADER.SHUFFLE_BUFFER = 1000

    # Training stops when more than this share of the images drawn so far could not be read.
    cfg.DATALOADER.MAX_SKIPPED_SHARE = 0.01


def _add_solver(cfg: CN) -> None:
    # Learning rates relative to BASE_LR: of the text encoder, of the body of the backbone, of the table of TUNING
    # "prompt", and of the heads of which a plain detector has no weights: for questions, captions and phrase centres.
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 0.1
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.PROMPT_MULTIPLIER = 1.0
    cfg.SOLVER.HEAD_MULTIPLIER = 1.0
    # "float16" (with loss scaling) or "bfloat16", when SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Batches whose gradients are added up before one update. IMS_PER_BATCH is the size of one of them.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Decay of the exponential moving average of the weights, used for evaluation; 0 switches it off.
    cfg.SOLVER.EMA_DECAY = 0.0
    # The learning rate warms up, stays, and drops when METRIC, looked at after every TEST.EVAL_PERIOD updates, has not
    # become better in more than PATIENCE evaluations in a row; it replaces SOLVER.LR_SCHEDULER_NAME and SOLVER.STEPS.
    cfg.SOLVER.AUTO_STEP = CN()
    cfg.SOLVER.AUTO_STEP.ENABLED = False
    cfg.SOLVER.AUTO_STEP.PATIENCE = 3
    cfg.SOLVER.AUTO_STEP.FACTOR = 0.1
    # No rate drops below this one.
    cfg.SOLVER.AUTO_STEP.MIN_LR = 1e-6
    # Evaluator's name for what is watched, higher is better; after the name of the dataset and a slash where there are
    # several in DATASETS.TEST. The weights with the highest value are kept in model_best.pth.
    cfg.SOLVER.AUTO_STEP.METRIC = "bbox/AP"
    # Training ends after so many evaluations in a row without a better METRIC; 0: never early.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # Numbered checkpoints that are kept, the newest; 0: all.
    cfg.SOLVER.MAX_CHECKPOINTS = 0
    # Updates with a non-finite loss are skipped; training stops after this many in a row.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
