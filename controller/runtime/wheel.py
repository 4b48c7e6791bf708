"""Writing wheels (PyPA's binary distribution format): the same bytes for the same content."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The oldest time that a zip can say.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Wheel:
    """``name`` is the distribution's; ``tag`` such as ``cp311-cp311-manylinux_2_28_armv7l``."""

    name: str
    version: str
    tag: str
    summary: str
    requires: Sequence[str] = ()
    requires_python: str = ""

    @property
    def stem(self) -> str:
        """What its files begin with: PEP 427 knows no hyphens in names."""
        return f"{self.name.replace('-', '_')}-{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.stem}-{self.tag}.whl"

    def write(self, out: Path, files: Iterable[tuple[str, bytes]], licences: Iterable[tuple[str, bytes]] = ()) -> Path:
        """Write it into the folder ``out`` with ``files`` as (path inside, content); the path of the wheel."""
        information = f"{self.stem}.dist-info"
        content = [*files, *((f"{information}/licenses/{name}", text) for name, text in licences)]
        content.append((f"{information}/METADATA", self._metadata().encode()))
        tags = f"Wheel-Version: 1.0\nGenerator: fleet-edge\nRoot-Is-Purelib: false\nTag: {self.tag}\n"
        content.append((f"{information}/WHEEL", tags.encode()))
        record = [f"{name},sha256={_hash(data)},{len(data)}\n" for name, data in content]
        record.append(f"{information}/RECORD,,\n")
        content.append((f"{information}/RECORD", "".join(record).encode()))
        out.mkdir(parents=True, exist_ok=True)
        path = out / self.file_name
        temporary = path.with_name(f".{path.name}")
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content:
                entry = zipfile.ZipInfo(name, _TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if ".so" in Path(name).suffixes else 0o644) << 16
                archive.writestr(entry, data, compresslevel=9)
        temporary.replace(path)
        return path

    def _metadata(self) -> str:
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}", f"Summary: {self.summary}"]
        lines += [f"Requires-Python: {self.requires_python}"] if self.requires_python else []
        lines += [f"Requires-Dist: {one}" for one in self.requires]
        return "\n".join(lines) + "\n"


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
