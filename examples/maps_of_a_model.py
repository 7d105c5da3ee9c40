"""Uncertainty maps of a network that was made elsewhere, in a few lines.

Run it with a folder for the pictures: python examples/maps_of_a_model.py heat-maps
The network here has random weights, so its maps mean nothing yet; put your own in its place.
"""

import sys
from pathlib import Path

import segmentation_models_pytorch as smp

import seguq
from seguq.data import nuclei_mini
from seguq.export import Scale, heatmap, write_png

if sys.argv[1:2] in (["-h"], ["--help"]):
    print(__doc__)
    sys.exit()
out = Path(sys.argv[1] if len(sys.argv) > 1 else "heat-maps")

# any module that gives logits; one without dropout is given some, and best trained with it
model = smp.Unet("resnet18", encoder_weights=None, classes=2)
seguq.inject_dropout(model, p=0.2)

estimator = seguq.MCDropout(model, samples=5, seed=0, measures=["predictive_entropy", "mutual_information"])
loader = seguq.SegmentationData(nuclei_mini(), batch_size=2, num_workers=0).dataloader("val")
batch = next(iter(loader))
maps = estimator(batch["image"], batch["image_id"])

for i, image_id in enumerate(maps.image_ids):
    for name in maps.names:
        picture = heatmap(maps[name][i].numpy(), Scale(0.0, 0.7), f"{name.replace('_', ' ')} (nats)")
        write_png(out / name / f"{image_id}.png", picture)
        print(f"{image_id}: mean {name.replace('_', ' ')} {maps[name][i].mean():.3f} nats")
print(f"pictures in {out}")
