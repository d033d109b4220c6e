"""Configuration keys of data and training that the package adds to detectron2's, with their defaults."""

from detectron2.config import CfgNode as CN


def add_data_config(cfg: CN) -> None:
    """Add the keys of ``INPUT``, ``DATASETS`` and ``DATALOADER``."""
    # Every image is black, in training and at test time: what a model reaches that knows the text alone.
    cfg.INPUT.BLANK_IMAGES = False
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


def add_solver_config(cfg: CN) -> None:
    """Add the keys of ``SOLVER``."""
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
