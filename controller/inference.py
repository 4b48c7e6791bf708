"""A release on a device, found by its model, and asked for its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agent import protocol as p
from targets.base import BundleError, FleetError, TensorSpec
from targets.bundle import Manifest, bundle_id, parse_manifest
from targets.defaults import WORKER_CALL_DEADLINE, WORKER_START_DEADLINE

if TYPE_CHECKING:
    from controller.session import Session
    from targets.base import Array


@dataclass(frozen=True, slots=True)
class Inference:
    session: Session
    bundle: str
    manifest: Manifest
    slot: str
    threads: int

    @classmethod
    async def of(cls, session: Session, model: str | None, *, slot: str, threads: int) -> Inference:
        """The release of ``model`` (None: the slot's). Raises FleetError ``not-deployed`` that says what there is."""
        release = await _release(session, model, slot)
        _, data = await session.connection.exchange(p.GetManifest(bundle=release.bundle), p.Done)
        if bundle_id(data) != release.bundle:
            raise BundleError(f"{session.device.name} sent another manifest than that of its release")
        return cls(session, release.bundle, parse_manifest(data), slot, threads or session.device.threads)

    async def __call__(self, inputs: Sequence[Array]) -> tuple[list[Array], float]:
        """The outputs for arrays as the manifest describes them, and the seconds the device took."""
        name = self.session.device.name
        asked = p.Infer(inputs=list(self.manifest.inputs), bundle=self.bundle, slot=self.slot, threads=self.threads)
        answer, payload = await self.session.connection.exchange(
            asked,
            p.Inferred,
            b"".join(each.tobytes() for each in inputs),
            timeout=WORKER_START_DEADLINE + WORKER_CALL_DEADLINE,
        )
        if tuple(answer.outputs) != self.manifest.outputs:
            raise BundleError(f"{name} gave other outputs than the manifest of {self.bundle[:12]} says")
        arrays: list[Array] = []
        offset = 0
        for spec in self.manifest.outputs:
            dtype = _dtype(spec)
            count = math.prod(spec.shape)
            if offset + count * dtype.itemsize > len(payload):
                raise BundleError(f"{name} sent less than its outputs")
            arrays.append(np.frombuffer(payload, dtype, count, offset).reshape(spec.shape))
            offset += count * dtype.itemsize
        return arrays, answer.seconds


def _dtype(spec: TensorSpec) -> np.dtype[np.generic]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise FleetError(f"'{spec.name}' has the type {spec.dtype}, which nobody knows", code="bad-dtype") from None


async def _release(session: Session, model: str | None, slot: str) -> p.ReleaseInfo:
    status = await session.connection.request(p.GetStatus(), p.Status)
    # The slot asked for first, then any other that has the model.
    for release in sorted(status.releases, key=lambda release: release.slot != slot):
        if release.model == model or (model is None and release.slot == slot):
            return release
    what = f"'{model}'" if model else f"a release in slot '{slot}'"
    has = ", ".join(sorted(release.model for release in status.releases))
    raise FleetError(
        f"{session.device.name} does not have {what}" + (f"; it has {has}" if has else ""),
        code="not-deployed",
        hint=f"deploy it first: `fleet deploy {model or 'MODEL'} --device {session.device.name}`",
    )
