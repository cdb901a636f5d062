"""A run's directory: its configuration, its curve, its checkpoints; never overwritten unasked."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from dfa_jax.errors import InputError
from dfa_jax.train import config as configs
from dfa_jax.train import records
from dfa_jax.train.config import TrainConfig

if TYPE_CHECKING:
    import filelock

_CONFIG = "config.json"
_CURVE = "curve.jsonl"
_RECORD = "record.json"
_LOCK = ".lock"


class RunDirectory:
    """Files of one run.

    | file | holds |
    | --- | --- |
    | `config.json` | the configuration |
    | `curve.jsonl` | one evaluation a line |
    | `checkpoints/` | all the state, by Orbax |
    | `tensorboard/` | the same numbers as the curve, for TensorBoard |
    | `record.json` | the whole run, once it has ended |
    | `.lock` | nothing; held by the process that has the run open |
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    @classmethod
    def open(
        cls, path: pathlib.Path, config: TrainConfig, *, resume: bool, overwrite: bool
    ) -> "RunDirectory":
        """Makes the directory, or takes up an existing one; no other process can, until `close`.

        The system lets go of it when the process dies, however it dies.

        Raises:
            InputError: it exists and neither `resume` nor `overwrite` was asked for, or both were;
                it holds something that is not a run; its run has another configuration; another
                process has it open; it cannot be written to.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one of them")
        directory = cls(path)
        try:
            directory._check(config, resume=resume, overwrite=overwrite)
            path.mkdir(parents=True, exist_ok=True)
            directory._acquire()
            # Again, as somebody may have had it since; and a refusal leaves no lock behind.
            directory._check(config, resume=resume, overwrite=overwrite)
            if overwrite:
                directory._clear()
            # Written on resume too: a folder that cannot be written to is refused here, by name.
            _write(path / _CONFIG, configs.to_dict(config))
        except OSError as error:
            raise InputError(
                f"run directory {path} cannot be used ({error.strerror}); choose a folder that can"
                " be written to"
            ) from error
        return directory

    @functools.cached_property
    def _lock(self) -> "filelock.FileLock":
        import filelock  # of an extra

        return filelock.FileLock(self.path / _LOCK)

    def close(self) -> None:
        """Lets others open it."""
        self._lock.release()

    def _acquire(self) -> None:
        import filelock  # of an extra

        try:
            # On a file system without locks, nothing watches.
            with contextlib.suppress(NotImplementedError):
                self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise InputError(
                f"run directory {self.path} is open in another process; wait until that has ended,"
                f" or choose another folder (if its machine is gone, delete {self.path / _LOCK})"
            ) from error

    def _content(self) -> list[pathlib.Path]:
        """All that is there, but for the lock."""
        return [one for one in self.path.iterdir() if one.name != _LOCK]

    def _clear(self) -> None:
        for one in self._content():
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()

    def _check(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        check_path(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"run directory {self.path} is a file; choose another path")
        if not self.path.exists() or not self._content():
            return
        if not self._is_run():
            raise InputError(
                f"{self.path} exists and is not a run (it has no {_CONFIG} of one); choose another"
                " folder, or remove it yourself"
            )
        if not resume and not overwrite:
            raise InputError(
                f"{self.path} holds a run already; add --resume to go on with it, --overwrite to"
                " start again, or choose another folder"
            )
        if resume and (found := self.changes(config)):
            raise InputError(
                f"{self.path} holds a run with another configuration ({found[0]}); give the same"
                " one, or choose another folder"
            )

    def _is_run(self) -> bool:
        """Whether there is a configuration of ours, if damaged, and not another program's file."""
        if not (self.path / _CONFIG).exists():
            return False
        try:
            stored = json.loads((self.path / _CONFIG).read_text())
        except ValueError:
            return True  # `changes` says that it is damaged
        return isinstance(stored, dict) and {"rule", "optimizer"} <= stored.keys()

    def changes(self, config: TrainConfig) -> list[str]:
        """The settings in which the run that is there differs.

        Raises:
            InputError: its configuration is damaged.
        """
        try:
            stored = json.loads((self.path / _CONFIG).read_text())
        except ValueError as error:
            raise InputError(
                f"{self.path / _CONFIG} is damaged ({error}); start again with --overwrite"
            ) from error
        return configs.run_changes(stored, config)

    def append(self, evaluation: records.Evaluation) -> None:
        """Adds a point to the curve."""
        records.append(self.path / _CURVE, evaluation)

    def check_begun(self) -> None:
        """Refuses to start again where there are results but no checkpoint.

        One point without a checkpoint is what a stop while the first one is written leaves.
        """
        path = self.path / _CURVE
        if path.exists() and (number := path.read_bytes().count(b"\n")) > 1:
            raise InputError(
                f"{path} has {number} points and there is no checkpoint in {self.checkpoints} to go"
                " on from; start again with --overwrite"
            )

    def curve_until(self, step: int) -> list[records.Evaluation]:
        """The curve up to a step; later points, which a resumed run makes again, are removed."""
        path = self.path / _CURVE
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                evaluation = records.Evaluation(**json.loads(line))
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{path}, line {number} is not an evaluation ({error}); start again with"
                    " --overwrite"
                ) from error
            if evaluation.step <= step:
                kept.append(evaluation)
        if step and (not kept or kept[-1].step != step):
            raise InputError(
                f"{path} has no evaluation at step {step}, where the last checkpoint is; start"
                " again with --overwrite"
            )
        _replace(path, "".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in kept))
        return kept

    def record(self) -> records.RunRecord | None:
        """The record of the whole run, once it has ended.

        Raises:
            InputError: it is damaged.
        """
        path = self.path / _RECORD
        try:
            return records.parse_run(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it to make it again") from error

    def latest_step(self) -> int:
        """The step of the newest whole checkpoint, 0 if there is none."""
        names = (path.name for path in self.checkpoints.glob("*"))
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def finish(self, record: records.RunRecord) -> None:
        """Writes the record of the whole run."""
        _write(self.path / _RECORD, dataclasses.asdict(record))


def check_path(path: pathlib.Path) -> None:
    """Refuses an address, as of a bucket, which would be a folder called `gs:` on this machine.

    Raises:
        InputError: it is none of a folder.
    """
    if len(scheme := path.parts[0] if path.parts else "") > 2 and scheme.endswith(":"):
        raise InputError(
            f"{path} is an address and no folder; mount what is at {scheme}//, and give a path"
            " below it"
        )


def _write(path: pathlib.Path, content: Any) -> None:
    _replace(path, json.dumps(content, indent=1) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes so that a stop leaves the old file or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
