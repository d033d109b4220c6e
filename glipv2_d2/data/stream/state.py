"""Where a training stream stands: what a checkpoint keeps so that a later run goes on with the same samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from detectron2.config import CfgNode
from torch.utils.data import DataLoader

Value = TypeVar("Value")

# Notes of this kind tell whether a dataset holds what it held before.
DIGEST_OF = "annotations of "


class NotedConfig:
    """A config that notes which of its keys are read, with their values.

    What decides the order of the training samples is given one instead of a config. So the layout of a stream cannot
    lack a key that its order depends on, unless somebody writes ``aside`` where it is read.

    Attributes:
        layout: By config key, all that was read, in plain types; and what was noted under a name of its own.
        aside: The config itself, for keys that decide what a sample holds, but not which sample it is.
    """

    def __init__(self, node: CfgNode, prefix: str = "", layout: dict[str, Any] | None = None):
        """
        Args:
            node: The config, or a part of it.
            prefix: Name of the part, with a dot at its end.
            layout: Notes of the whole config.
        """
        self.aside = node
        self._prefix = prefix
        self.layout: dict[str, Any] = {} if layout is None else layout

    def __getattr__(self, name: str) -> Any:
        """Return a part of the config, or the value of a key, which is noted."""
        value = getattr(self.aside, name)
        if isinstance(value, CfgNode):
            return NotedConfig(value, f"{self._prefix}{name}.", self.layout)
        return self.note(self._prefix + name, value)

    def __getitem__(self, name: str) -> Any:
        """Return the same as an attribute, for a name that is a value itself."""
        return getattr(self, name)

    def note(self, name: str, value: Value) -> Value:
        """Note something else that the order depends on, or another value for a key that was read; return it."""
        self.layout[name] = list(value) if isinstance(value, tuple) else value
        return value


@dataclass
class StreamState:
    """What the order of training samples depends on, in plain types.

    Attributes:
        seed: Seed of the stream, not negative; drawn where SEED is -1.
        layout: All else that the stream depends on, see ``NotedConfig``.
        first_shard_batch: Batch of each rank from which on samples of shards are counted.
        first_epoch: Epoch in which the shards begin there.
        positions: For each stream of shards where its present block begins, see ``StreamedSamples.notes``. Without them
            the stream is the same, but is read from its beginning.
    """

    seed: int
    layout: dict[str, Any]
    first_shard_batch: int = 0
    first_epoch: int = 0
    positions: dict[str, list[int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the state in types that a checkpoint may hold."""
        return asdict(self)


def resume_state(saved: Mapping[str, Any] | None, seed: int, layout: dict[str, Any], start_batch: int) -> StreamState:
    """Return the state to go on with.

    With the layout and the seed of the checkpoint the stream goes on where it stopped. Otherwise a warning names what
    has changed: stored samples follow the new stream from ``start_batch`` on, shards begin with their next epoch.

    Args:
        saved: State in the checkpoint, made by ``as_dict``; None if there is none.
        seed: Seed of this run.
        layout: Layout of this run, in plain types.
        start_batch: First batch of each rank.
    """
    if saved is None:
        return StreamState(seed, layout)
    now, then = {"SEED": seed, **layout}, {"SEED": saved["seed"], **saved["layout"]}
    # Checkpoints of older versions have none of these; where datasets come or go, DATASETS.TRAIN changes, too.
    uncompared = {key for key in now.keys() ^ then.keys() if key.startswith(DIGEST_OF)}
    changed = [key for key in {**then, **now} if key not in uncompared and then.get(key) != now.get(key)]
    if not changed:
        return StreamState(**{**saved, "layout": layout, "positions": dict(saved["positions"])})
    logging.getLogger(__name__).warning(
        "the training data goes on with other content or in another order than the checkpoint's would: %s",
        "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed),
    )
    last_epoch = max([position[1] for position in saved["positions"].values()], default=saved["first_epoch"])
    return StreamState(seed, layout, start_batch, last_epoch + 1)


class TrainLoader:
    """The infinite loader of a training run; it keeps ``state`` up to the batch that was taken last.

    Attributes:
        state: State to be saved with a checkpoint.
        num_images: Number of all images, 0 if it is unknown because some are streamed from shards.
    """

    def __init__(self, loader: DataLoader, state: StreamState, num_images: int = 0):
        self._loader = loader
        self.state = state
        self.num_images = num_images

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            for sample in batch:
                if "stream_position" in sample:
                    name, position = sample.pop("stream_position")
                    self.state.positions[name] = position
            yield batch
