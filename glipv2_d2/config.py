"""Configuration keys that the package adds to detectron2's, with their defaults: those of GLIPv2-T.

Longer than 450 lines: one list of all keys.
"""

from detectron2.config import CfgNode as CN


def add_glipv2_config(cfg: CN) -> None:
    """Add the keys of GLIPv2 to a config made by ``detectron2.config.get_cfg``.

    Source of the defaults: the released GLIP-T configuration, which GLIPv2-T shares (GLIPv2 paper, App. D.1).
    """
    # "cuda", "cuda:NUMBER", "cpu", or "auto": the GPU where one can be used, otherwise the CPU.
    cfg.MODEL.DEVICE = "auto"
    _add_backbone(cfg)
    _add_text_encoder(cfg)
    _add_tower(cfg)
    _add_detector(cfg)
    _add_pretraining(cfg)
    _add_mask_head(cfg)
    _add_tuning(cfg)
    _add_understanding(cfg)
    _add_data(cfg)
    _add_datasets(cfg)
    _add_solver(cfg)


def _add_backbone(cfg: CN) -> None:
    # detectron2's MODEL.BACKBONE.FREEZE_AT freezes the first stages of every backbone: 0 none, 1 the stem (of Swin the
    # patch embedding), 2 the first stage too, and so on. A timm model counts feature maps: 1 freezes the first.

    # Probability of DropBlock on the merged maps of P3 and P4 during training; 0 switches it off.
    cfg.MODEL.FPN.DROP_BLOCK_PROB = 0.3

    # build_glipv2_swin_fpn_backbone: detectron2's SwinTransformer under its FPN.
    cfg.MODEL.SWIN = CN()
    # Channels of the first stage, blocks and attention heads of each stage, and the side of a window in positions.
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
    # What timm calls the model.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Weights file (safetensors, or a .pth that holds tensors only); package://PACKAGE/FILE is a file of an installed
    # package. Empty: random weights, which MODEL.WEIGHTS fills.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Feature indices of timm that feed the FPN; their strides must be 8, 16, 32.
    cfg.MODEL.TIMM.OUT_INDICES = [2, 3, 4]
    # Batch normalization uses its stored statistics and does not train.
    cfg.MODEL.TIMM.FREEZE_NORM = True


def _add_text_encoder(cfg: CN) -> None:
    cfg.MODEL.TEXT_ENCODER = CN()
    # Name in TEXT_ENCODER_REGISTRY: "BertTextEncoder" or "CLIPTextEncoder".
    cfg.MODEL.TEXT_ENCODER.NAME = "BertTextEncoder"
    # Directory, package://PACKAGE/DIRECTORY or hub name of such an encoder, or of CLIPTextEncoder a file of tensors.
    # Empty: the encoder has the sizes below, and MODEL.WEIGHTS fills it.
    cfg.MODEL.TEXT_ENCODER.WEIGHTS = ""
    # Directory, package://PACKAGE/DIRECTORY or hub name of a fast tokenizer. Empty: the uncased WordPiece vocabulary of
    # BERT, which the package holds.
    cfg.MODEL.TEXT_ENCODER.TOKENIZER = ""
    # Hub names are looked up in the local cache only, unless this is True.
    cfg.MODEL.TEXT_ENCODER.ALLOW_DOWNLOAD = False
    # Longest prompt in tokens, special tokens included.
    cfg.MODEL.TEXT_ENCODER.MAX_TOKENS = 256
    # Sizes where WEIGHTS is empty. CLIPTextEncoder always reads MAX_POSITIONS, and NUM_HEADS for a file of tensors too.
    # Defaults: bert-base-uncased.
    cfg.MODEL.TEXT_ENCODER.VOCAB_SIZE = 30522
    cfg.MODEL.TEXT_ENCODER.HIDDEN_SIZE = 768
    cfg.MODEL.TEXT_ENCODER.NUM_LAYERS = 12
    cfg.MODEL.TEXT_ENCODER.NUM_HEADS = 12
    cfg.MODEL.TEXT_ENCODER.INTERMEDIATE_SIZE = 3072
    cfg.MODEL.TEXT_ENCODER.MAX_POSITIONS = 512
    # Dropout of the encoder and of the text layers in the fusion tower. CLIPTextEncoder has no dropout; there it is the
    # largest rate of stochastic depth.
    cfg.MODEL.TEXT_ENCODER.DROPOUT = 0.1
    # The encoder stays fixed, in eval mode and out of the optimizer.
    cfg.MODEL.TEXT_ENCODER.FREEZE = False
    # Recompute activations in the backward pass.
    cfg.MODEL.TEXT_ENCODER.USE_CHECKPOINT = False


def _add_tower(cfg: CN) -> None:
    cfg.MODEL.GLIPV2 = CN()
    # Levels of the pyramid that the tower reads. "p6" and "p7" are made from P5 where they are listed.
    cfg.MODEL.GLIPV2.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]

    # Blocks of fusion, text layer and DyConv, one after the other.
    cfg.MODEL.GLIPV2.TOWER = CN()
    # How many, and the channels of each level in them.
    cfg.MODEL.GLIPV2.TOWER.NUM_BLOCKS = 6
    cfg.MODEL.GLIPV2.TOWER.CHANNELS = 256
    # DyConv uses modulated deformable convolutions; False: plain 3x3 convolutions.
    cfg.MODEL.GLIPV2.TOWER.DEFORMABLE = True
    # DyConv ends with a ReLU whose slopes depend on the image; False: a plain ReLU.
    cfg.MODEL.GLIPV2.TOWER.DYNAMIC_RELU = True
    # Recompute activations in the backward pass.
    cfg.MODEL.GLIPV2.TOWER.USE_CHECKPOINT = False

    cfg.MODEL.GLIPV2.FUSION = CN()
    # Image and text attend to each other in every block; False: the tower is DyConv alone, and the head reads the text
    # of the encoder, as in GLIP-T (A).
    cfg.MODEL.GLIPV2.FUSION.ENABLED = True
    # Width of the attention over all heads.
    cfg.MODEL.GLIPV2.FUSION.EMBED_DIM = 2048
    cfg.MODEL.GLIPV2.FUSION.NUM_HEADS = 8
    cfg.MODEL.GLIPV2.FUSION.DROPOUT = 0.1
    # Initial value of the learned factors of what the attention adds; 0: 1 / TOWER.NUM_BLOCKS.
    cfg.MODEL.GLIPV2.FUSION.LAYER_SCALE = 0.0
    # Add coordinates to the image features that text attends to, for questions on relations ("left of"). The official
    # models have no such weights: they start from random values and have to be trained.
    cfg.MODEL.GLIPV2.FUSION.POSITIONS = False


def _add_detector(cfg: CN) -> None:
    cfg.MODEL.GLIPV2.MATCHER = CN()
    # Nearest anchors per level that are candidates for a box (ATSS).
    cfg.MODEL.GLIPV2.MATCHER.TOPK = 9

    cfg.MODEL.GLIPV2.GROUNDING = CN()
    # Weight of the alignment loss of regions and words within an image. The weight 0 switches any loss off.
    cfg.MODEL.GLIPV2.GROUNDING.LOSS_WEIGHT = 1.0
    cfg.MODEL.GLIPV2.GROUNDING.FOCAL_ALPHA = 0.25
    cfg.MODEL.GLIPV2.GROUNDING.FOCAL_GAMMA = 2.0
    # Probability of each token at an anchor before any training; it sets the initial bias.
    cfg.MODEL.GLIPV2.GROUNDING.PRIOR_PROB = 0.01
    # Initial log of the temperature that divides the region-token products.
    cfg.MODEL.GLIPV2.GROUNDING.LOG_SCALE = 0.0

    cfg.MODEL.GLIPV2.BOX = CN()
    # Initial value of the learned factor of the box deltas of each level.
    cfg.MODEL.GLIPV2.BOX.LEVEL_SCALE = 1.0
    cfg.MODEL.GLIPV2.BOX.REG_LOSS_WEIGHT = 2.0
    cfg.MODEL.GLIPV2.BOX.CENTERNESS_LOSS_WEIGHT = 1.0

    cfg.MODEL.GLIPV2.TEST = CN()
    # The score of a phrase must exceed this before it is multiplied by the centerness.
    cfg.MODEL.GLIPV2.TEST.SCORE_THRESH = 0.05
    # Best (anchor, phrase) pairs kept per level before non-maximum suppression.
    cfg.MODEL.GLIPV2.TEST.TOPK_CANDIDATES = 1000
    cfg.MODEL.GLIPV2.TEST.NMS_THRESH = 0.6
    # How token probabilities become the score of a phrase: "mean", "max" or "power" (geometric mean).
    cfg.MODEL.GLIPV2.TEST.SCORE_AGGREGATION = "mean"
    # Names per prompt; 0: as many as fit into TEXT_ENCODER.MAX_TOKENS; -1: as the protocol of the dataset says, which
    # is 40 for LVIS and 0 for all others.
    cfg.MODEL.GLIPV2.TEST.PROMPT_CHUNK_SIZE = -1
    # Names of a large vocabulary that are asked for in an image: those that its regions resemble most before fusion, as
    # the contrastive head says (CONTRASTIVE.ENABLED). 0: all names.
    cfg.MODEL.GLIPV2.TEST.SHORTLIST = 0
    # Prompts that run through the tower together, over all images of a batch; memory grows with their number.
    cfg.MODEL.GLIPV2.TEST.PROMPTS_PER_PASS = 8
    # Backend of torch.compile that compiles backbone, tower and head at test time, "inductor" for example; "": not
    # compiled. The first pass of each size of images takes minutes, and sizes after the first eight are not compiled.
    # torch keeps what it has compiled for the next run; TORCHINDUCTOR_CACHE_DIR in the environment says where.
    cfg.MODEL.GLIPV2.TEST.COMPILER = ""
    # Detections kept of each prompt; 0: as many as TEST.DETECTIONS_PER_IMAGE, which limits an image over all of its
    # prompts (0 there: no limit). -1: as the protocol of the dataset says. The official evaluation of LVIS keeps 300 of
    # each prompt and limits no image; for all others it is 0.
    cfg.MODEL.GLIPV2.TEST.DETECTIONS_PER_PROMPT = -1
    # The weights know the names of DATASETS.TEST[0] alone, as after a training on own names without any
    # weights to start from: the predictor warns of others that it is asked for.
    cfg.MODEL.GLIPV2.TEST.ONLY_OWN_NAMES = False

    # Classes of the meta-architecture "DyHead", the same detector without text: as many as its data has categories.
    # 0: as many as there are names in DATASETS.TEST[0], or if nothing is tested in DATASETS.TRAIN[0].
    cfg.MODEL.GLIPV2.CLASS_HEAD = CN()
    cfg.MODEL.GLIPV2.CLASS_HEAD.NUM_CLASSES = 80


def _add_pretraining(cfg: CN) -> None:
    # Inter-image region-word contrast, on the features before fusion (GLIPv2, Eq. 4 and 5).
    cfg.MODEL.GLIPV2.CONTRASTIVE = CN()
    cfg.MODEL.GLIPV2.CONTRASTIVE.ENABLED = False
    cfg.MODEL.GLIPV2.CONTRASTIVE.LOSS_WEIGHT = 1.0
    # Width of the space in which regions and words are compared.
    cfg.MODEL.GLIPV2.CONTRASTIVE.EMBED_DIM = 64
    # Initial log of the learned temperature that divides the cosines: log(0.07), the usual start of contrastive
    # learning; the official helper starts at 0.
    cfg.MODEL.GLIPV2.CONTRASTIVE.LOG_SCALE = -2.66
    # Positive anchors of an image that take part; where it has more, they are chosen at random.
    cfg.MODEL.GLIPV2.CONTRASTIVE.MAX_REGIONS_PER_IMAGE = 100

    # Masked language modelling on the fused text.
    cfg.MODEL.GLIPV2.MLM = CN()
    cfg.MODEL.GLIPV2.MLM.ENABLED = False
    cfg.MODEL.GLIPV2.MLM.LOSS_WEIGHT = 1.0
    # Probability that a token is masked.
    cfg.MODEL.GLIPV2.MLM.MASK_PROB = 0.15
    # In detection data only the masked tokens of names with a box count; False: all masked tokens. In sentences all
    # masked tokens count, but for those of other images' captions.
    cfg.MODEL.GLIPV2.MLM.ONLY_POSITIVES = True
    # In a prompt of several captions the masked tokens of other images' captions count too, as in the official code.
    # They are most of the prompt, and the image says nothing about them.
    cfg.MODEL.GLIPV2.MLM.OTHER_CAPTIONS = False

    # Predict the centre of a phrase's box from the fused text, in every batch with boxes. The paper has no such loss;
    # with FUSION.POSITIONS it lets the text learn where things lie in a short training.
    cfg.MODEL.GLIPV2.PHRASE_CENTER = CN()
    cfg.MODEL.GLIPV2.PHRASE_CENTER.ENABLED = False
    cfg.MODEL.GLIPV2.PHRASE_CENTER.LOSS_WEIGHT = 1.0

    # Regions are named by the classes of a frozen image classifier too, whose names are words: a layer learns to say
    # them, and at test time they count beside the alignment, most of all for names that training has not seen. The text
    # encoder must be frozen. Source: F-VLM (arXiv 2209.15639) and ConSE (arXiv 1312.5650); the paper has no such part.
    cfg.MODEL.GLIPV2.CLASS_WORDS = CN()
    cfg.MODEL.GLIPV2.CLASS_WORDS.ENABLED = False
    # A classifier of timm with the 1,000 classes of ImageNet and stride 32, and a file of its weights, read as those of
    # MODEL.TIMM.WEIGHTS are. Empty: random weights, which MODEL.WEIGHTS fills.
    cfg.MODEL.GLIPV2.CLASS_WORDS.NAME = "tf_efficientnet_lite0"
    cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHTS = ""
    # Side of the image that the classifier reads, over that of the network's input. At test time it is resized from the
    # original pixels; in training from the network's.
    cfg.MODEL.GLIPV2.CLASS_WORDS.IMAGE_SCALE = 1.0
    # Divides the logits of classes, and how many of the likeliest classes count.
    cfg.MODEL.GLIPV2.CLASS_WORDS.TEMPERATURE = 1.5
    cfg.MODEL.GLIPV2.CLASS_WORDS.CLASSES_KEPT = 30
    # Divides the cosines of classes and names.
    cfg.MODEL.GLIPV2.CLASS_WORDS.WORD_TEMPERATURE = 0.06
    # Boxes of an image and a prompt that are given evidence, no two on one object.
    cfg.MODEL.GLIPV2.CLASS_WORDS.MAX_BOXES = 20
    # What the logits of a name's tokens get of the evidence for the name at test time: names that training has not seen
    # with a box, and those that it has.
    cfg.MODEL.GLIPV2.CLASS_WORDS.WEIGHT = 0.25
    cfg.MODEL.GLIPV2.CLASS_WORDS.TAUGHT_WEIGHT = 0.25
    cfg.MODEL.GLIPV2.CLASS_WORDS.LOSS_WEIGHT = 1.0


def _add_mask_head(cfg: CN) -> None:
    # The language-guided mask head, which MODEL.MASK_ON adds to the model.
    cfg.MODEL.GLIPV2.MASK_HEAD = CN()
    # Features that regions are pooled from: "fpn", the pyramid before fusion, or "fused", the levels of the tower.
    cfg.MODEL.GLIPV2.MASK_HEAD.FEATURES = "fpn"
    # Halvings of the resolution inside an hourglass, and hourglasses in a row, as in GLIPv2-T and B (GLIPv2, App. D.1).
    cfg.MODEL.GLIPV2.MASK_HEAD.HOURGLASS_DEPTH = 1
    cfg.MODEL.GLIPV2.MASK_HEAD.NUM_HOURGLASSES = 1
    cfg.MODEL.GLIPV2.MASK_HEAD.CONV_DIM = 256
    # Cells along a side of a pooled region; its mask has twice as many pixels along a side.
    cfg.MODEL.GLIPV2.MASK_HEAD.POOLER_RESOLUTION = 14
    # Predicted boxes of an image that train the head besides the annotated ones.
    cfg.MODEL.GLIPV2.MASK_HEAD.MAX_PROPOSALS = 100
    cfg.MODEL.GLIPV2.MASK_HEAD.LOSS_WEIGHT = 1.0
    # A pixel belongs to the mask from this probability on.
    cfg.MODEL.GLIPV2.TEST.MASK_THRESH = 0.5
    # A detection is part of what a phrase refers to from this score on; where no detection reaches it, the best one is.
    cfg.MODEL.GLIPV2.TEST.REFERRING_THRESH = 0.5
    # Read the captions of a test, as those of flickr30k_test, as a captioning model was trained to: a word sees only
    # the words before it, and the image does not read the text (grounded captioning of the paper, Table 9).
    cfg.MODEL.GLIPV2.TEST.CAUSAL_CAPTIONS = False

    # Test-time augmentation (TEST.AUG.ENABLED; the starred rows of the paper): each image at all MIN_SIZES, with FLIP
    # also mirrored. Sizes are those of the official code.
    cfg.TEST.AUG.MIN_SIZES = (400, 500, 600, 640, 700, 900, 1000, 1100, 1200, 1300, 1400, 1800)
    cfg.TEST.AUG.MAX_SIZE = 2500
    # "vote" or "nms" over the detections of all versions, and the IoU of both.
    cfg.TEST.AUG.MERGE = "vote"
    cfg.TEST.AUG.NMS_THRESH = 0.6
    # For each size the least and the most square root of a box's area, in pixels of the original image; (): all count.
    cfg.TEST.AUG.SIZE_RANGES = ()
    # Width and height of the boxes that LVIS's evaluation gets: "official" writes them one pixel smaller than the boxes
    # are, as the official GLIP does, whose published figures are measured so; "exact" as they are.
    cfg.TEST.LVIS_BOXES = "official"
    # Protocols of LVIS: "standard" rates the best 300 detections of an image, "fixed" the best 10,000 of a class.
    cfg.TEST.LVIS_PROTOCOLS = ("standard", "fixed")
    # What computes AP of COCO and LVIS: "auto" is hotcoco, where it is installed; "reference" is pycocotools and lvis.
    # Their numbers are the same, and take many times longer.
    cfg.TEST.EVALUATION_ENGINE = "auto"


def _add_tuning(cfg: CN) -> None:
    cfg.MODEL.GLIPV2.TUNING = CN()
    # The part that trains; everything else is fixed, in eval mode and out of the optimizer.
    #   "full": everything that no other key freezes
    #   "mask_head": the second stage of GLIPv2, App. D.1
    #   "linear_probe": the last layers of the detector
    #   "prompt": a table that is added to the text before fusion (GLIPv2, Sec. 3.3)
    #   "text_encoder"
    #   "lora": low-rank updates
    cfg.MODEL.GLIPV2.TUNING.MODE = "full"
    # Mode "prompt": tables, one for each prompt of the names; 31 for LVIS, whose names are cut.
    cfg.MODEL.GLIPV2.TUNING.NUM_PROMPTS = 1
    # Masked words and the contrast between images train in every MODE, if MLM.ENABLED and CONTRASTIVE.ENABLED say so.
    # False: with "full" only. Tuning sees the prompt that the test has, and configs of a pre-training can be tuned.
    cfg.MODEL.GLIPV2.TUNING.PRETRAINING_LOSSES = False
    # The mask head trains too, in every MODE.
    cfg.MODEL.GLIPV2.TUNING.MASK_HEAD = False
    # File that such a training wrote (tuned.safetensors); it is applied over MODEL.WEIGHTS and needs its own MODE.
    cfg.MODEL.GLIPV2.TUNING.WEIGHTS = ""
    # File of weights that MODEL.WEIGHTS are interpolated with when they are loaded (empty: none), and the share of
    # MODEL.WEIGHTS in the result, 0 to 1.
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATE_WITH = ""
    cfg.MODEL.GLIPV2.TUNING.INTERPOLATION = 1.0
    # Share of CLASS_WORDS.TAUGHT_WEIGHT that counts after a tuning, 0 to 1; what answers for other names (KEEP) has all
    # of it. Below 0: all of it, and "glipv2 train" chooses 0 or 1 on validation images at the end.
    cfg.MODEL.GLIPV2.TUNING.CLASS_WORDS_SHARE = -1.0
    # In MODE "lora" the linear and convolution weights of PARTS get updates of rank RANK, times ALPHA / RANK.
    cfg.MODEL.GLIPV2.TUNING.LORA = CN()
    cfg.MODEL.GLIPV2.TUNING.LORA.RANK = 8
    cfg.MODEL.GLIPV2.TUNING.LORA.ALPHA = 16.0
    cfg.MODEL.GLIPV2.TUNING.LORA.PARTS = ("fusion_tower", "backbone")
    cfg.MODEL.GLIPV2.TUNING.KEEP = CN()
    # Forget nothing, see docs/tuning.md.
    cfg.MODEL.GLIPV2.TUNING.KEEP.ENABLED = False
    # The tuned weights answer for the names of DATASETS.TRAIN, the first ones for all others, both in one model. False:
    # one set of weights for all names, see the keys below.
    cfg.MODEL.GLIPV2.TUNING.KEEP.BY_NAME = True
    # Short side and limit of the long side of the test images that the first weights see, and side of what their
    # CLASS_WORDS classifier reads over that of these; (): as the tuned weights. Not with TEST.AUG.
    cfg.MODEL.GLIPV2.TUNING.KEEP.SIZE_TEST = ()
    cfg.MODEL.GLIPV2.TUNING.KEEP.IMAGE_SCALE = 1.0
    # One set of weights: the model that the training starts from says what it sees of other names on the training
    # images, and the tuned model keeps saying so. At the end weights between both are chosen.
    # Text file with one of the other names, or another phrase, on each line, or a registered dataset that has them; "":
    # the names of LVIS. Those that the training data have are left out.
    cfg.MODEL.GLIPV2.TUNING.KEEP.NAMES = ""
    # Share of the training images whose prompt has other names in place of absent own ones, and the number of these.
    cfg.MODEL.GLIPV2.TUNING.KEEP.IMAGES = 0.25
    cfg.MODEL.GLIPV2.TUNING.KEEP.NUM_NAMES = 20
    # Factors of loss_keep_names and loss_keep_boxes; with 0 and 0 the training is as without KEEP.
    cfg.MODEL.GLIPV2.TUNING.KEEP.NAMES_WEIGHT = 4.0
    cfg.MODEL.GLIPV2.TUNING.KEEP.BOXES_WEIGHT = 3.0
    # The final weights lie as close to the first ones as the own names allow: SOLVER.AUTO_STEP.METRIC keeps at least
    # this share of its best value on DATASETS.TEST. 0: the final weights are those of the training.
    cfg.MODEL.GLIPV2.TUNING.KEEP.LEAST_OWN = 0.98


def _add_understanding(cfg: CN) -> None:
    # Visual question answering: classification over a list of answers (GLIPv2, App. D.2).
    cfg.MODEL.GLIPV2.VQA = CN()
    cfg.MODEL.GLIPV2.VQA.ENABLED = False
    cfg.MODEL.GLIPV2.VQA.LOSS_WEIGHT = 1.0
    # File with the answers in the order of the classes: a json list, text with one answer a line, or a json object with
    # the frequency of each answer.
    cfg.MODEL.GLIPV2.VQA.ANSWERS = ""
    # Width of the classifier; 0: twice the width of the text.
    cfg.MODEL.GLIPV2.VQA.HIDDEN_SIZE = 0
    # Normalization between each layer of the classifier and its GELU: "" for none (the paper), or "LN", which a short
    # training needs.
    cfg.MODEL.GLIPV2.VQA.NORM = ""
    # Image features attend to the question. False: only the text attends to the image, as for captions, and the image
    # passes the tower once for all of its questions.
    cfg.MODEL.GLIPV2.VQA.IMAGE_READS_QUESTION = True
    # Also find the objects that question and answer name. The question then ends with a mask token for the answer.
    cfg.MODEL.GLIPV2.VQA.GROUNDED = False

    # Captioning by next-word prediction (GLIPv2, App. D.2).
    cfg.MODEL.GLIPV2.CAPTIONING = CN()
    cfg.MODEL.GLIPV2.CAPTIONING.ENABLED = False
    cfg.MODEL.GLIPV2.CAPTIONING.LOSS_WEIGHT = 1.0
    # Share of the target probability that is spread evenly over the vocabulary.
    cfg.MODEL.GLIPV2.CAPTIONING.LABEL_SMOOTHING = 0.0
    # Also find the objects that the caption names.
    cfg.MODEL.GLIPV2.CAPTIONING.GROUNDED = False
    # Beginnings of captions that the beam search keeps; 1: the likeliest word at every step.
    cfg.MODEL.GLIPV2.CAPTIONING.BEAM_SIZE = 5
    # Longest and shortest caption, in tokens without start and end.
    cfg.MODEL.GLIPV2.CAPTIONING.MAX_LENGTH = 40
    cfg.MODEL.GLIPV2.CAPTIONING.MIN_LENGTH = 1
    # The score of a caption is its log probability divided by its length to this power.
    cfg.MODEL.GLIPV2.CAPTIONING.LENGTH_PENALTY = 1.0
    # No sequence of this many tokens occurs twice in a caption; 0: no limit.
    cfg.MODEL.GLIPV2.CAPTIONING.NO_REPEAT_NGRAM = 3


def _add_data(cfg: CN) -> None:
    # Questions about an image that train together, chosen anew each time; where it has fewer, all of them. The image
    # features are computed once for all of them. SOLVER.IMS_PER_BATCH counts images.
    cfg.INPUT.QUESTIONS_PER_IMAGE = 1

    # Least and greatest zoom of training images over the scale that test images have; the network sees a window with at
    # least one box, at most MIN_SIZE_TRAIN (its last number) by MAX_SIZE_TRAIN. Empty: whole images of MIN_SIZE_TRAIN.
    cfg.INPUT.ZOOM = ()
    # Brightness, contrast and saturation of training images change by factors between 1 - this and 1 + this.
    cfg.INPUT.COLOR_JITTER = 0.0
    # Training images in JPEG are decoded at a half, a quarter or an eighth of their size where that is not smaller than
    # what the network is shown: many times faster for large photographs, with slightly other pixels than without. Tests
    # never are. No effect with INPUT.CROP.
    cfg.INPUT.REDUCED_DECODING = False

    cfg.INPUT.PROMPT = CN()
    # Text between two names of a detection prompt.
    cfg.INPUT.PROMPT.SEPARATOR = ". "
    # Datasets may have other texts for their names, as six sets of ODinW do; False: names as the annotations have them.
    # In the official code USE_OVERRIDE_CATEGORY and USE_CAPTION_PROMPT do the same.
    cfg.INPUT.PROMPT.DATASET_TEXTS = True
    # Names drawn as negatives for a training prompt; -1: every prompt holds all names of the dataset.
    cfg.INPUT.PROMPT.NUM_NEGATIVES = 85
    # Probability that all NUM_NEGATIVES are drawn; otherwise their number is uniform from 1 to NUM_NEGATIVES.
    cfg.INPUT.PROMPT.FULL_NEGATIVES_PROB = 0.5
    # Names that NUM_NEGATIVES counts: "drawn", all names drawn as negatives, of which positive ones are dropped again
    # (official code), or "total", all names of the prompt (GLIP paper).
    cfg.INPUT.PROMPT.NEGATIVE_SAMPLING = "drawn"
    # Probability that a negative is a sibling, a name of the same parent (COCO's "supercategory") as a name in the
    # image, as long as there are any left, so that prompts ask "crow or magpie?"; 0: all names are drawn alike. No
    # effect where prompts hold all names, or the data have no parents.
    cfg.INPUT.PROMPT.SIBLING_NEGATIVES = 0.0
    # The order of the names is random in training.
    cfg.INPUT.PROMPT.SHUFFLE = True
    # Swap "left" and "right" in the caption of an image that is flipped; the official code leaves them as they are.
    cfg.INPUT.PROMPT.FLIP_WORDS = True
    # Caption data: captions of other images in a prompt, as negatives. With NO_NEGATIVE_CAPTIONS_PROB there is none;
    # otherwise all NUM_NEGATIVE_CAPTIONS with FULL_NEGATIVE_CAPTIONS_PROB, else a uniform number of fewer.
    cfg.INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS = 20
    cfg.INPUT.PROMPT.NO_NEGATIVE_CAPTIONS_PROB = 0.4
    cfg.INPUT.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB = 0.5
    # Caption data: pseudo boxes below this score are left out.
    cfg.INPUT.PROMPT.MIN_PSEUDO_SCORE = 0.5

    # Results of the evaluations, higher is better, each of whose best value keeps its weights: the name that an
    # evaluator gives to a result, "bbox/AP"; with several datasets in DATASETS.TEST the name of one and a slash stand
    # before it. The weights are model_best_NAME.pth, with "_" for what is neither letter nor digit in the name.
    cfg.TEST.BEST_METRICS = ()


def _add_datasets(cfg: CN) -> None:
    # Folders and files of own images and boxes, see docs/own_data.md. Each is registered as NAME_train, NAME_val and
    # NAME_test, with the name of its folder, and its COCO json is written to OUTPUT_DIR/datasets.
    cfg.DATASETS.REGISTER = ()
    # Of such a set without images that validate a fifth of those to train on become these. False: sets stay as they
    # are, and one without any splits is NAME_test.
    cfg.DATASETS.DIVIDE = True
    # Weight of each dataset of DATASETS.TRAIN, in its order: training images are drawn in proportion to these numbers.
    # Empty: in proportion to the sizes of the datasets.
    cfg.DATASETS.TRAIN_RATIOS = ()
    # How often each dataset of DATASETS.TRAIN counts, as if its files were listed so often: images are drawn in
    # proportion to sizes times copies. Empty: once, and every image exactly once in an epoch, which takes 16 bytes of
    # memory for each sample of a shard. Not together with TRAIN_RATIOS.
    cfg.DATASETS.TRAIN_COPIES = ()
    # Faulty annotations and images of a file are left out and listed in OUTPUT_DIR/data_report.json. More than this
    # share of them, and more than ten, end the run; 0: any fault does.
    cfg.DATASETS.MAX_FAULTY_SHARE = 0.02
    # Files of data may name images outside their image folder, a TSV yaml other folders, and shards may be commands
    # ("pipe:COMMAND"), which are run. Only for files that one wrote or read oneself.
    cfg.DATASETS.ALLOW_OUTSIDE_FILES = False
    # Few-shot training: this many images of each category are taken from the training data, which must be detection
    # data only; 0: all images.
    cfg.DATASETS.FEW_SHOT = CN()
    cfg.DATASETS.FEW_SHOT.SHOTS = 0
    # Seed of the order in which images are chosen; 0: by ascending id. 3, 30 and 300 give the prepared splits of ODinW.
    cfg.DATASETS.FEW_SHOT.SEED = 3
    # A category with fewer images gives all it has; False: it is an error.
    cfg.DATASETS.FEW_SHOT.ALLOW_FEWER = False
    # Encoded samples of a streamed dataset that each worker of each process keeps in memory to draw the next one from;
    # for a moment it holds twice as many.
    cfg.DATALOADER.SHUFFLE_BUFFER = 1000

    # Training stops when at least three files, and more than this share of all images, cannot be read; each file counts
    # once. For data in shards, the share is that of the images drawn so far.
    cfg.DATALOADER.MAX_SKIPPED_SHARE = 0.01


def _add_solver(cfg: CN) -> None:
    # Learning rates relative to BASE_LR: of the text encoder, of the backbone below its pyramid, of the table of prompt
    # tuning, and of the heads that a plain detector lacks, those for questions, captions and phrase centres.
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 0.1
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.PROMPT_MULTIPLIER = 1.0
    cfg.SOLVER.HEAD_MULTIPLIER = 1.0
    # "float16" (with loss scaling) or "bfloat16", when SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Batches whose gradients are averaged for one update. IMS_PER_BATCH is the size of one of them.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Several processes: each holds a part of all weights, gradients and optimizer states (FSDP2 of torch), which come
    # together where they are needed, instead of all of them. For models that do not fit otherwise.
    cfg.SOLVER.SHARD_WEIGHTS = False
    # Decay of the exponential moving average of the weights, which is evaluated and saved; 0 switches it off.
    cfg.SOLVER.EMA_DECAY = 0.0
    # The decay grows from 0.1 to EMA_DECAY over about 9 / (1 - EMA_DECAY) updates, for runs of a few hundred updates.
    cfg.SOLVER.EMA_WARMUP = False
    # After its warm-up the learning rate is constant; it drops by FACTOR when METRIC has not become better in more than
    # PATIENCE evaluations in a row (TEST.EVAL_PERIOD). SOLVER.LR_SCHEDULER_NAME and SOLVER.STEPS are then not used.
    cfg.SOLVER.AUTO_STEP = CN()
    cfg.SOLVER.AUTO_STEP.ENABLED = False
    cfg.SOLVER.AUTO_STEP.PATIENCE = 3
    cfg.SOLVER.AUTO_STEP.FACTOR = 0.1
    # Lowest learning rate.
    cfg.SOLVER.AUTO_STEP.MIN_LR = 1e-6
    # Name that an evaluator gives to a result, higher is better; with several datasets in DATASETS.TEST, the name of
    # one and a slash stand before it. model_best.pth holds the weights with the highest value.
    cfg.SOLVER.AUTO_STEP.METRIC = "bbox/AP"
    # Training ends after this many evaluations in a row without a better METRIC; 0: it never ends early.
    cfg.SOLVER.EARLY_STOP_PATIENCE = 0
    # Newest numbered checkpoints that are kept; 0: all.
    cfg.SOLVER.MAX_CHECKPOINTS = 0
    # Training goes on while a checkpoint is written. It is copied before, so the first process needs the memory of the
    # file; where that is too much, False. Before an evaluation, at a signal and at the end the file is waited for.
    cfg.SOLVER.SAVE_IN_BACKGROUND = True
    # Updates with a non-finite loss are skipped; training stops after this many in a row.
    cfg.SOLVER.MAX_NONFINITE_STEPS = 10
