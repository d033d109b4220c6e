#!/usr/bin/env python
"""Pre-train the small model with and without each loss and with and without captions, over several seeds.

    python tools/run_ablation.py                              # six forms of five seeds, hours on two cores
    python tools/run_ablation.py --losses intra all --captions no --seeds 0 1 --max-iter 200
    python tools/run_ablation.py --transfer raccoon_folder bccd_folder    # few shots of own sets from each run

1. StampWorld is drawn and halved: one half keeps its boxes, the other only its captions.
2. A teacher, trained on the boxes alone, labels the captions of the other half (tools/generate_pseudo_boxes.py).
3. For each seed, each form of the losses trains on detection and grounding data of the first half, with and without the
   captions of the other. "intra" has L_loc and L_intra, "inter" L_inter too, and "all" also L_mlm (GLIPv2, Sec. 4.4).
4. Each run is tested: AP of the names that it was trained on and of others, phrases of captions, names of regions among
   the names of all images, masked words, and few shots of own sets.

A run is done when its results.json is there: the same command goes on where it was stopped, and other seeds and forms
join those that are done. Other lengths, scenes, sets or options need another folder. After each run, runs.json holds
the figures of all runs of the folder, and table.md what follows from them: mean and deviation over the seeds, and for
each loss and for the captions the gain with a paired t-test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from make_demo import CONSOLE, ROOT, prepare, read_metrics, train
from odinw_report import mean_and_deviation
from tqdm import tqdm

from glipv2_d2.errors import InputError
from glipv2_d2.folders import lock_folder
from glipv2_d2.tensor_files import write_text

TEACHER_CONFIG = "configs/demo/glipv2_micro.yaml"
PRETRAIN_CONFIG = "configs/pretrain/glipv2_micro.yaml"
HALF = ("stampworld_half", "stampworld_half_grounding")
PSEUDO = "stampworld_pseudo"
TEST = ("stampworld_val", "stampworld_val_novel", "stampworld_val_grounding")
# Keys of the forms; each has what the one before has, and one loss more.
LOSSES = {
    "intra": {"MODEL.GLIPV2.CONTRASTIVE.ENABLED": "False", "MODEL.GLIPV2.MLM.ENABLED": "False"},
    "inter": {"MODEL.GLIPV2.CONTRASTIVE.ENABLED": "True", "MODEL.GLIPV2.MLM.ENABLED": "False"},
    "all": {"MODEL.GLIPV2.CONTRASTIVE.ENABLED": "True", "MODEL.GLIPV2.MLM.ENABLED": "True"},
}
CAPTIONS = ("no", "yes")
# Lowest score of a pseudo box, of the generator and of the pre-training config.
MIN_SCORE = "0.4"
# A moving average over about a tenth of the run.
EMA_SHARE = 0.1
# Batches that the frequencies of masked words are counted over.
NUM_COUNTED_BATCHES = 400
# Images of each name, updates and their seed, of a transfer.
SHOTS, TRANSFER_UPDATES, TRANSFER_SEED = 10, 100, 3
RESULTS, RUNS, TABLE, SETTINGS = "results.json", "runs.json", "table.md", "settings.json"
# It is there once a training was tested at its end, for which its weights are written before.
TESTED = "tested"


class Form(NamedTuple):
    """A way to pre-train.

    Attributes:
        losses: A key of ``LOSSES``.
        captions: "yes" if captions with pseudo boxes are trained on.
    """

    losses: str
    captions: str

    def folder(self, output: Path, seed: int) -> Path:
        """Return the folder of the run of a seed."""
        return output / f"{self.losses}_{'with' if self.captions == 'yes' else 'without'}_captions" / f"seed{seed}"


class Runs:
    """The steps of the comparison, each a command with its own folder below ``output``."""

    def __init__(self, output: Path, max_iter: int, transfer: Sequence[str], options: Sequence[str]):
        self.output = output
        self.max_iter = max_iter
        self.transfer = [os.path.abspath(path) for path in transfer]
        self.options = list(options)
        self.data = output / "datasets" / "stampworld"
        self.environment = {**os.environ, "DETECTRON2_DATASETS": str(self.data.parent)}

    def settings(self) -> dict[str, Any]:
        """Return what the runs of a folder have in common."""
        return {"updates": self.max_iter, "options": self.options, "transfer": self.transfer}

    def make_data(self, num_names: int | None, num_novel: int, num_train: int) -> None:
        """Draw the scenes and halve them; end if the folder was begun with others, or with other settings."""
        scenes = {"names": num_names, "novel": num_novel, "train": num_train}
        path, settings = self.output / SETTINGS, {**self.settings(), "scenes": scenes}
        found = json.loads(path.read_text("utf-8")) if path.is_file() else settings
        if found != settings:
            sys.exit(f"run_ablation: {path}: expected {settings}, found {found}; change --output")
        write_text(str(path), json.dumps(settings, indent=1) + "\n")
        sizes = {"--num-novel": num_novel, "--num-train": num_train, "--num-val": 100}
        sizes |= {"--num-names": num_names} if num_names else {}
        options = [str(word) for pair in sizes.items() for word in pair]
        if prepare("stampworld", ["--output", str(self.data), *options], self.environment) != "stampworld":
            sys.exit("run_ablation: StampWorld could not be made, and the comparison is about it")
        self.call(["datasets/prepare_halves.py", str(self.data)])

    def call(self, command: list[str]) -> None:
        """Run a program of this repository; end if it fails."""
        CONSOLE.print(f"[bold]$ {shlex.join(['python', *command])}[/bold]")
        if subprocess.run([sys.executable, *command], env=self.environment, cwd=ROOT).returncode:
            sys.exit(f"run_ablation: this step failed: {shlex.join(command)}")

    def train(self, folder: Path, config: str, datasets: Sequence[str], seed: int, options: Sequence[str] = ()) -> None:
        """Train a model and test it on held-out scenes, unless that is done."""
        if (folder / TESTED).exists():
            CONSOLE.print(f"{folder}: trained already")
            return
        command = [sys.executable, "train_net.py", "--config-file", config, "--num-gpus", "0"]
        command += ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(self.max_iter), "SEED", str(seed)]
        command += ["DATASETS.TRAIN", str(tuple(datasets)), "DATASETS.TEST", str(TEST)]
        command += ["SOLVER.EMA_DECAY", f"{1 - 1 / max(EMA_SHARE * self.max_iter, 2):.4f}"]
        train([*command, *options, *self.options], folder, self.environment, self.max_iter)
        (folder / TESTED).touch()

    def label_captions(self, seed: int) -> None:
        """Train the teacher and let it label the captions of the other half."""
        labelled = self.data / "annotations" / "pseudo.jsonl"
        if labelled.is_file():
            return
        teacher, pseudo = self.output / "teacher", self.output / "pseudo"
        self.train(teacher, TEACHER_CONFIG, HALF, seed)
        captions = self.data / "annotations" / "other_half_captions.jsonl"
        command = ["tools/generate_pseudo_boxes.py", "--config-file", TEACHER_CONFIG, "--captions", str(captions)]
        command += ["--weights", str(teacher / "model_final.pth"), "--image-root", str(self.data / "train")]
        self.call([*command, "--output", str(pseudo), "--score-thresh", MIN_SCORE])
        write_text(str(labelled), "".join(shard.read_text("utf-8") for shard in sorted(pseudo.glob("*.jsonl"))))

    def run(self, form: Form, seed: int) -> dict[str, Any]:
        """Return the record of a run, from its file or by training and testing it."""
        folder = form.folder(self.output, seed)
        if (folder / RESULTS).is_file():
            return json.loads((folder / RESULTS).read_text("utf-8"))
        begin = time.time()
        datasets = (*HALF, PSEUDO) if form.captions == "yes" else HALF
        keys = [word for pair in LOSSES[form.losses].items() for word in pair]
        self.train(folder, PRETRAIN_CONFIG, datasets, seed, keys)
        record = {**form._asdict(), "seed": seed, **self.settings(), "commit": _commit()}
        record["measures"] = {**tested(folder), **self.retrieval(folder), **self.masked_words(folder, form)}
        record["measures"] |= self.few_shots(folder)
        record["minutes"] = round((time.time() - begin) / 60, 1)
        write_text(str(folder / RESULTS), json.dumps(record, indent=1) + "\n")
        return record

    def retrieval(self, folder: Path) -> dict[str, float]:
        """Measure region-to-word retrieval across the images of a run, in the spaces that it has."""
        result = folder / "retrieval.json"
        config = ["--config-file", str(folder / "config.yaml"), "--dataset", TEST[0], "--output", str(result)]
        self.call(["tools/evaluate_retrieval.py", *config, "MODEL.WEIGHTS", str(folder / "model_final.pth")])
        spaces = json.loads(result.read_text())
        return {f"retrieval {space} R@1": values["recall@1"] for space, values in spaces.items()}

    def masked_words(self, folder: Path, form: Form) -> dict[str, float]:
        """Return the loss of masked words and the entropy of their frequencies, in nats; empty without the loss."""
        if form.losses != "all":
            return {}
        entropy, _ = unigram_entropy(folder / "config.yaml", self.data.parent)
        return {"loss_mlm": round(last_loss(folder, "loss_mlm"), 3), "entropy of masked words": round(entropy, 3)}

    def few_shots(self, folder: Path) -> dict[str, float]:
        """Tune a run on few images of each own set, and test it; AP50 by the name of the set."""
        if not self.transfer:
            return {}
        output = folder / "transfer"
        command = ["tools/run_odinw.py", "--config-file", TEACHER_CONFIG, "--num-gpus", "0", "--output", str(output)]
        command += ["--weights", str(folder / "model_final.pth"), "--data", *self.transfer, "--modes", "full"]
        command += ["--shots", str(SHOTS), "--seeds", str(TRANSFER_SEED), "--max-iter", str(TRANSFER_UPDATES)]
        # A set may have fewer images of a name.
        command += ["--eval-period", str(TRANSFER_UPDATES // 2), "--metric", "bbox/AP50"]
        self.call([*command, "--opts", "DATASETS.FEW_SHOT.ALLOW_FEWER", "True"])
        cells = [json.loads(path.read_text()) for path in sorted(output.glob(f"*/full_{SHOTS}_*/{RESULTS}"))]
        return {f"{cell['dataset']} {SHOTS} shots AP50": round(cell["value"], 2) for cell in cells}


def records_of(output: Path) -> list[dict[str, Any]]:
    """Return the records of all runs that are done, seed by seed in the order of the forms."""
    records = [json.loads(path.read_text("utf-8")) for path in output.glob(f"*/seed*/{RESULTS}")]
    order = [Form(losses, captions) for captions in CAPTIONS for losses in LOSSES]
    return sorted(records, key=lambda one: (one["seed"], order.index(Form(one["losses"], one["captions"]))))


def tested(folder: Path) -> dict[str, float]:
    """Return what the evaluators said at the end of a training; an AP that does not exist is 0."""
    keys = {
        "seen AP": "stampworld_val/bbox/AP",
        "seen AP50": "stampworld_val/bbox/AP50",
        "unseen AP": "stampworld_val_novel/bbox/AP",
        "unseen AP50": "stampworld_val_novel/bbox/AP50",
        "phrases R@1": "stampworld_val_grounding/any_box/R@1",
    }
    last: dict[str, float] = {}
    for record in read_metrics(folder):
        last |= record
    return {name: round(last[key], 2) if math.isfinite(last[key]) else 0.0 for name, key in keys.items()}


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


def comparisons(forms: Sequence[Form]) -> Iterator[tuple[str, Form, Form]]:
    """Yield what is gained, the form without it and the form with it, where both are among the forms."""
    order = list(LOSSES)
    titles = {"inter": "L_inter", "all": "L_mlm"}
    for form in forms:
        before = order.index(form.losses) - 1
        if before >= 0 and (without := form._replace(losses=order[before])) in forms:
            yield f"{titles[form.losses]}, {'with' if form.captions == 'yes' else 'without'} captions", without, form
    for form in forms:
        if form.captions == "yes" and (without := form._replace(captions="no")) in forms:
            yield f"captions, {form.losses}", without, form


def paired(without: Mapping[int, float], with_it: Mapping[int, float]) -> dict[str, Any]:
    """Compare values of the same seeds by a paired t-test, two-sided.

    Returns:
        "gain", the mean of the differences, "deviation" of a sample, "seeds", and "p", None for fewer than two seeds.
        Differences that are all equal have p 0, or 1 if they are 0.
    """
    seeds = sorted(without.keys() & with_it.keys())
    gains = [with_it[seed] - without[seed] for seed in seeds]
    result: dict[str, Any] = {"gain": statistics.fmean(gains) if gains else None, "seeds": len(seeds)}
    if len(seeds) < 2:
        return {**result, "deviation": 0.0, "p": None}
    from scipy.stats import t

    deviation = statistics.stdev(gains)
    if deviation == 0.0:
        return {**result, "deviation": 0.0, "p": float(result["gain"] == 0.0)}
    ratio = abs(result["gain"]) / (deviation / math.sqrt(len(seeds)))
    return {**result, "deviation": deviation, "p": float(2 * t.sf(ratio, len(seeds) - 1))}


def tables_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of all runs in markdown: means over the seeds, then gains."""
    values: dict[Form, dict[str, dict[int, float]]] = {}
    for record in records:
        of_form = values.setdefault(Form(record["losses"], record["captions"]), {})
        for name, value in record["measures"].items():
            of_form.setdefault(name, {})[record["seed"]] = value
    measures = list(dict.fromkeys(name for of_form in values.values() for name in of_form))
    lines = ["| measure | " + " | ".join(f"{form.losses}, captions: {form.captions}" for form in values) + " |"]
    lines += ["| --- |" + " ---: |" * len(values)]
    for name in measures:
        cells = [mean_and_deviation(list(of_form.get(name, {}).values())) for of_form in values.values()]
        texts = ["-" if not one["runs"] else f"{one['mean']:.1f}{_deviation(one, one['runs'])}" for one in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    lines += ["", "| gain of | measure | gain | seeds | p |", "| --- | --- | ---: | ---: | ---: |"]
    for title, without, with_it in comparisons(list(values)):
        for name in measures:
            if name not in values[without] or name not in values[with_it]:
                continue
            one = paired(values[without][name], values[with_it][name])
            if one["gain"] is not None:
                p = "-" if one["p"] is None else f"{one['p']:.3f}"
                gain = f"{one['gain']:+.1f}{_deviation(one, one['seeds'])}"
                lines.append(f"| {title} | {name} | {gain} | {one['seeds']} | {p} |")
    return "\n".join(lines) + "\n"


def _deviation(one: Mapping[str, Any], runs: int) -> str:
    return f" ± {one['deviation']:.1f}" if runs > 1 else ""


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def run_all(arguments: argparse.Namespace, output: Path) -> None:
    """Run what is missing, and write runs.json and table.md after each run."""
    runs = Runs(output, arguments.max_iter, arguments.transfer, arguments.opts)
    runs.make_data(arguments.num_names, arguments.num_novel, arguments.num_train)
    if "yes" in arguments.captions:
        runs.label_captions(arguments.seeds[0])
    for seed in arguments.seeds:
        for captions in (one for one in CAPTIONS if one in arguments.captions):
            for losses in (one for one in LOSSES if one in arguments.losses):
                runs.run(Form(losses, captions), seed)
                records = records_of(output)
                write_text(str(output / RUNS), "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")
                write_text(str(output / TABLE), tables_of(records))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, and run what is missing in a folder where no other command runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation", help="default: output/ablation")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="default: all three")
    parser.add_argument("--captions", nargs="+", choices=CAPTIONS, default=list(CAPTIONS), help="default: no yes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    parser.add_argument("--max-iter", type=int, default=2400, help="updates of each run (default: %(default)s)")
    parser.add_argument("--num-names", type=int, help="names that are trained on; default: all but --num-novel")
    parser.add_argument("--num-novel", type=int, default=32, help="names kept for the test (default: %(default)s)")
    parser.add_argument("--num-train", type=int, default=4000, help="scenes of both halves (default: %(default)s)")
    parser.add_argument("--transfer", nargs="+", default=[], metavar="PATH", help="own sets, tuned on 10 shots")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every training")
    arguments = parser.parse_args(argv)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("run_ablation: stopped; the same command goes on from here"))
    try:
        with lock_folder(output, "--output"):
            run_all(arguments, output)
    except InputError as error:
        sys.exit(f"run_ablation: {error}")
    CONSOLE.print((output / TABLE).read_text("utf-8"), markup=False)


if __name__ == "__main__":
    main()
