"""The run that `--overwrite` replaces, kept in its directory until the new one is known to run.

| folder | the old run | at the next start |
| --- | --- | --- |
| `.overwritten.moving` | is on its way, aside or back | comes back |
| `.overwritten` | is aside | comes back, unless the new one can go on |
| `.overwritten.dropped` | is not wanted any more | is deleted |

Renaming one folder leads from each state to the next, so a kill at any moment leaves all of the old
run or, once the new one has been evaluated and saved, the new one. Who calls has the directory to
itself.
"""

import errno
import pathlib
import shutil
from collections.abc import Iterable

LOCK = ".lock"
CURVE = "curve.jsonl"
_OLD, _MOVING, _DROPPED = ".overwritten", ".overwritten.moving", ".overwritten.dropped"
_NAMES = {_OLD, _MOVING, _DROPPED}


def content(path: pathlib.Path) -> list[pathlib.Path]:
    """All that is there, but for the lock and what is aside."""
    return [one for one in path.iterdir() if one.name not in {LOCK, *_NAMES}]


def is_begun(path: pathlib.Path) -> bool:
    """Whether there is something that `settle` has to finish."""
    return any((path / name).exists() for name in _NAMES)


def set_aside(path: pathlib.Path) -> None:
    """Moves all that is there aside; nothing new may be written before."""
    if old := content(path):
        (path / _MOVING).mkdir()
        _move(old, path / _MOVING)
        (path / _MOVING).rename(path / _OLD)


def drop(path: pathlib.Path) -> None:
    """Deletes what is aside, if anything; what cannot be deleted now is at the next start."""
    if (path / _OLD).exists():
        (path / _OLD).rename(path / _DROPPED)
        shutil.rmtree(path / _DROPPED, ignore_errors=True)


def put_back(path: pathlib.Path) -> bool:
    """Brings back what is aside, in place of what is new; whether there was any."""
    if (path / _OLD).exists():
        # The curve first, by which `settle` knows a new run that stays.
        for one in sorted(content(path), key=lambda one: one.name != CURVE):
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        (path / _OLD).rename(path / _MOVING)
    if not (path / _MOVING).exists():
        return False
    _move((path / _MOVING).iterdir(), path)
    (path / _MOVING).rmdir()
    return True


def settle(path: pathlib.Path) -> str:
    """Finishes what a process that was killed had begun.

    Returns:
        What became of the old run, in one line; "" if nothing was begun.
    """
    if (path / _DROPPED).exists():
        shutil.rmtree(path / _DROPPED, ignore_errors=True)
        return "what was left of a run that --overwrite has replaced is deleted"
    if (path / _OLD).exists() and can_go_on(path):
        drop(path)
        return "the run that --overwrite set aside is deleted; the new one was evaluated and saved"
    return BACK if put_back(path) else ""


BACK = "the run that --overwrite set aside is back; the new one was not far enough to go on"


def can_go_on(path: pathlib.Path) -> bool:
    """Whether the run that is there has been evaluated, and has a checkpoint to go on from."""
    is_evaluated = (path / CURVE).exists() and b"\n" in (path / CURVE).read_bytes()
    return is_evaluated and any(one.name.isdecimal() for one in path.glob("checkpoints/*"))


def _move(entries: Iterable[pathlib.Path], folder: pathlib.Path) -> None:
    """Renames, and never over something that is there."""
    for one in list(entries):
        if (folder / one.name).exists():
            raise FileExistsError(
                errno.EEXIST, f"{folder / one.name} is in the way of {one}, move one of them"
            )
        one.rename(folder / one.name)
