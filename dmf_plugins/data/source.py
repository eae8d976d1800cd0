"""Read-only view of a data set as downloaded: a folder, or its zip without extracting it."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from dmf_plugins.errors import DataError, UsageError
from dmf_plugins.paths import is_litter, read

MAX_FILE_BYTES = 256 * 1024**2  # a larger member is no ultrasound image but a zip bomb


class Source:
    """Files below a folder or inside a zip, by relative POSIX path.

    Args:
        path: existing folder or zip file.

    Raises:
        UsageError: ``path`` does not exist or is neither.
        DataError: the zip is damaged, or a folder cannot be listed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            # links are not followed into folders, so a loop cannot trap us
            names = [
                (Path(folder) / name).relative_to(self.path).as_posix()
                for folder, _, files in os.walk(self.path, onerror=_raise)
                for name in files
            ]
        elif self.path.is_file():
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(
                    f"{self.path} is not a readable zip ({error}); download it again, or give the "
                    "extracted folder"
                ) from error
            # some programs of Windows write backslashes, which the format does not allow
            members = [(name.replace("\\", "/"), name) for name in self._zip.namelist()]
            self._members = dict(members)
            names = [name for name, _ in members if not name.endswith("/")]
        else:
            raise UsageError(f"{self.path} does not exist; give the downloaded folder or zip")
        self.names = sorted(name for name in names if not is_litter(name))

    def where(self, name: str) -> str:
        """Full name of a file for messages."""
        return f"{self.path}{':' if self._zip else os.sep}{name}"

    def read(self, name: str) -> bytes:
        """Content of one file; raises ``DataError`` naming it when it cannot be read."""
        if self._zip is None:
            return read(self.path / name)
        try:
            name = self._members[name]
            if self._zip.getinfo(name).file_size > MAX_FILE_BYTES:
                raise DataError(f"{self.where(name)} unpacks to over {MAX_FILE_BYTES >> 20} MiB")
            return self._zip.read(name)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise DataError(f"cannot read {self.where(name)}: {error}") from error

    def close(self) -> None:
        """Close the zip, if it is one."""
        if self._zip is not None:
            self._zip.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _raise(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error
