"""Builds tasks for lm-eval's ``evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypedDict

from llama_fast._format import counted
from llama_fast.eval.suite import code, sandbox
from llama_fast.eval.suite.index import known_names, task_manager, unknown_task
from llama_fast.eval.suite.mirror import MissingDataError, hub_reachable, serving, source
from llama_fast.eval.suite.presets import PRESETS, suite
from llama_fast.eval.suite.raw import CLASSIFIER

__all__ = ["LoadedTasks", "load_tasks"]

# lm-eval's default seed of the few-shot examples.
FEWSHOT_SEED = 1234
# Errors that leave a preset's task out instead of ending the run.
_UNAVAILABLE = (MissingDataError, code.CodeNotAllowedError, sandbox.SandboxError, ImportError)


class LoadedTasks(TypedDict):
    """The ``task_dict`` of ``lm_eval.evaluator.evaluate``, and what could not be loaded.

    Attributes:
        tasks: name -> task.
        groups: name -> ``lm_eval.api.group.Group``.
        group_map: group -> names of its members.
        missing: task or group of a preset that could not be loaded -> reason.
        notes: task -> what is unusual about its data.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]
    group_map: dict[str, list[str]]
    missing: dict[str, str]
    notes: dict[str, str]


def load_tasks(
    names: Sequence[str] | str,
    *,
    data_dir: str | Path | None = None,
    allow_code: bool = False,
    num_fewshot: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    toxigen_classifier: str | Path | None = None,
) -> LoadedTasks:
    """Build tasks by name, ready for ``lm_eval.evaluator.evaluate``.

    With ``allow_code=True``, also pass ``confirm_run_unsafe_code=True`` to ``evaluate``: the
    model's programs run in the sandbox of :mod:`sandbox` and not as the harness runs them.

    Args:
        names: presets ("llama2-paper", "lm-eval"), this package's tasks ("quac", "bold",
            "toxigen_generation", "mmlu_5shot", ...) and lm-eval's tasks, groups and tags.
        data_dir: a mirror of the data, see :class:`mirror.Mirror`; None for the hub.
        allow_code: whether to build tasks that run programs written by the model.
        num_fewshot: number of examples for every task except those that fix it at 0; None for
            each task's own number.
        fewshot_seed: seed of the draw of examples, which starts anew in each evaluation.
        toxigen_classifier: hub name or folder of the classifier of ``toxigen_generation``.

    Returns:
        The tasks. Parts of a preset that are unavailable (no data, ``allow_code`` False) are left
        out and listed under ``missing``.

    Raises:
        ValueError: a name is unknown (the message lists similar ones), an explicitly named task
            runs code and ``allow_code`` is False, or a data file is damaged (names file and line).
        MissingDataError: the data of an explicitly named task are missing.
        SandboxError: such a task runs code, and this machine cannot run it safely.
        ImportError: a package that an explicitly named task needs is not installed.
    """
    if isinstance(names, str):
        names = [names]
    unique = list(dict.fromkeys(names))
    requested: dict[str, bool] = {}  # name -> whether it may be missing
    for name in unique:
        if name in PRESETS or name == "llama2":
            for part in suite(name).parts:
                requested.setdefault(part.load, True)
        else:
            requested[name] = False
    _check_names(requested)
    loader = _Loader(data_dir, allow_code, toxigen_classifier)
    loaded = loader.load(requested)
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        _seed_each_run(task, fewshot_seed)
    return loaded


def _seed_each_run(task: Any, seed: int) -> None:
    """Make the task draw the same examples in every evaluation, and not continue its last draw.

    The harness seeds a task once, when it is loaded. A seed that a caller sets later is kept.
    """
    stock_seed, stock_build = task.set_fewshot_seed, task.build_all_requests
    current: int | None = seed

    @wraps(stock_seed)
    def set_fewshot_seed(seed: int | None = None) -> None:
        nonlocal current
        current = seed
        stock_seed(seed=seed)

    @wraps(stock_build)
    def build_all_requests(**options: Any) -> None:
        stock_seed(seed=current)
        stock_build(**options)

    task.set_fewshot_seed, task.build_all_requests = set_fewshot_seed, build_all_requests
    set_fewshot_seed(seed)


def _notes(task: Any) -> list[str]:
    """Notes on a task's data."""
    result, metadata = [], task.get_config("metadata") or {}
    if note := metadata.get("stand_in"):
        result.append(f"{note}: {counted(len(task.eval_docs), 'question')}")
    if split := metadata.get("asked_split"):
        result.append(f"asked about the {split} split: the data have no other")
    if metadata.get("untitled"):
        result.append("passages without the titles that SuperGLUE has")
    if getattr(task, "classifier", True) is None:
        result.append(f"texts are not scored: {CLASSIFIER} is not available")
    return result


def _own_names() -> list[str]:
    from llama_fast.eval.suite.tasks import CLASSES
    from llama_fast.eval.suite.variants import GROUPS, VARIANTS

    return [*PRESETS, *CLASSES, *GROUPS, *VARIANTS]


def _check_names(names: Sequence[str] | dict[str, bool]) -> None:
    own = _own_names()
    for name in names:
        if name not in own and name not in known_names():
            raise unknown_task(name, own)


class _Loader:
    def __init__(
        self, data_dir: str | Path | None, allow_code: bool, classifier: str | Path | None
    ) -> None:
        self.data = source(data_dir)
        self.local = data_dir is not None
        self.allow_code = allow_code
        self.classifier = classifier

    def load(self, requested: dict[str, bool]) -> LoadedTasks:
        result: LoadedTasks = {
            "tasks": {},
            "groups": {},
            "group_map": {},
            "missing": {},
            "notes": {},
        }
        with serving(self.data), code.local_metrics(self.allow_code):
            for name, optional in requested.items():
                try:
                    self._add(name, result)
                except _UNAVAILABLE as error:
                    if not optional:
                        raise
                    result["missing"][name] = " ".join(str(error).split())
                except Exception as error:
                    # Rows that the task's own code does not expect. A damaged file in a mirror is
                    # a ValueError, which names the line.
                    broken = self.local and isinstance(error, ValueError)
                    if not optional or broken or isinstance(error, MemoryError):
                        raise
                    reason = " ".join(str(error).split())
                    result["missing"][name] = f"{type(error).__name__}: {reason}"
        for name, task in result["tasks"].items():
            if notes := _notes(task):
                result["notes"][name] = ", ".join(notes)
        return result

    def _add(self, name: str, result: LoadedTasks) -> None:
        from llama_fast.eval.suite.tasks import CLASSES
        from llama_fast.eval.suite.variants import GROUPS, VARIANTS

        if name in result["tasks"] or name in result["groups"]:
            return
        if name in CLASSES:
            result["tasks"][name] = self._own(name)
        elif name in VARIANTS:
            result["tasks"][name] = self._variants([name])[name]
        elif name in GROUPS:
            self._add_group(name, result)
        else:
            self._add_stock(name, result)

    def _own(self, name: str) -> Any:
        from llama_fast.eval.suite.tasks import CLASSES

        options: dict[str, Any] = {}
        if name == "toxigen_generation":
            options["local_files_only"] = self.local or not hub_reachable()
            if self.classifier is not None:
                options["classifier"] = str(self.classifier)
        return CLASSES[name](config={"metadata": options})

    def _variants(self, names: Sequence[str]) -> dict[str, Any]:
        from lm_eval.tasks._yaml_loader import load_yaml

        from llama_fast.eval.suite.variants import VARIANTS

        manager = task_manager([VARIANTS[name].base for name in names])
        tasks = {}
        for name in names:
            variant = VARIANTS[name]
            code.check_allowed(variant.base, manager, self.allow_code)
            stock = load_yaml(manager.task_index[variant.base].yaml_path)
            tasks[name] = variant.build(name, stock)
        return tasks

    def _add_group(self, name: str, result: LoadedTasks) -> None:
        from lm_eval.api.group import Group
        from lm_eval.config.group import GroupConfig

        from llama_fast.eval.suite.variants import GROUPS

        definition = GROUPS[name]
        metrics = [dict(metric) for metric in definition.metrics]
        group = Group.from_config(GroupConfig(group=name, aggregate_metric_list=metrics))
        tasks = self._variants(definition.tasks)
        for task in tasks.values():
            group.add(task)
        result["tasks"].update(tasks)
        result["groups"][name] = group
        result["group_map"][name] = list(definition.tasks)

    def _add_stock(self, name: str, result: LoadedTasks) -> None:
        from llama_fast.eval.suite.tasks import CLASSES

        manager = task_manager([name])
        code.check_allowed(name, manager, self.allow_code)
        built = manager.load(name)
        for task in built["tasks"]:
            code.check_allowed(task, manager, self.allow_code)
        # A group of the harness may contain a task that we implement.
        for task in built["tasks"]:
            if task in CLASSES:
                built["tasks"][task] = self._own(task)
        result["tasks"].update(built["tasks"])
        result["groups"].update(built.get("groups") or {})
        result["group_map"].update(built.get("group_map") or {})
