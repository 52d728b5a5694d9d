"""Files that are complete or absent: written under a temporary name, then renamed."""

import codecs
import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from .errors import InputError

Result = TypeVar("Result")
FULL_DISK_MESSAGES = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""The system's messages for a full disk and for a used-up quota."""
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Byte order marks, and what stands behind them."""
PARTIAL_PREFIX = ".partial-"
"""Prefix of the names of unfinished files and folders."""


def must_be_new(path: Path) -> None:
    """Raises InputError if `path`, to which a command is to write, exists or can't be made.

    To be called before the work whose results go there: nothing that a command hasn't written is ever replaced.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} exists, and isn't overwritten; name another path")
    must_be_makeable(path)


def must_be_makeable(path: Path) -> None:
    """Raises InputError if `path` is no folder and none can be made there. Leaves all as it was."""
    made = [missing for missing in (path, *path.parents) if not os.path.lexists(missing)]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be made: {getattr(error, 'strerror', None) or error}") from error
    finally:
        for folder in made:
            with suppress(OSError, ValueError):
                folder.rmdir()


@contextmanager
def whole(path: Path, *, replace_folder: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` for a file or folder, renamed to `path` when the block ends well.

    A file that stands at `path` is replaced; a folder only with `replace_folder`, for those who own it. If the block
    raises, nothing of it stays; if the process is killed, `sweep` removes what it left. Raises FileExistsError for a
    folder that may not be replaced, and OSError for a full disk, whatever the block raised for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _keep_folder(path, replace_folder)
    temporary = _aside(path)
    try:
        with _telling_full_disk(temporary.parent):
            yield temporary
        _keep_folder(path, replace_folder)
        if path.is_dir():
            remove(path)
        os.replace(temporary, path)
    finally:
        _delete(temporary)


def remove(folder: Path) -> None:
    """Delete a folder; it vanishes under its own name at once, so a half-deleted one is never taken for whole."""
    _delete(folder.rename(_aside(folder)))


def write_text(path: Path, text: str) -> None:
    """`text` as the whole content of `path`, in one rename."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_lines(lines: Iterable[Mapping[str, Any]]) -> str:
    """The text of a `.jsonl` file with these lines."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def parse_json_lines(data: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects in the bytes of a `.jsonl` file, and the numbers of the lines that hold none, counted from 1."""
    found, broken = [], []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif line.strip():
            broken.append(number)
    return found, broken


def write_new(path: Path, text: str) -> None:
    """As `write_text`, but of all who write `path` at once only the first does. Raises FileExistsError for others.

    Where the file system has no hard links, `path` is empty for a moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _aside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            path.touch(exist_ok=False)
            temporary.replace(path)
    finally:
        _delete(temporary)


def decoded(content: bytes) -> str:
    """The text in a file's bytes: UTF-8, or what a byte order mark says, with `\\n` for every line end.

    Raises ValueError that says what it looks like instead.
    """
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    encoding = MARKS.get(mark, "utf-8")
    try:
        text = io.TextIOWrapper(io.BytesIO(content[len(mark) :]), encoding).read()
    except UnicodeDecodeError as error:
        if mark or b"\0" in content:
            raise ValueError(f"it isn't text in {encoding.upper()}: {error.reason}") from error
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"it isn't text in UTF-8 (line {line} has the byte 0x{content[error.start]:02x}); if it is in Latin-1, "
            "`iconv -f latin1 -t utf-8` converts it"
        ) from error
    if text.count("\0") > len(text) // 4:
        raise ValueError("it looks like UTF-16 without a byte order mark; `iconv -f utf-16le -t utf-8` converts it")
    return text


def leave_lost_directory() -> None:
    """Go to the root if the working directory is no more: libraries that look for their files would end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def is_full(error: BaseException) -> bool:
    """Whether an error tells of a disk without room."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_free(folder: Path, size: int) -> None:
    """Raises the OSError of a full disk if that of `folder` has less than `size` bytes free."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed and {free} free", str(folder))


def when_there_is_room(
    write: Callable[[], Result], seconds: float, waiting: Callable[[BaseException], None], given_up: Callable[[], bool]
) -> Result:
    """The result of `write`. While the disk is full, it is retried, for `seconds` or until `given_up`.

    `waiting` is called with the error before each wait. Raises the OSError of the last attempt.
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_full),
        wait=tenacity.wait_exponential(max=10),
        stop=lambda state: given_up() or tenacity.stop_after_delay(seconds)(state),
        before_sleep=lambda state: waiting(state.outcome.exception()),  # type: ignore[arg-type, union-attr]
        reraise=True,
    )(write)


def sweep(folder: Path) -> None:
    """Delete what killed processes left unfinished anywhere below `folder`."""
    for path in sorted(folder.rglob(f"{PARTIAL_PREFIX}*")):
        _delete(path)


@contextmanager
def _telling_full_disk(folder: Path) -> Iterator[None]:
    """What is raised inside because the disk of `folder` is full, as an OSError: PyTorch and safetensors have errors of
    their own for it."""
    try:
        yield
    except Exception as error:
        if not is_full(error) and (
            any(told in str(error) for told in FULL_DISK_MESSAGES) or shutil.disk_usage(folder).free < 2**16
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _keep_folder(path: Path, replace: bool) -> None:
    if path.is_dir() and not replace:
        raise FileExistsError(errno.EEXIST, "a folder is there, and isn't replaced", str(path))


def _aside(path: Path) -> Path:
    return path.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
