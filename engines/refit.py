"""Which weight of a graph, and of the plans made from it, a checkpoint's tensor became: what exchanging weights needs.

`<component>.weights.json` lies beside the exported graph. ONNX initializers and TensorRT's refittable weights have the
same names. Exchange always goes out from the checkpoint's own tensors, never from what an engine holds, so that
A -> B -> A gives back A.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.component import Precision
from engines.errors import ArtefactError, FeedError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Target:
    """A weight, and how it is made of a tensor: axes permuted, then reshaped, then cast.

    Attributes:
        tensor: as the network's state dict calls it, and so do diffusers folders.
        weight: as the graph and plans call it; a tensor may have become several.
        stored: the tensor's shape in the checkpoint.
        permutation: of the tensor's axes; empty leaves them.
        shape, dtype: of the weight.
    """

    tensor: str
    weight: str
    stored: tuple[int, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Precision

    def convert(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The weight, contiguous, of a tensor in any floating type; bf16 as its bits in uint16, for numpy has no bf16.

        Raises:
            FeedError: the tensor has another shape.
        """
        if array.shape != self.stored:
            raise FeedError(
                f"tensor {self.tensor!r} has shape {list(array.shape)}; this component was exported from "
                f"{list(self.stored)}, so give it a tensor of that shape or export the checkpoint anew"
            )
        moved = array.transpose(self.permutation) if self.permutation else array
        return np.ascontiguousarray(_cast(moved, self.dtype).reshape(self.shape))


@dataclass(frozen=True, slots=True)
class RefitMap:
    """The contents of `<component>.weights.json`.

    Attributes:
        absent: tensors of the network that the graph has no use for, such as the decoder's in a VAE encoder.
    """

    component: str
    targets: tuple[Target, ...]
    absent: tuple[str, ...] = ()

    def weights(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The weights to set, by name, for some or all tensors of a checkpoint.

        Raises:
            FeedError: a tensor is not one of this component's, or has another shape.
        """
        known = {target.tensor for target in self.targets}
        for name in tensors:
            if name not in known and name not in self.absent:
                close = difflib.get_close_matches(name, known, 1)
                raise FeedError(
                    f"{self.component} has no tensor {name!r}; names are those of the diffusers folder"
                    + (f", such as {close[0]!r}" if close else "")
                )
        return {t.weight: t.convert(tensors[t.tensor]) for t in self.targets if t.tensor in tensors}

    def write(self, path: Path) -> None:
        """As JSON, a line per weight."""
        head = json.dumps({"format": FORMAT, "component": self.component, "absent": self.absent})
        lines = ",\n".join(json.dumps(asdict(target)) for target in self.targets)
        path.write_text(f'{head[:-1]}, "targets": [\n{lines}\n]}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> RefitMap:
        """Raises ArtefactError where the file is missing, damaged, or of another version."""
        remedy = "run `python -m export` again"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ArtefactError(f"{path} was written by another version; {remedy}")
            targets = tuple(_target(entry) for entry in content["targets"])
            return cls(content["component"], targets, tuple(content["absent"]))
        except FileNotFoundError:
            raise ArtefactError(f"{path} does not exist; {remedy}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{path} is damaged ({error}); {remedy}") from error


def _target(entry: dict[str, Any]) -> Target:
    lists = {name: tuple(int(n) for n in entry[name]) for name in ("stored", "permutation", "shape")}
    return Target(**{**entry, **lists})


def _cast(array: npt.NDArray[Any], dtype: Precision) -> npt.NDArray[Any]:
    if dtype != "bf16":
        return array.astype(np.float16 if dtype == "fp16" else np.float32)
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    # To nearest, ties to even, as torch and ONNX round; the upper half of an fp32 number is a bf16 number.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
