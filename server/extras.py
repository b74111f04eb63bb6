"""What the rows of a specialised UNet have beside a latent: further channels of its input, and class labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from server.rows import Call, Layout
    from server.work import Work

Array: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int32]


class Extras:
    """Writes what the jobs of a bucket bring, once for all calls of the same rows.

    Args:
        shape: (channels, height, width) of a latent.
        channels: that follow the latent's in the UNet's input.
        labelled: whether the UNet takes class labels.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int, labelled: bool) -> None:
        self._latent = shape
        self._shape = channels, *shape[1:]
        self._labelled = labelled
        self._sample: Array = np.zeros((0, shape[0] + channels, *shape[1:]), np.float32)
        self._labels: Labels = np.zeros(0, np.int32)
        self._layout: Layout | None = None
        self._slots = b""

    def check(self, work: Work) -> None:
        """Refuse what does not fit; the compiled passes would not notice.

        Raises:
            RuntimeError: it has another shape, is missing, or is nothing that this UNet takes.
        """
        extra = (0, *self._latent[1:]) if work.extra is None else work.extra.shape
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"extra": (extra, self._shape)}
        if work.start is not None:
            shapes["start"] = work.start.shape, self._latent
        if work.blend is not None:
            shapes["blend.mask"] = work.blend.mask.shape, self._latent[1:]
            shapes["blend.clean"] = work.blend.clean.shape, self._latent
            shapes["blend.noise"] = work.blend.noise.shape, self._latent
        for name, (came, taken) in shapes.items():
            if came != taken:
                raise RuntimeError(
                    f"{name} of the job is {list(came)}, its bucket takes {list(taken)}: "
                    "only jobs of one UNet and size may share a bucket"
                )
        if (work.label is not None) != self._labelled:
            taken_label = "one" if self._labelled else "none"
            raise RuntimeError(
                f"the class label of the job is {work.label}, its bucket takes {taken_label}: "
                "only jobs of one UNet and size may share a bucket"
            )

    def forget(self) -> None:
        """A job has come or gone: what was written may be another's."""
        self._layout = None

    def place(self, call: Call) -> tuple[Array, Labels | None]:
        """What the rows of a call have beside their latents; zeros in rows of padding.

        Returns:
            (padded rows, c + channels, h, w), the last channels written, the first to be; and the rows' class labels.
            Both are valid until the next call.
        """
        rows, slots = len(call.layout.owners), call.slots.tobytes()
        if len(self._sample) < rows:
            self._sample = np.zeros((rows, *self._sample.shape[1:]), np.float32)
            self._layout = None
        sample = self._sample[:rows]
        if self._layout is not call.layout or self._slots != slots:
            self._write(call, sample)
            self._layout, self._slots = call.layout, slots
        return sample, self._labels if self._labelled else None

    def _write(self, call: Call, sample: Array) -> None:
        owners = call.layout.owners
        works = [job.work for job in call.jobs]
        if self._shape[0]:
            for row, owner in enumerate(owners.tolist()):
                sample[row, self._latent[0] :] = works[owner].extra if owner >= 0 else 0
        if self._labelled:
            self._labels = np.array([*(work.label for work in works), 0], np.int32)[owners]
            # As for the context of a layout: what nobody can write to is copied to a GPU once.
            self._labels.flags.writeable = False
