"""Blobs as files over SFTP, into the folder from which a board's agent takes them in.

One request of writing is as large as the server allows and a few are on their way at once, in the order of the file: so
little of Python runs for each megabyte, and what lies there after a cut is the beginning of the blob.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent import protocol as p
from controller.printable import printable
from controller.session import Session
from targets.base import FleetError
from targets.waiting import within

if TYPE_CHECKING:
    from controller.links.ssh import SshLink

#: Files that are written at once: while the agent takes one in, others travel.
_FILES = 4
#: Requests of writing that are on their way, of all files together; each has 255 KiB where OpenSSH serves.
_REQUESTS = 6
#: Seconds after which a server that says nothing of a request has a disk that hangs.
_PATIENCE = 120.0
#: Bytes a second that the slowest memory card takes, and processor hashes.
_SLOWEST = 1 << 20
#: A smaller blob is sent sooner in one message than as a file, which takes four.
SMALLEST = 128 << 10


class NoFilesError(FleetError):
    """The board's SSH server lets nobody write files there; all else may work."""

    code = "no-sftp"


@dataclass(frozen=True, slots=True)
class File:
    """A blob to send: from where on, how many bytes it has, and where it lies on this machine."""

    sha256: str
    offset: int
    size: int
    path: str


def link_of(session: Session) -> SshLink | None:
    """The link by which files can be written for an agent that takes them in, if there is one."""
    welcome, link = session.connection.welcome, session.connection.link
    if (welcome.major, welcome.minor) < (1, 2) or not hasattr(link, "ssh"):
        return None
    return link  # type: ignore[return-value]


async def send(session: Session, link: SshLink, files: Sequence[File], sent: Callable[[str, int], None]) -> None:
    """Write files and have the agent make blobs of them.

    ``sent(sha256, bytes)`` is told what has arrived; less than 0 of what lay there and was of no use.

    Raises FleetError: `NoFilesError` before anything was sent, ``disk-full``, one of `session.CUT`, or the agent's.
    """
    async with _Sender.open(session, link, sent) as sender:
        waiting = iter(files)

        async def work() -> None:
            for file in waiting:
                await sender.file(file)

        workers = [asyncio.create_task(work()) for _ in range(min(_FILES, len(files)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


class _Sender:
    def __init__(self, session: Session, sftp: Any, folder: str, sent: Callable[[str, int], None]) -> None:
        self._session, self._sftp, self._folder, self._sent = session, sftp, folder, sent
        self._room = asyncio.Semaphore(_REQUESTS)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, session: Session, link: SshLink, sent: Callable[[str, int], None]) -> AsyncIterator[_Sender]:
        import asyncssh

        folder = f"{link.agent.home}/store/incoming"
        try:
            sftp = await within(_PATIENCE, link.ssh.connection.start_sftp_client())
        except (asyncssh.Error, OSError, asyncio.TimeoutError) as error:
            if link.ssh.lost or isinstance(error, asyncio.TimeoutError):
                raise _lost(session, error) from None
            raise NoFilesError(f"{session.device.name} has no SFTP: {_words(error)}") from None
        try:
            yield cls(session, sftp, folder, sent)
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise _lost(session, error) from None
        except (asyncssh.SFTPPermissionDenied, asyncssh.SFTPNoSuchFile) as error:
            raise NoFilesError(f"{folder} on {session.device.name}: {_words(error)}") from None
        except asyncssh.SFTPError as error:
            raise FleetError(
                f"{session.device.name} cannot write {folder}: {_words(error)}",
                code="disk-error",
                hint="see that the disk is healthy and can be written (dmesg, mount)",
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise _lost(session, error) from None
        finally:
            sftp.exit()

    async def file(self, file: File) -> None:
        """Send the rest of a file and have it taken in."""
        await self._write(file, file.offset)
        try:
            await self._import(file)
        except FleetError as error:
            if error.code not in ("bad-digest", "incomplete") or not file.offset:
                raise
            # What lay there from an earlier push was not what was sent: a power cut leaves such files.
            self._sent(file.sha256, -file.offset)
            await self._write(file, 0)
            await self._import(file)

    async def _import(self, file: File) -> None:
        await self._session.connection.request(
            p.ImportBlob(token=self._session.token, sha256=file.sha256, total=file.size),
            p.ChunkStored,
            timeout=_PATIENCE + file.size / _SLOWEST,
        )

    async def _write(self, file: File, offset: int) -> None:
        import asyncssh

        if offset == file.size and offset:
            return
        remote = f"{self._folder}/{file.sha256}"
        handle = await self._opened(remote, offset)
        try:
            await self._fill(handle, file, offset)
        except asyncssh.SFTPConnectionLost:
            raise
        except asyncssh.SFTPError as error:
            # SFTP has no word for a full disk that OpenSSH would use.
            status = await self._session.connection.request(p.GetStatus(), p.Status)
            if isinstance(error, asyncssh.SFTPFailure) and status.free_bytes < file.size - offset:
                with contextlib.suppress(asyncssh.Error):
                    await handle.close()
                    # The board needs its last bytes more than a later push needs these.
                    await self._sftp.remove(remote)
                raise no_room(self._session, file.size - offset, status.free_bytes) from None
            raise
        await handle.close()

    async def _opened(self, remote: str, offset: int) -> Any:
        """A file to write to: a new one, or the one that is there when it goes on."""
        import asyncssh

        if offset:
            return await self._sftp.open(remote, asyncssh.FXF_WRITE, encoding=None, block_size=0)
        # Never through a link that somebody has put in its place.
        flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
        try:
            return await self._sftp.open(remote, flags, encoding=None, block_size=0)
        except asyncssh.SFTPFailure:
            await self._sftp.remove(remote)
        return await self._sftp.open(remote, flags, encoding=None, block_size=0)

    async def _fill(self, handle: Any, file: File, offset: int) -> None:
        most = self._sftp.limits.max_write_len
        writes: set[asyncio.Task[None]] = set()
        descriptor = os.open(file.path, os.O_RDONLY)
        try:
            while offset < file.size:
                await self._in_time(self._room.acquire())
                data = os.pread(descriptor, min(most, file.size - offset), offset)
                if not data:
                    self._room.release()
                    raise FleetError(f"blob {file.sha256[:12]} has changed on this machine", code="bad-bundle")
                write = asyncio.create_task(self._request(handle, data, offset, file.sha256))
                write.add_done_callback(lambda _: self._room.release())
                writes.add(write)
                offset += len(data)
                for done in [write for write in writes if write.done()]:
                    writes.discard(done)
                    done.result()
            await self._in_time(asyncio.gather(*writes))
        finally:
            os.close(descriptor)
            for write in writes:
                write.cancel()
            await asyncio.gather(*writes, return_exceptions=True)

    async def _request(self, handle: Any, data: bytes, offset: int, sha256: str) -> None:
        await handle.write(data, offset)
        self._sent(sha256, len(data))

    async def _in_time(self, work: Awaitable[Any]) -> None:
        """Wait for one of the last few requests, or all of them."""
        try:
            await within(_PATIENCE, work)
        except asyncio.TimeoutError:
            raise FleetError(
                f"{self._session.device.name} has not stored a piece of a file for {_PATIENCE:.0f} s", code="timeout"
            ) from None


def no_room(session: Session, needed: int, free: int) -> FleetError:
    return FleetError(
        f"there is no room on {session.device.name}: {needed} bytes are to be stored, {free} are free",
        code="disk-full",
        hint="free some space there, then try again: nothing was lost",
    )


def _lost(session: Session, error: BaseException) -> FleetError:
    return FleetError(f"the SSH connection to {session.device.name} is gone: {_words(error)}", code="connection-lost")


def _words(error: BaseException) -> str:
    return printable(getattr(error, "reason", "") or str(error) or type(error).__name__)
