"""The originals that detectors are compared with: torchvision's in eager torch, and GluonCV's in MXNet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.cpu_engines import EngineError, Job, timed

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".originals" / "bin" / "python"
#: A pixel whose probability is so near one half is on either side of it.
TIE = 1e-5


class Torchvision:
    """A torchvision detector with the weights of an exported program; ``job.path`` is ``NAME=FILE.pt2``."""

    def __init__(self, job: Job) -> None:
        import numpy as np
        import torch

        from controller.zoo import variants
        from targets.pt2_model import read

        torch.set_num_threads(job.threads)
        self._torch = torch
        name, _, path = job.path.partition("=")
        state = {key.removeprefix("dense."): value for key, value in read(Path(path)).load().state_dict.items()}
        size = variants.parse(name, dict.fromkeys(("pasted", "raw", "boxes"), ""), sizes=(32, 4096)).size
        self._network = _made(name.partition("@")[0], size)
        self._network.load_state_dict(state)
        with np.load(job.given, allow_pickle=False) as arrays:
            self._picture = self._tensor(arrays["picture"])
        self.run(1)

    def run(self, queries: int) -> list[float]:
        with self._torch.inference_mode():
            return timed(lambda: self._network([self._picture]), queries)

    def detect(self, path: str) -> dict[str, Any]:
        """What it finds in a picture: labels count from 0 without the background."""
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays, self._torch.inference_mode():
            (found,) = self._network([self._tensor(arrays["picture"])])
        result = {name: found[name].numpy() for name in ("boxes", "scores")} | {"labels": found["labels"].numpy() - 1}
        if "masks" in found:
            masks = found["masks"][:, 0].numpy()
            result |= {"masks": masks >= 0.5, "ties": np.abs(masks - 0.5) <= TIE}
        return result

    def facts(self) -> dict[str, Any]:
        return {}

    def _tensor(self, picture: Any) -> Any:
        return self._torch.from_numpy(picture).permute(2, 0, 1).float().div(255).contiguous()


def _made(name: str, size: tuple[int, int] | None) -> Any:
    import torchvision

    sizes = {} if name.startswith("ssd") else {"min_size": min(size or (800, 800)), "max_size": max(size or (800, 800))}
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes).eval()


class Mxnet:
    """A detector of GluonCV in a process of the environment that has it; ``job.path`` is ``NAME=FILE.params``."""

    def __init__(self, job: Job) -> None:
        self._originals = Originals(Path(job.folder))
        name, _, path = job.path.partition("=")
        self._originals.ask(do="load", network=name, params=path)
        self._given, self._folder = job.given, Path(job.folder)
        self.run(2)

    def run(self, queries: int) -> list[float]:
        found: list[float] = self._originals.ask(do="time", inputs=self._given, repeats=queries)["seconds"]
        return found

    def detect(self, path: str) -> dict[str, Any]:
        """What it finds in a prepared picture."""
        import numpy as np

        answer = str(self._folder / "mxnet.npz")
        self._originals.ask(do="run", inputs=path, outputs=answer)
        with np.load(answer, allow_pickle=False) as arrays:
            labels, scores, boxes = arrays["ids"][0, :, 0], arrays["scores"][0, :, 0], arrays["boxes"][0]
        some = labels >= 0
        return {"labels": labels[some].astype(np.int64), "scores": scores[some], "boxes": boxes[some]}

    def facts(self) -> dict[str, Any]:
        return {}


class Originals:
    """The process of scripts/originals_gluon.py. Raises EngineError when it is not there, or says what is wrong."""

    def __init__(self, folder: Path) -> None:
        if not PYTHON.exists():
            raise EngineError("MXNet is not installed: make originals")
        with (folder / "originals.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(PYTHON), str(ROOT / "scripts" / "originals_gluon.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise EngineError("MXNet's process ended") from None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise EngineError(f"MXNet: {answer['error']}")
        return answer

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
