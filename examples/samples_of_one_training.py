"""Ensembles for the price of one training: SWAG and snapshots, beside the network as it is.

Run it with a folder for what it writes: python examples/samples_of_one_training.py one-training
It trains the same network twice on the images that ship with seguq, once with each callback, prints the loss of
held-out images with an interval over images, and what each estimator loses or gains against one pass of the network
that it is made of. On so few images, and so short a training, differences of this size say little about other data.
"""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl

import seguq
from seguq.callbacks import SWAG, Snapshots
from seguq.data import nuclei_mini
from seguq.export import Scale, heatmap, write_png
from seguq.metrics import NegativeLogLikelihood


def trained(callback, out):
    pl.seed_everything(0)
    module = seguq.SegmentationTask("fpn", "mobilenet_v2", classes=2, encoder_weights=None, lr=2e-3)
    trainer = pl.Trainer(
        max_epochs=6,
        limit_train_batches=5,
        callbacks=[callback],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, seguq.SegmentationData(nuclei_mini(), batch_size=8, size=96, num_workers=0))
    trainer.save_checkpoint(out / f"{type(callback).__name__}.ckpt")
    return module, out / f"{type(callback).__name__}.ckpt"


def loss_of(estimator, batches):
    loss = NegativeLogLikelihood(num_classes=2)
    for batch in batches:
        loss.update(estimator(batch["image"], batch["image_id"]).probs, batch["mask"], group=batch["image_id"])
    return loss


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit()
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "one-training")
    data = seguq.SegmentationData(nuclei_mini(), batch_size=8, size=96, num_workers=0)
    held_out = [batch for batch, _ in zip(data.dataloader("test"), range(5), strict=False)]

    # SWAG: the weights of each step of the last quarter of the training, and some batches to renew BatchNorm on
    module, checkpoint = trained(SWAG(every_n_steps=1, lr=1e-3), out)
    some = [batch for batch, _ in zip(data.dataloader("train"), range(3), strict=False)]
    swag = seguq.SWAG(module, checkpoint, samples=5, bn_batches=some, calibrator=None)

    # snapshots: three cycles of two epochs, of which the best two end in a member each
    snapshots = Snapshots(out / "snapshots", cycles=3, keep=2, monitor="val/loss")
    module_of_cycles, _ = trained(snapshots, out)
    ensemble = seguq.DeepEnsemble(snapshots.paths, model=module_of_cycles, calibrator=None)

    for name, estimator, network in (("SWAG", swag, module), ("snapshots", ensemble, module_of_cycles)):
        loss = loss_of(estimator, held_out)
        alone = loss_of(seguq.Deterministic(network, calibrator=None), held_out)
        low, high = loss.compute_interval()
        difference, (less, more) = loss.compute_difference(alone)
        print(f"{name}: loss {loss.compute():.3f} ({low:.3f} to {high:.3f}),", end=" ")
        print(f"{difference:+.3f} ({less:+.3f} to {more:+.3f}) against one pass of the last network")
        batch = held_out[0]
        information = estimator(batch["image"], batch["image_id"])["mutual_information"]
        for image_id, values in zip(batch["image_id"], information, strict=True):
            picture = heatmap(values.numpy(), Scale(0.0, 0.2), "mutual information (nats)")
            write_png(out / name / f"{image_id}.png", picture)
    print(f"mutual information of four held-out images in {out}")
