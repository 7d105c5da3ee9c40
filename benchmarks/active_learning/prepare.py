"""Images and encoder weights for the benchmarks of active learning, in a folder.

CamVid (research use only) at 160 x 128, every second of its test images; and ImageNet's weights of EfficientNet-lite0,
from a package of the ``bench`` extra.

    python benchmarks/active_learning/prepare.py --data DATA --out CACHE
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import cv2
import segmentation_models_pytorch as smp
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from calibration_nets import ENCODER, pretrained_encoder

_SIZE = (160, 128)  # width and height


def prepare_camvid(source: Path, out: Path) -> None:
    """Resize images by area, masks by the nearest pixel."""
    for split in ("train", "val", "test"):
        for number, image in enumerate(sorted((source / "images" / split).glob("*.jpg"))):
            if split == "test" and number % 2:
                continue
            mask = source / "masks" / split / f"{image.stem}.png"
            for kind, path, how in (("images", image, cv2.INTER_AREA), ("masks", mask, cv2.INTER_NEAREST)):
                target = out / kind / split / f"{image.stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                cv2.imwrite(str(target), cv2.resize(pixels, _SIZE, interpolation=how))
    shutil.copy(source / "classes.json", out / "classes.json")


def prepare_encoder(out: Path) -> None:
    """The encoder's state dict, as segmentation-models-pytorch names it."""
    encoder = smp.encoders.get_encoder(ENCODER, weights=None)
    missing, _ = encoder.load_state_dict(pretrained_encoder(), strict=False)
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"the pretrained encoder lacks {missing[0]}")
    torch.save(encoder.state_dict(), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid/")
    parser.add_argument("--out", type=Path, required=True)
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    prepare_camvid(told.data / "camvid", told.out / "camvid")
    prepare_encoder(told.out / "efficientnet_lite0.pt")
    print(f"prepared: {told.out}")


if __name__ == "__main__":
    main()
