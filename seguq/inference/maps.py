"""What an estimator answers: probabilities, named maps of uncertainty, scores of images, features, and image ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
_MAP, _SCORE = "map/", "image_score/"


class ImageScores(dict[str, Tensor]):
    """Scores of whole images by name, ``(B,)`` each; a name that is not there is a KeyError that says who has it."""

    estimator: str = "estimator"

    def __missing__(self, name: str) -> Tensor:
        raise KeyError(explain_missing(name, self.estimator, tuple(self)))


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
        image_scores: scores of whole images by name, ``(B,)`` each, in which larger is more uncertain, too.
        features: the encoder's last map, ``(B, D, *spatial)`` of a size of its own; None: there is none.

    Attributes:
        image_scores: scores of whole images by name, such as ``image_scores["pairwise_dice"]``, ``(B,)``; only those
            that the estimator was asked for.
        features: what the network's encoder makes of the images, ``(B, D, *spatial)`` float16, where the estimator was
            made with ``features=``; None elsewhere.

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
        image_scores: Mapping[str, Tensor] | None = None,
        features: Tensor | None = None,
    ) -> None:
        self._probs = probs
        self._prediction = prediction
        self._maps = dict(maps)
        self.image_ids = tuple(str(image_id) for image_id in image_ids)
        self.estimator = estimator
        self.multilabel = multilabel
        self.image_scores: Mapping[str, Tensor] = ImageScores(image_scores or {})
        self.image_scores.estimator = estimator
        self.features = features
        if probs is None and (prediction is None or num_classes is None):
            raise SeguqError("maps without probs need prediction= and num_classes=")
        self.num_classes = int(probs.shape[1]) if probs is not None else int(num_classes or 0)
        if probs is not None and len(probs) != len(self.image_ids):
            raise SeguqError(f"probs hold {len(probs)} images, but there are {len(self.image_ids)} image ids")
        others = {f"map {name!r}": values for name, values in self._maps.items()}
        others |= {f"the image score {name!r}": values for name, values in self.image_scores.items()}
        others |= {} if features is None else {"the tensor of features": features}
        for name, values in others.items():
            if len(values) != len(self.image_ids):
                raise SeguqError(f"{name} holds {len(values)} images, but there are {len(self.image_ids)} image ids")

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
        """Bytes of the maps, of the prediction, and of the probabilities and features where they are there."""
        tensors = [*self._maps.values(), *self.image_scores.values(), self.prediction]
        tensors += [tensor for tensor in (self._probs, self.features) if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def __getitem__(self, name: str) -> Tensor:
        """The map of a measure, ``(B, *spatial)``.

        Raises:
            KeyError: if the estimator did not compute it, saying which estimators have it.
        """
        if name in self.image_scores:
            raise KeyError(f"{name!r} is no map, but one score for each whole image: maps.image_scores[{name!r}]")
        if name not in self._maps:
            raise KeyError(explain_missing(name, self.estimator, self.names))
        return self._maps[name]

    def __contains__(self, name: object) -> bool:
        return name in self._maps

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        shape = tuple(self.prediction.shape)
        parts = [f"maps {', '.join(self.names)}"]
        parts += [f"image scores {', '.join(self.image_scores)}"] if self.image_scores else []
        parts += [] if self.features is None else [f"features {tuple(self.features.shape)}"]
        return f"UncertaintyMaps({self.estimator}, prediction {shape}, {self.num_classes} classes, {', '.join(parts)})"

    def split(self) -> list[UncertaintyMaps]:
        """The maps of each image by itself."""
        _ = self.prediction  # found once, for all

        def alone(i: int) -> UncertaintyMaps:
            return self._each(lambda values: values[i : i + 1], self.image_ids[i : i + 1])

        return [alone(i) for i in range(len(self))]

    def _each(self, change: Callable[[Tensor], Tensor], image_ids: tuple[str, ...]) -> UncertaintyMaps:
        """The same of changed tensors."""
        return UncertaintyMaps(
            None if self._probs is None else change(self._probs),
            {name: change(values) for name, values in self._maps.items()},
            image_ids,
            self.estimator,
            prediction=None if self._prediction is None else change(self._prediction),
            num_classes=self.num_classes,
            multilabel=self.multilabel,
            image_scores={name: change(values) for name, values in self.image_scores.items()},
            features=None if self.features is None else change(self.features),
        )

    def require_finite(self) -> None:
        """Raise where a probability, map, score or feature is NaN or infinite, as after a training that has diverged.

        Raises:
            SeguqError: with the id of the first such image.
        """
        named = {"probs": self._probs, **self._maps, **self.image_scores, "features": self.features}
        for name, values in named.items():
            if values is None:
                continue
            finite = values.isfinite().unsqueeze(-1).flatten(1).all(1)
            if not bool(finite.all()):
                image_id = self.image_ids[int(finite.logical_not().nonzero()[0])]
                raise SeguqError(
                    f"{name} of image {image_id!r} holds NaN or infinite values: the model's logits are not finite, as "
                    "its weights have diverged, or the image holds such values"
                )

    def resized(self, size: tuple[int, int]) -> UncertaintyMaps:
        """The same of 2-D images at another size (height, width): bilinear, the prediction by the largest probability.

        Without probabilities the prediction is that of the nearest pixel. Features stay at their own size.
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
            image_scores=self.image_scores,
            features=self.features,
        )

    def to(self, device: torch.device | str) -> UncertaintyMaps:
        """The same maps on another device."""
        return self._each(lambda values: values.to(device), self.image_ids)

    def cpu(self) -> UncertaintyMaps:
        """The same maps in main memory."""
        return self.to("cpu")

    def save(self, path: str | os.PathLike[str], *, probs: bool = True) -> None:
        """Write everything to one ``.npz`` file.

        Maps, scores and probabilities are float32, features float16, the prediction the smallest integers that hold it.

        Args:
            path: the file, written as a whole.
            probs: whether to keep the probabilities, which take C times the room of a map.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise UsageError(f"maps are saved as .npz, not as {path.name!r}")
        small = np.uint8 if self.num_classes <= 256 else np.uint16
        tensors = {f"{_MAP}{name}": values for name, values in self._maps.items()}
        tensors |= {f"{_SCORE}{name}": values for name, values in self.image_scores.items()}
        arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
            name: values.detach().float().cpu().numpy() for name, values in tensors.items()
        }
        if self.features is not None:
            arrays["features"] = self.features.detach().half().cpu().numpy()
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
                name: torch.from_numpy(_of_kind(content[name], "f", name))
                for name in content
                if name.startswith((_MAP, _SCORE)) or name in ("probs", "features")
            }
            found = cls(
                floats.get("probs"),
                {name.removeprefix(_MAP): values for name, values in floats.items() if name.startswith(_MAP)},
                [str(image_id) for image_id in _of_kind(content["image_ids"], "U", "image_ids")],
                str(content["estimator"]),
                prediction=torch.from_numpy(prediction),
                num_classes=num_classes,
                multilabel=bool(multilabel),
                image_scores={
                    name.removeprefix(_SCORE): values for name, values in floats.items() if name.startswith(_SCORE)
                },
                features=floats.get("features"),
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
        scores = {name: tuple(values.shape) for name, values in self.image_scores.items()}
        wrong = next((name for name, shape in scores.items() if len(shape) != 1), None)
        if wrong is not None:
            raise ValueError(f"{wrong} is of shape {scores[wrong]}, where one number for each image is due")
        if self.features is not None and self.features.ndim != 2 + len(self.spatial):
            raise ValueError(f"features of shape {tuple(self.features.shape)} do not go with maps of {expected}")
        if self.prediction.numel():
            low, high = (int(value) for value in self.prediction.aminmax())
            if low < 0 or high >= max(self.num_classes, 2):
                raise ValueError(f"a prediction of class {low if low < 0 else high} is none of {self.num_classes}")


def _of_kind(array: np.ndarray[Any, Any], kinds: str, name: str) -> np.ndarray[Any, Any]:
    """An array of a type whose letter in numpy is one of some."""
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} is of type {array.dtype}")
    return array
