"""Where a network's weights come from: what was committed, a download, a file, or a seed. Never guessed."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from targets.base import FleetError
from targets.files import READ_SIZE, TEMPORARY, disk_errors, make_directory

if TYPE_CHECKING:
    from controller.home import Home

MAX_FILE = 4 << 30
DOWNLOAD_TIMEOUT = 30.0
_SEED_BITS = 63
#: What training scripts wrap a state dict in.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


class WeightsError(FleetError):
    """Weights that cannot be had or do not fit."""

    code = "bad-weights"


@dataclass(frozen=True, slots=True)
class Weights:
    """A parsed ``--weights``: ``value`` is the path of a ``file`` or the seed of ``random``, else empty."""

    kind: Literal["own", "file", "random"]
    value: str = ""

    @property
    def said(self) -> str:
        """How an origin says it: ``random:0``, ``file:net.pth``."""
        return f"random:{self.value}" if self.kind == "random" else f"file:{Path(self.value).name}"

    @property
    def path(self) -> Path:
        return Path(self.value).expanduser()

    @property
    def seed(self) -> int:
        return int(self.value)


class Pretrained(NamedTuple):
    """A file of weights that is downloaded.

    ``digest`` is its SHA-256 in hex, or the first digits of it where nobody publishes more; of another algorithm after
    its name, ``sha1:5a4e…``. ``size`` is in bytes, 0 where nobody publishes it.
    """

    url: str
    digest: str
    size: int
    #: SPDX's name of the licence it is given under.
    licence: str = "BSD-3-Clause"


def parse(text: str, *, model: str, own: str | None, choices: str) -> Weights:
    """Read ``--weights``. ``own`` is the word for the network's own weights (``pretrained``, ``committed``), if any.

    Raises :class:`WeightsError`, with ``choices`` as its hint, for what is neither that word nor a file nor a seed.
    """
    if own is not None and text == own:
        return Weights("own")
    if text.startswith("random:"):
        seed = text.removeprefix("random:")
        if not (seed.isascii() and seed.isdigit()) or int(seed).bit_length() > _SEED_BITS:
            raise WeightsError(
                f"'{seed}' is not a seed for {model}: a whole number is needed", hint=f"choices: {choices}"
            )
        return Weights("random", str(int(seed)))
    if not text:
        raise WeightsError(f"{model} has no weights unless you choose some", hint=f"--weights {choices}")
    path = Path(text).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file"
        raise WeightsError(f"weights '{text}' for {model}: there {what} of this name", hint=f"choices: {choices}")
    return Weights("file", text)


def fetch(file: Pretrained, home: Home) -> Path:
    """A known file, as :func:`download` gets it."""
    return download(file.url, file.digest, file.size, home)


def download(url: str, digest: str, size: int, home: Home) -> Path:
    """The file at ``url``, from the cache or fetched into it; it is there only whole and with the right digest.

    ``digest`` and ``size`` are as in :class:`Pretrained`.

    Raises :class:`WeightsError` with code ``download-failed`` when it cannot be fetched.
    """
    import http.client
    import urllib.error
    import urllib.request

    folder = home.cache / "downloads"
    path = folder / url.rsplit("/", 1)[1]
    if path.is_file() and path.stat().st_size == (size or path.stat().st_size):
        return path
    algorithm, _, digits = digest.rpartition(":")
    algorithm, most = algorithm or "sha256", size or MAX_FILE

    def failed(why: object) -> WeightsError:
        return WeightsError(
            f"cannot download {url}: {why}",
            code="download-failed",
            hint="fetch the file where there is a network and give its path: --weights FILE",
        )

    with disk_errors(path.name):
        make_directory(folder)
    seen, fetched = hashlib.new(algorithm, usedforsecurity=False), 0
    with disk_errors(path.name), tempfile.NamedTemporaryFile(prefix=TEMPORARY, dir=folder, delete=False) as file:
        temporary = Path(file.name)
        try:
            try:
                reply = urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT)
            except urllib.error.HTTPError as error:
                raise failed(f"the server answers {error.code} {error.reason}") from None
            except (OSError, http.client.HTTPException) as error:
                raise failed(getattr(error, "reason", error)) from None
            with contextlib.closing(reply):
                while True:
                    try:
                        block = reply.read(READ_SIZE)
                    except (OSError, http.client.HTTPException) as error:
                        raise failed(error) from None
                    if not block:
                        break
                    fetched += len(block)
                    if fetched > most:
                        raise failed(f"it is longer than the {most} bytes it should have")
                    seen.update(block)
                    file.write(block)
            if fetched < size:
                raise failed(f"it ended after {fetched} of {size} bytes")
            if not seen.hexdigest().startswith(digits):
                name = {"sha1": "SHA-1", "sha256": "SHA-256"}.get(algorithm, algorithm)
                raise failed(f"its {name} is {seen.hexdigest()}, it should be {digits}")
            file.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def load_state(path: Path) -> dict[str, Any]:
    """The tensors of a PyTorch or MXNet weights file by name; nothing in the file is run.

    Raises :class:`WeightsError` for a file that is none, is damaged, or holds anything but tensors and plain values.
    """
    import torch

    from controller.zoo import mxnet_params

    if path.stat().st_size > MAX_FILE:
        raise WeightsError(f"{path} is larger than the {MAX_FILE >> 30} GiB that are read")
    if mxnet_params.is_params(path):
        try:
            return {name: torch.from_numpy(array) for name, array in mxnet_params.read(path).items()}
        except mxnet_params.ParamsError as error:
            raise WeightsError(f"{path} is no MXNet weights file, or it is damaged: {error}") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise WeightsError(f"{path} is no PyTorch weights file, or it is damaged") from None
        raise WeightsError(
            f"{path} holds pickled Python objects, which would run code from the file when loaded",
            hint="save the tensors alone: torch.save(network.state_dict(), path)",
        ) from None
    except Exception as error:
        # torch.load raises many kinds for what is no archive, or a damaged one.
        raise WeightsError(f"{path} is no PyTorch weights file, or it is damaged: {_first_line(error)}") from None
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(value, torch.Tensor) for value in found.values())
    ):
        raise WeightsError(
            f"{path} holds no state dict (names with tensors)", hint="torch.save(network.state_dict(), path)"
        )
    # What DataParallel puts before every name.
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def fit(network: Any, state: Mapping[str, Any], what: str) -> None:
    """Put a state dict into a network. Raises :class:`WeightsError` that names what is missing, extra or misshapen."""
    import torch

    wanted = network.state_dict()
    # Counts of training steps: old files lack them, and inference does not use them.
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    wrong = [f"lacks {name}" for name in wanted.keys() - state.keys() - optional]
    wrong += [f"has {name}, which the network does not" for name in state.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, the network's is {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        wrong.sort()
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsError(f"{what} does not fit: it {'; '.join(wrong[:3])}{more}")
    for name in wanted.keys() & state.keys():
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise WeightsError(f"{what} is damaged: {name} holds values that are no finite numbers")
    network.load_state_dict(state, strict=False)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
