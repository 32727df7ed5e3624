"""A directory as an object store: one file an object, written so that neither a crash nor a race leaves half of one.

    put, create     temporary file -> fsync -> rename over the name             -> fsync of the folder
    put_if_absent   temporary file -> fsync -> hard link (refuses a taken name) -> fsync of the folder

Temporary files lie in ``.stagecoach-tmp`` of the same directory, which holds no objects. A symbolic link inside is no
object: listings leave it out, and a key that leads through one is refused, so that no key leaves the directory.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from stagecoach.errors import ConfigError, CorruptObjectError, ObjectMissing, StoreDenied, StoreUnavailable
from stagecoach.storage.base import (
    DEFAULT_CONTENT_TYPE,
    ObjectInfo,
    UnfinishedUpload,
    Write,
    Writing,
    utf8_order,
    validate_folder,
    validate_key,
    validate_prefix,
)
from stagecoach.storage.transfer import DISK_FULL_ERRNOS, new_local_file, write_all

TEMPORARY = ".stagecoach-tmp"
_COPY_BYTES = 4 * 1024 * 1024
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINK = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_NO_OBJECT = (FileNotFoundError, NotADirectoryError)


class LocalStore:
    """Objects as files below one directory, which is made by the first put."""

    def __init__(self, root: Path) -> None:
        """Open the directory; it need not exist yet."""
        self.root = root.expanduser().resolve()
        self.url = f"file://{self.root}"

    def head(self, key: str) -> ObjectInfo | None:
        """See ``ObjectStore.head``."""
        with self._errors(key):
            try:
                status = os.lstat(self._path(key))
            except _NO_OBJECT:
                return None
        return _info(key, status) if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list``."""
        folder = validate_prefix(prefix).rpartition("/")[0]
        yield from self._walk(f"{folder}/" if folder else "", prefix, start_after)

    def list_folders(self, prefix: str) -> Iterator[str]:
        """See ``ObjectStore.list_folders``."""
        for key in self._entries(validate_folder(prefix)):
            # a folder that a delete or a killed put left empty does not exist for S3, so it does not exist here
            if key.endswith("/") and any(True for _ in self._walk(key, key, "")):
                yield key[len(prefix) : -1]

    def get(self, key: str) -> bytes:
        """See ``ObjectStore.get``."""
        with self._errors(key), os.fdopen(self._open(key), "rb", buffering=0) as stream:
            return stream.readall()

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """See ``ObjectStore.get_range``."""
        with self._errors(key), os.fdopen(self._open(key), "rb", buffering=_COPY_BYTES) as stream:
            stream.seek(start)
            data = stream.read(size_bytes)
        if len(data) != size_bytes:
            raise CorruptObjectError(
                f"{self.url}/{key}: expected {size_bytes} bytes from byte {start} on, the object ends after {len(data)}"
            )
        return data

    def get_file(self, key: str, path: Path, *, on_bytes: Callable[[memoryview], None] | None = None) -> None:
        """See ``ObjectStore.get_file``."""
        with self._errors(key):
            source = self._open(key)
        try:
            with new_local_file(path) as target:
                offset = 0
                for view in self._chunks(key, source):
                    write_all(target, view, offset, path)
                    offset += len(view)
                    if on_bytes is not None:
                        on_bytes(view)
        finally:
            os.close(source)

    def local_path(self, key: str) -> Path | None:
        """See ``ObjectStore.local_path``.

        Raises:
            ObjectMissing: There is no such object.
        """
        if self.head(key) is None:
            raise ObjectMissing(self.url, key, "no such object")
        return Path(self._path(key))

    def put(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> None:
        """See ``ObjectStore.put``."""
        with self._errors(key), self._temporary(key) as (temporary, descriptor):
            _write(descriptor, data)
            os.fsync(descriptor)
            self._place(key, lambda path: os.replace(temporary, path))

    def put_if_absent(self, key: str, data: bytes, *, content_type: str = DEFAULT_CONTENT_TYPE) -> bool:
        """See ``ObjectStore.put_if_absent``.

        Raises:
            ConfigError: The file system has no hard links, without which two writers cannot be told apart.
        """
        with self._errors(key), self._temporary(key) as (temporary, descriptor):
            _write(descriptor, data)
            os.fsync(descriptor)
            try:
                self._place(key, lambda path: os.link(temporary, path, follow_symlinks=False))
            except FileExistsError:
                if os.path.isdir(self._path(key)):
                    raise
                # over NFS a link that was made can answer "exists" when its first answer was lost; the count tells
                return os.fstat(descriptor).st_nlink > 1
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                raise ConfigError(
                    f"{self.url}: a store directory needs a file system with hard links, this one refuses them"
                    f" ({error.strerror}); choose another directory or an s3:// store"
                ) from error
            return True

    @contextmanager
    def create(self, key: str) -> Iterator[Write]:
        """See ``ObjectStore.create``."""
        with ExitStack() as ends:
            with self._errors(key):
                temporary, descriptor = ends.enter_context(self._temporary(key))

            def write(data: bytes | memoryview) -> None:
                with self._errors(key):
                    _write(descriptor, data)

            writing = Writing(write)
            yield writing
            writing.check()
            with self._errors(key):
                os.fsync(descriptor)
                self._place(key, lambda path: os.replace(temporary, path))

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore.put_file``."""
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._errors(key), self._temporary(key) as (temporary, descriptor):
                _copy(source, descriptor)
                os.fsync(descriptor)
                self._place(key, lambda target: os.replace(temporary, target))
        finally:
            os.close(source)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore.delete``; folders that become empty go too."""
        touched: set[str] = set()
        for key in keys:
            with self._errors(key), suppress(*_NO_OBJECT, IsADirectoryError):
                path = self._path(key)
                os.unlink(path)
                touched.add(os.path.dirname(path))
        for folder in touched:
            # Emptying one folder can remove another of them together with their common parents.
            with self._errors(""), suppress(*_NO_OBJECT):
                _sync_folder(folder)
                self._remove_empty(folder)

    def unfinished(self) -> Iterator[UnfinishedUpload]:
        """See ``ObjectStore.unfinished``; a temporary file does not know its key."""
        with self._errors(""), suppress(*_NO_OBJECT), os.scandir(self.root / TEMPORARY) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    yield UnfinishedUpload("", entry.name, entry.stat(follow_symlinks=False).st_mtime)

    def discard(self, upload: UnfinishedUpload) -> None:
        """See ``ObjectStore.discard``."""
        with self._errors(""):
            (self.root / TEMPORARY / Path(upload.upload_id).name).unlink(missing_ok=True)

    def _path(self, key: str) -> str:
        """Return the file of a valid key, refusing one that leads through a symbolic link."""
        parts = validate_key(key).split("/")
        if parts[0] == TEMPORARY:
            raise ConfigError(f"{self.url}/{key}: keys below {TEMPORARY} are the store's own; choose another name")
        path = str(self.root)
        for part in parts:
            path = f"{path}/{part}"
            if os.path.islink(path):
                raise StoreDenied(self.url, key, f"{path} is a symbolic link, which may lead anywhere; remove it")
        return path

    def _open(self, key: str) -> int:
        descriptor = os.open(self._path(key), _READ_FLAGS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "not a file")
        return descriptor

    def _chunks(self, key: str, descriptor: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_COPY_BYTES))
        while True:
            with self._errors(key):
                count = os.readv(descriptor, [buffer])
            if count == 0:
                return
            yield buffer[:count]

    @contextmanager
    def _temporary(self, key: str) -> Iterator[tuple[str, int]]:
        """Open a temporary file on the store's own disk and remove its name in the end."""
        self._path(key)
        temporary = f"{self._temporary_folder()}/{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield temporary, descriptor
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _temporary_folder(self) -> Path:
        folder = self.root / TEMPORARY
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in DISK_FULL_ERRNOS or self.root.is_dir():
                raise
            raise ConfigError(
                f"store: the directory {self.root} cannot be made ({error.strerror}); choose another --store"
            ) from error
        return folder

    def _place(self, key: str, name: Callable[[str], None]) -> None:
        """Give a file its name in a folder that a delete elsewhere may remove at any moment."""
        path = self._path(key)
        folder = os.path.dirname(path)
        for _ in range(100):
            self._make_folder(folder)
            try:
                name(path)
                break
            except FileNotFoundError:
                continue
        else:
            raise StoreUnavailable(self.url, key, "its folder is removed again and again; stop what deletes it")
        with suppress(FileNotFoundError):
            _sync_folder(folder)

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it, each durable before something is put into it."""
        if os.path.isdir(folder):
            return
        parent = os.path.dirname(folder)
        self._make_folder(parent)
        with suppress(FileExistsError, FileNotFoundError):
            os.mkdir(folder)
            _sync_folder(parent)
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, "an object has the name of a folder", folder)

    def _remove_empty(self, folder: str) -> None:
        while folder.startswith(f"{self.root}/"):
            try:
                os.rmdir(folder)
            except OSError:
                return
            folder = os.path.dirname(folder)

    def _entries(self, folder: str) -> Sequence[str]:
        """Return the keys of the files and, with a final slash, of the folders right in ``folder``, in S3's order."""
        keys = []
        with self._errors(folder), suppress(*_NO_OBJECT):
            if folder:
                self._path(folder.rstrip("/"))
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        keys.append(f"{folder}{entry.name}/")
                    elif entry.is_file(follow_symlinks=False):
                        keys.append(f"{folder}{entry.name}")
        # "a-b" comes before "a/b": a folder sorts with its slash, as its keys do
        return sorted((key for key in keys if _is_key(key)), key=utf8_order)

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        after = utf8_order(start_after)
        for key in self._entries(folder):
            if key.endswith("/"):
                whole_folder_is_before = utf8_order(key) < after and not start_after.startswith(key)
                if (key.startswith(prefix) or prefix.startswith(key)) and not whole_folder_is_before:
                    yield from self._walk(key, prefix, start_after)
            elif key.startswith(prefix) and utf8_order(key) > after:
                with self._errors(key), suppress(*_NO_OBJECT):
                    yield _info(key, os.lstat(self.root / key))

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(key, error) from error

    def _translate(self, key: str, error: OSError) -> Exception:
        if error.errno in DISK_FULL_ERRNOS:
            return StoreUnavailable(
                self.url, key, "no space left on its disk; free some (stagecoach gc), then run again"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return StoreDenied(self.url, key, f"the system refuses access ({error.strerror}); check owner and mode")
        if error.errno == errno.ELOOP:
            return StoreDenied(self.url, key, "leads through a symbolic link; remove it")
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(self.url, key, "no such object")
        if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
            return ConfigError(
                f"{self.url}/{key}: an object and a folder cannot have one name in a directory; rename one"
            )
        return StoreUnavailable(self.url, key, f"the store's disk fails ({error.strerror}); check it and run again")


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectInfo(key, status.st_size, etag, status.st_mtime)


def _is_key(entry: str) -> bool:
    """Whether a file found in the directory can be an object: foreign files with impossible names are left out."""
    try:
        return not validate_prefix(entry).startswith(f"{TEMPORARY}/")
    except ConfigError:
        return False


def _write(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy(source: int, target: int) -> None:
    """Copy a whole file, inside the kernel and sharing blocks where system and file system can."""
    if hasattr(os, "copy_file_range"):
        try:
            while os.copy_file_range(source, target, 1 << 30):
                pass
            return
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                raise
        os.lseek(source, 0, os.SEEK_SET)
        os.lseek(target, 0, os.SEEK_SET)
    while piece := os.read(source, _COPY_BYTES):
        _write(target, piece)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
