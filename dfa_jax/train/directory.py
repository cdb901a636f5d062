"""A run's directory: its configuration, its curve, its checkpoints; never overwritten unasked."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dfa_jax.errors import InputError
from dfa_jax.train import aside, records
from dfa_jax.train import config as configs
from dfa_jax.train.config import TrainConfig

if TYPE_CHECKING:
    import filelock

_CONFIG = "config.json"
_RECORD = "record.json"


class OpenElsewhereError(InputError):
    """Another process has the run open."""


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
    | `.overwritten/` | the run that was there, until the new one has been evaluated: see `aside` |
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

        The system lets go of it when the process dies, however it dies. With `overwrite`, the run
        that is there is set aside until `drop_old`, or comes back: on `close`, at the next `open`.

        Raises:
            InputError: it exists and neither `resume` nor `overwrite` was asked for, or both were;
                it holds something that is not a run; its run has another configuration; it cannot
                be written to.
            OpenElsewhereError: another process has it open.
        """
        if resume and overwrite:
            raise InputError("--resume and --overwrite exclude each other; give one of them")
        directory = cls(path)
        with contextlib.ExitStack() as undo, directory._usable():
            directory._check_place()
            # Nobody has it open without a lock, and a refusal leaves none behind.
            if not (path / aside.LOCK).exists() and not aside.is_begun(path):
                directory._check(config, resume=resume, overwrite=overwrite)
            path.mkdir(parents=True, exist_ok=True)
            directory._acquire()
            undo.callback(directory.close)
            directory._settle()
            # Again, as somebody may have had it since.
            directory._check_place()
            directory._check(config, resume=resume, overwrite=overwrite)
            if overwrite:
                aside.set_aside(path)
            # Written on resume too: a folder that cannot be written to is refused here, by name.
            _write(path / _CONFIG, configs.to_dict(config))
            undo.pop_all()
        return directory

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"run directory {self.path} cannot be used ({error.strerror}); choose a folder that"
                " can be written to"
            ) from error

    @functools.cached_property
    def _lock(self) -> "filelock.FileLock":
        import filelock  # of an extra

        return filelock.FileLock(self.path / aside.LOCK)

    @property
    def replaces(self) -> bool:
        """Whether a run is set aside, which comes back on `close`."""
        return aside.is_begun(self.path)

    def drop_old(self) -> None:
        """Deletes the run that is set aside, if any: the new one is known to run."""
        aside.drop(self.path)

    def close(self) -> None:
        """Lets others open it; a run that is set aside comes back.

        Raises:
            InputError: it cannot be brought back; the next `open` does.
        """
        try:
            if aside.put_back(self.path):
                self._say(aside.BACK)
        except OSError as error:
            raise InputError(
                f"the run that --overwrite set aside in {self.path} cannot be brought back"
                f" ({error.strerror}); once that is mended, the next start brings it back"
            ) from error
        finally:
            self._lock.release()

    def _settle(self) -> None:
        if said := aside.settle(self.path):
            self._say(said)

    def _say(self, line: str) -> None:
        print(f"{self.path}: {line}", file=sys.stderr)

    def _acquire(self) -> None:
        import filelock  # of an extra

        try:
            # On a file system without locks, nothing watches.
            with contextlib.suppress(NotImplementedError):
                self._lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise OpenElsewhereError(
                f"run directory {self.path} is open in another process; wait until that has ended,"
                " or choose another folder (if its machine is gone, delete"
                f" {self.path / aside.LOCK})"
            ) from error

    def _check_place(self) -> None:
        """Refuses what is no folder, or that of something else: nothing there may be touched."""
        check_path(self.path)
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"run directory {self.path} is a file; choose another path")
        if not aside.is_begun(self.path) and aside.content(self.path) and not self._is_run():
            raise InputError(
                f"{self.path} exists and is not a run (it has no {_CONFIG} of one); choose another"
                " folder, or remove it yourself"
            )

    def _check(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Refuses a run that is there, if it is not what was asked for."""
        if not self.path.exists() or not aside.content(self.path):
            return
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
        records.Editor(self.path / aside.CURVE).append(evaluation)  # the lock is the directory's

    def check_begun(self) -> None:
        """Refuses to start again where there are results but no checkpoint.

        One point without a checkpoint is what a stop while the first one is written leaves.
        """
        path = self.path / aside.CURVE
        if path.exists() and (number := path.read_bytes().count(b"\n")) > 1:
            raise InputError(
                f"{path} has {number} points and there is no checkpoint in {self.checkpoints} to go"
                " on from; start again with --overwrite"
            )

    def curve_until(self, step: int) -> list[records.Evaluation]:
        """The curve up to a step; later points, which a resumed run makes again, are removed."""
        path = self.path / aside.CURVE
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

    def clear_unbegun(self) -> None:
        """Empties a directory whose run has no checkpoint to go on from, as `open` would leave it.

        Raises:
            InputError: as `open`: it is no run's, or cannot be used.
            OpenElsewhereError: another process has it open.
        """
        if not self.path.exists():
            return
        with self._usable():
            self._check_place()
            self._acquire()
            try:
                self._settle()
                if not self.latest_step():
                    aside.set_aside(self.path)
                    aside.drop(self.path)
            finally:
                self._lock.release()

    def remove(self) -> None:
        """Deletes it, unless another process has it open, or it cannot be deleted."""
        with contextlib.suppress(OpenElsewhereError, OSError):
            self._acquire()
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.release()

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
