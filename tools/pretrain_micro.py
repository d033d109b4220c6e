#!/usr/bin/env python
"""Pre-train the small model with all its losses on all three kinds of data, and measure the gain.

    python tools/pretrain_micro.py                        # more than an hour on two cores
    python tools/pretrain_micro.py --seeds 0 --max-iter 200

1. StampWorld is drawn and halved: one half keeps its boxes, the other only its captions.
2. A teacher is trained on the first half; it labels the captions of the other half (tools/generate_pseudo_boxes.py).
3. Students are trained on both, one for as many updates and one for half as many again, so that it has seen as much of
   the first half: are they better than the teacher, which saw one half alone?
4. For each seed the whole pre-training (configs/pretrain/glipv2_micro.yaml) runs with and without the inter-image
   contrast: does region-to-word retrieval across images get better?
5. The whole pre-training runs twice as long: does the loss of masked language modelling fall below the entropy of
   the masked words, the loss of a model that knows only their frequencies?

Every step is a command that is printed before it runs; a step whose result is there already is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from make_demo import CONSOLE, ROOT, prepare, read_metrics, split_results, train
from rich.table import Table
from tqdm import tqdm

DETECTION_CONFIG = "configs/demo/glipv2_micro.yaml"
PRETRAIN_CONFIG = "configs/pretrain/glipv2_micro.yaml"
HALF = ("stampworld_half", "stampworld_half_grounding")
BOTH = (*HALF, "stampworld_pseudo")
TEST = ("stampworld_val", "stampworld_val_novel")
# Lowest score of a pseudo box. Detectors get it as an option; the pre-training config has it.
MIN_SCORE = "0.4"
# A moving average over about a tenth of the run.
EMA_DECAY = "0.98"
# Updates of the last run, and of the longer student, relative to the other runs.
LONG, LONGER_STUDENT = 2.0, 1.5
# Batches that the frequencies of masked words are counted over.
NUM_COUNTED_BATCHES = 400


class Runs:
    """The steps of the comparison, each a command with its own folder below ``output``."""

    def __init__(self, output: Path, max_iter: int, options: Sequence[str]):
        self.output = output
        self.max_iter = max_iter
        self.options = list(options)
        self.data = output / "datasets" / "stampworld"
        self.environment = {**os.environ, "DETECTRON2_DATASETS": str(self.data.parent)}

    def make_data(self, num_names: int, num_train: int) -> None:
        """Draw the scenes and halve them."""
        sizes = {"--num-names": num_names, "--num-novel": 24, "--num-train": num_train, "--num-val": 100}
        options = [str(word) for pair in sizes.items() for word in pair]
        if prepare("stampworld", ["--output", str(self.data), *options], self.environment) != "stampworld":
            sys.exit("pretrain_micro: StampWorld could not be made, and the comparison is about it")
        self.call(["datasets/prepare_halves.py", str(self.data)])

    def call(self, command: list[str]) -> None:
        """Run a program of this repository; end if it fails."""
        CONSOLE.print(f"[bold]$ {shlex.join(['python', *command])}[/bold]")
        if subprocess.run([sys.executable, *command], env=self.environment, cwd=ROOT).returncode:
            sys.exit(f"pretrain_micro: this step failed: {shlex.join(command)}")

    def train(
        self, name: str, config: str, datasets: Sequence[str], seed: int, *options: str, length: float = 1.0
    ) -> Path:
        """Train a model for ``length`` times the updates, evaluate it on held-out scenes, and return its folder."""
        max_iter = round(length * self.max_iter)
        folder = self.output / name
        if (folder / "model_final.pth").exists():
            CONSOLE.print(f"{folder}: trained already")
            return folder
        command = [sys.executable, "train_net.py", "--config-file", config, "--num-gpus", "0"]
        command += ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(max_iter), "SEED", str(seed)]
        command += ["DATASETS.TRAIN", str(tuple(datasets)), "DATASETS.TEST", str(TEST), "SOLVER.EMA_DECAY", EMA_DECAY]
        train([*command, *options, *self.options], folder, self.environment, max_iter)
        return folder

    def label_captions(self, teacher: Path) -> dict:
        """Let the teacher label the captions of the other half; return the counts of its report."""
        pseudo = self.output / "pseudo"
        labelled = self.data / "annotations" / "pseudo.jsonl"
        captions = self.data / "annotations" / "other_half_captions.jsonl"
        command = ["tools/generate_pseudo_boxes.py", "--config-file", DETECTION_CONFIG, "--captions", str(captions)]
        command += ["--weights", str(teacher / "model_final.pth"), "--image-root", str(self.data / "train")]
        self.call([*command, "--output", str(pseudo), "--score-thresh", MIN_SCORE])
        labelled.write_bytes(b"".join(shard.read_bytes() for shard in sorted(pseudo.glob("*.jsonl"))))
        return json.loads((pseudo / "report.json").read_text())

    def retrieval(self, folder: Path) -> dict:
        """Measure region-to-word retrieval of a run."""
        result = folder / "retrieval.json"
        config = ["--config-file", str(folder / "config.yaml"), "--dataset", TEST[0], "--output", str(result)]
        self.call(["tools/evaluate_retrieval.py", *config, "MODEL.WEIGHTS", str(folder / "model_final.pth")])
        return json.loads(result.read_text())


def unigram_entropy(config: Path, datasets_root: Path) -> tuple[float, int]:
    """Return the entropy, in nats, of the words that masked language modelling asks for, and how many were counted.

    The estimate from finitely many words is too low rather than too high.
    """
    os.environ["DETECTRON2_DATASETS"] = str(datasets_root)
    from glipv2_d2.data import build_train_loader
    from glipv2_d2.engine.command_line import build_config

    counts: Counter[int] = Counter()
    batches = iter(build_train_loader(build_config(str(config), [])))
    for _ in tqdm(range(NUM_COUNTED_BATCHES), desc="masked words", unit="batch"):
        for sample in next(batches):
            labels = sample["prompts"][0].mlm_labels
            if labels is not None:
                counts.update(labels[labels >= 0].tolist())
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values()), total


def last_loss(folder: Path, name: str) -> float:
    """Return a loss, averaged over the last fifth of a run."""
    values = [record[name] for record in read_metrics(folder) if name in record]
    tail = values[-max(len(values) // 5, 1) :]
    return sum(tail) / len(tail)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, print its tables and write report.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "pretrain", help="default: output/pretrain")
    parser.add_argument("--num-names", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--num-train", type=int, default=2000, help="scenes of both halves (default: %(default)s)")
    parser.add_argument("--max-iter", type=int, default=300, help="updates of each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every training")
    arguments = parser.parse_args(argv)
    runs = Runs(arguments.output.resolve(), arguments.max_iter, arguments.opts)
    runs.make_data(arguments.num_names, arguments.num_train)

    teacher = runs.train("half", DETECTION_CONFIG, HALF, arguments.seeds[0])
    pseudo = runs.label_captions(teacher)
    # Every caption in a prompt costs time, so there are few.
    captions = ("INPUT.PROMPT.MIN_PSEUDO_SCORE", MIN_SCORE, "INPUT.PROMPT.NUM_NEGATIVE_CAPTIONS", "3")
    students = [
        runs.train("both", DETECTION_CONFIG, BOTH, arguments.seeds[0], *captions),
        runs.train("both_longer", DETECTION_CONFIG, BOTH, arguments.seeds[0], *captions, length=LONGER_STUDENT),
    ]
    report = {"pseudo_boxes": pseudo}
    report["round_trip"] = {
        folder.name: {name: split_results(folder, name)["bbox"] for name in ("val", "val_novel")}
        for folder in (teacher, *students)
    }
    report["contrast"] = []
    for seed in arguments.seeds:
        for enabled in (True, False):
            name = f"seed{seed}_{'with' if enabled else 'without'}"
            switch = ("MODEL.GLIPV2.CONTRASTIVE.ENABLED", str(enabled))
            folder = runs.train(name, PRETRAIN_CONFIG, BOTH, seed, *switch)
            row = {"seed": seed, "contrast": enabled, "AP50": split_results(folder, "val")["bbox"]["AP50"]}
            row["retrieval"] = runs.retrieval(folder)
            report["contrast"].append(row)
    folder = runs.train("long", PRETRAIN_CONFIG, BOTH, arguments.seeds[0], length=LONG)
    entropy, count = unigram_entropy(folder / "config.yaml", runs.data.parent)
    loss = last_loss(folder, "loss_mlm")
    report["masked_words"] = {"entropy": round(entropy, 3), "counted": count, "loss_mlm": round(loss, 3)}
    (runs.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)


def print_report(report: dict) -> None:
    """Print the two comparisons as tables."""
    table = Table(title="box AP50 (0..100) with boxes for one half, and with pseudo boxes for the other half too")
    for title in ("trained on", "val", "val_novel"):
        table.add_column(title, justify="right")
    for name, splits in report["round_trip"].items():
        table.add_row(name, *(f"{splits[split]['AP50']:.1f}" for split in ("val", "val_novel")))
    CONSOLE.print(table)
    table = Table(title="with and without inter-image contrast")
    for title in ("seed", "contrast", "recall@1 fused", "recall@1 before fusion", "val AP50"):
        table.add_column(title, justify="right")
    for row in report["contrast"]:
        before = row["retrieval"].get("contrastive", {}).get("recall@1")
        cells = [row["seed"], "with" if row["contrast"] else "without", row["retrieval"]["fused"]["recall@1"]]
        cells += ["-" if before is None else before, row["AP50"]]
        table.add_row(*(str(cell) for cell in cells))
    CONSOLE.print(table)
    words = report["masked_words"]
    CONSOLE.print(f"masked words: loss {words['loss_mlm']:.2f}, entropy of their frequencies {words['entropy']:.2f}")


if __name__ == "__main__":
    main()
