"""What an estimator answers: probabilities, named maps of uncertainty, and the ids of the images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seguq.core.errors import SeguqError, UsageError
from seguq.core.files import whole_file
from seguq.core.reading import reading
from seguq.inference.measures import explain_missing

_SCHEMA_VERSION = 1


class UncertaintyMaps:
    """Probabilities and uncertainty maps of a batch of images.

    Every map is ``(B, *spatial)``, float, and larger means more uncertain.

    Args:
        probs: class probabilities ``(B, C, *spatial)``, calibrated where the estimator has a calibrator; for
            multilabel the probability of each label, ``(B, L, *spatial)``. None in maps that were saved without.
        maps: maps by name.
        image_ids: one id an image.
        estimator: the tag of the estimator that made them.
        prediction: class indices, where ``probs`` is None.
        num_classes: number of classes, where ``probs`` is None.
        multilabel: whether the channels of ``probs`` are independent labels.

    Example:
        >>> probs = torch.tensor([[[[0.75]], [[0.25]]]])
        >>> maps = UncertaintyMaps(probs, {"least_confidence": torch.tensor([[[0.25]]])}, ["an image"])
        >>> maps.names, maps.prediction.tolist()
        (('least_confidence',), [[[0]]])
    """

    def __init__(
        self,
        probs: Tensor | None,
        maps: Mapping[str, Tensor],
        image_ids: list[str] | tuple[str, ...],
        estimator: str = "estimator",
        *,
        prediction: Tensor | None = None,
        num_classes: int | None = None,
        multilabel: bool = False,
    ) -> None:
        self._probs = probs
        self._prediction = prediction
        self._maps = dict(maps)
        self.image_ids = tuple(str(image_id) for image_id in image_ids)
        self.estimator = estimator
        self.multilabel = multilabel
        if probs is None and (prediction is None or num_classes is None):
            raise SeguqError("maps without probs need prediction= and num_classes=")
        self.num_classes = int(probs.shape[1]) if probs is not None else int(num_classes or 0)
        if probs is not None and len(probs) != len(self.image_ids):
            raise SeguqError(f"probs hold {len(probs)} images, but there are {len(self.image_ids)} image ids")
        for name, values in self._maps.items():
            if len(values) != len(self.image_ids):
                raise SeguqError(
                    f"map {name!r} holds {len(values)} images, but there are {len(self.image_ids)} image ids"
                )

    @property
    def probs(self) -> Tensor:
        """Class probabilities, ``(B, C, *spatial)``.

        Raises:
            SeguqError: if the maps were saved without them.
        """
        if self._probs is None:
            raise SeguqError("these maps were saved without probabilities: predict again, keeping them")
        return self._probs

    @property
    def prediction(self) -> Tensor:
        """Predicted class, ``(B, *spatial)`` int64; for multilabel ``(B, L, *spatial)`` of 0 and 1."""
        if self._prediction is None:
            probs = self.probs
            self._prediction = (probs > 0.5).long() if self.multilabel else probs.max(1).indices  # argmax is slow
        return self._prediction

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size of each image: ``(H, W)``, or ``(D, H, W)`` of volumes."""
        return tuple(self.prediction.shape[2 if self.multilabel else 1 :])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the maps."""
        return tuple(self._maps)

    @property
    def nbytes(self) -> int:
        """Bytes of the maps, of the prediction, and of the probabilities where they are there."""
        tensors = [*self._maps.values(), self.prediction, *([] if self._probs is None else [self._probs])]
        return sum(tensor.nbytes for tensor in tensors)

    def __getitem__(self, name: str) -> Tensor:
        """The map of a measure, ``(B, *spatial)``.

        Raises:
            KeyError: if the estimator did not compute it, saying which estimators have it.
        """
        if name not in self._maps:
            raise KeyError(explain_missing(name, self.estimator, self.names))
        return self._maps[name]

    def __contains__(self, name: object) -> bool:
        return name in self._maps

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        shape = tuple(self.prediction.shape)
        names = ", ".join(self.names)
        return f"UncertaintyMaps({self.estimator}, prediction {shape}, {self.num_classes} classes, maps {names})"

    def split(self) -> list[UncertaintyMaps]:
        """The maps of each image by itself."""
        return [
            UncertaintyMaps(
                None if self._probs is None else self._probs[i : i + 1],
                {name: values[i : i + 1] for name, values in self._maps.items()},
                self.image_ids[i : i + 1],
                self.estimator,
                prediction=self.prediction[i : i + 1],
                num_classes=self.num_classes,
                multilabel=self.multilabel,
            )
            for i in range(len(self))
        ]

    def require_finite(self) -> None:
        """Raise where a probability or a map is NaN or infinite, as after a training that has diverged.

        Raises:
            SeguqError: with the id of the first such image.
        """
        probs = {} if self._probs is None else {"probs": self._probs}
        for name, values in {**probs, **self._maps}.items():
            finite = values.isfinite().flatten(1).all(1)
            if not bool(finite.all()):
                image_id = self.image_ids[int(finite.logical_not().nonzero()[0])]
                raise SeguqError(
                    f"{name} of image {image_id!r} holds NaN or infinite values: the model's logits are not finite, as "
                    "its weights have diverged, or the image holds such values"
                )

    def resized(self, size: tuple[int, int]) -> UncertaintyMaps:
        """The same of 2-D images at another size (height, width): bilinear, the prediction by the largest probability.

        Without probabilities the prediction is that of the nearest pixel.
        """
        if tuple(self.prediction.shape[-2:]) == tuple(size):
            return self

        def bilinear(values: Tensor) -> Tensor:
            return nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)

        prediction = None
        if self._probs is None:
            layers = self.prediction if self.multilabel else self.prediction[:, None]
            nearest = nn.functional.interpolate(layers.float(), size, mode="nearest-exact").long()
            prediction = nearest if self.multilabel else nearest[:, 0]
        return UncertaintyMaps(
            None if self._probs is None else bilinear(self._probs),
            {name: bilinear(values[:, None])[:, 0] for name, values in self._maps.items()},
            self.image_ids,
            self.estimator,
            prediction=prediction,
            num_classes=self.num_classes,
            multilabel=self.multilabel,
        )

    def to(self, device: torch.device | str) -> UncertaintyMaps:
        """The same maps on another device."""
        return UncertaintyMaps(
            None if self._probs is None else self._probs.to(device),
            {name: values.to(device) for name, values in self._maps.items()},
            self.image_ids,
            self.estimator,
            prediction=None if self._prediction is None else self._prediction.to(device),
            num_classes=self.num_classes,
            multilabel=self.multilabel,
        )

    def cpu(self) -> UncertaintyMaps:
        """The same maps in main memory."""
        return self.to("cpu")

    def save(self, path: str | os.PathLike[str], *, probs: bool = True) -> None:
        """Write everything to one ``.npz`` file (float32; the prediction as the smallest integers that hold it).

        Args:
            path: the file, written as a whole.
            probs: whether to keep the probabilities, which take C times the room of a map.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise UsageError(f"maps are saved as .npz, not as {path.name!r}")
        small = np.uint8 if self.num_classes <= 256 else np.uint16
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
            f"map/{name}": values.detach().float().cpu().numpy() for name, values in self._maps.items()
        }
        arrays["prediction"] = self.prediction.cpu().numpy().astype(small)
        if probs and self._probs is not None:
            arrays["probs"] = self._probs.detach().float().cpu().numpy()
        arrays["image_ids"] = np.array(self.image_ids, dtype=np.str_)
        arrays["estimator"] = np.array(self.estimator)
        arrays["meta"] = np.array([_SCHEMA_VERSION, self.num_classes, int(self.multilabel)], np.int64)
        with whole_file(path) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> UncertaintyMaps:
        """Read maps that `save` wrote.

        Raises:
            SeguqError: naming the file, if it is missing, damaged, or of another schema version.
        """
        with reading(path, "saved maps"):
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: arrays[name] for name in arrays.files}
            version, num_classes, multilabel = (int(value) for value in _of_kind(content["meta"], "iu", "meta"))
            if version != _SCHEMA_VERSION:
                raise SeguqError(f"{path} was written by another version of seguq (schema {version})")
            prediction = _of_kind(content["prediction"], "iu", "prediction").astype(np.int64)
            floats = {
                name: _of_kind(content[name], "f", name) for name in content if name.startswith(("map/", "probs"))
            }
            probs = floats.pop("probs", None)
            found = cls(
                None if probs is None else torch.from_numpy(probs),
                {name.removeprefix("map/"): torch.from_numpy(values) for name, values in floats.items()},
                [str(image_id) for image_id in _of_kind(content["image_ids"], "U", "image_ids")],
                str(content["estimator"]),
                prediction=torch.from_numpy(prediction),
                num_classes=num_classes,
                multilabel=bool(multilabel),
            )
            found._require_consistent()
            return found

    def _require_consistent(self) -> None:
        """Raise for what a file may hold, but no estimator gives."""
        shapes = {name: values.shape for name, values in self._maps.items()}
        shapes |= {"prediction": self.prediction.select(1, 0).shape if self.multilabel else self.prediction.shape}
        if self._probs is not None:
            shapes["probs"] = self._probs.select(1, 0).shape
        expected = (len(self.image_ids), *self.spatial)
        wrong = next((name for name, shape in shapes.items() if tuple(shape) != expected), None)
        if wrong is not None:
            raise ValueError(f"{wrong} is of shape {tuple(shapes[wrong])}, where {expected} is due")
        if self.prediction.numel():
            low, high = (int(value) for value in self.prediction.aminmax())
            if low < 0 or high >= max(self.num_classes, 2):
                raise ValueError(f"a prediction of class {low if low < 0 else high} is none of {self.num_classes}")


def _of_kind(array: np.ndarray[Any, Any], kinds: str, name: str) -> np.ndarray[Any, Any]:
    """An array of a type whose letter in numpy is one of some."""
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} is of type {array.dtype}")
    return array
