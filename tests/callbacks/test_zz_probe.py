import copy, warnings
import pytest, torch, pytorch_lightning
from torch import nn
import seguq
from seguq.callbacks import Calibrate, UncertaintyMetrics
from seguq.inference import Deterministic, MCDropout
from tests.callbacks.modules import *
from tests.callbacks.test_passes import Look, validated

PL = pytorch_lightning


class Swapping(PL.Callback):
    def on_validation_start(self, trainer, module):
        self.old = module.net
        other = copy.deepcopy(module.net)
        other.head.weight.data.mul_(0.3)
        module.net = other

    def on_validation_end(self, trainer, module):
        module.net = self.old


@pytest.mark.parametrize("name", ["Plain", "WithoutForward", "PastForward"])
@pytest.mark.parametrize("est", [None, "mc_dropout"])
@pytest.mark.parametrize("first", [True, False])
def test_swapped(name, est, first, tmp_path):
    m = make(PL, name)
    look = Look(est)
    sw = Swapping()
    f = Forwards(m.net)
    validated(tmp_path, *([sw, look] if first else [look, sw]), module=m)
    n = copy.deepcopy(m.net)
    n.head.weight.data.mul_(0.3)
    n.eval()
    n.dropout.p = 0
    if est is None:
        assert f.count == 0
        (im, _), *_ = loader(data_for(m))
        with torch.no_grad():
            torch.testing.assert_close(look.steps[0].pooled, n(im))
    assert f.count == 0


class Sub(Deterministic):
    def _pool(self, images, ids, names):
        logits, maps = super()._pool(images, ids, names)
        return logits / 2, maps


def test_sub(tmp_path):
    look = Look(Sub())
    m = validated(tmp_path, look)
    (im, _), *_ = loader(data_for(m))
    with torch.no_grad():
        torch.testing.assert_close(look.steps[0].pooled, m.eval()(im) / 2)


class CL(kind(PL)):
    def evaluate(self, b):
        return F.cross_entropy(self(b[0].contiguous(memory_format=torch.channels_last)), b[1], ignore_index=255)


def test_cl(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*changes the images")
        validated(tmp_path, Look(), module=CL())


class Vol(kind(PL)):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv3d(3, 3, 3, padding=1)


def test_vol(tmp_path):
    m = Vol()
    d = [(torch.randn(3, 4, 8, 8), torch.randint(3, (4, 8, 8))) for _ in range(4)]
    t = trainer_of(PL, tmp_path, Calibrate(), UncertaintyMetrics())
    t.validate(m, loader(d), verbose=False)
    print(t.callback_metrics)


@pytest.mark.parametrize("name", ["Plain", "WithoutForward"])
def test_script(name, tmp_path):
    m = make(PL, name)
    m.net = torch.jit.script(m.net)
    t = fit(PL, tmp_path, m, Calibrate(), Calibrate(estimator="mc_dropout"))
    print(t.callback_metrics)


@pytest.mark.parametrize("name", ["Plain", "WithoutForward"])
def test_bad_label(name, tmp_path):
    m = make(PL, name)
    d = data_for(m)
    b = [(i, k.where(k != 1, torch.tensor(7))) for i, k in (d[j] for j in range(5))]

    class S(type(m)):
        def validation_step(self, batch, i):
            self.net(batch[0]) if name != "Plain" else self(batch[0])

    m = S()
    before = set(vars(m))
    with pytest.raises(Exception) as e:
        fit(PL, tmp_path, m, Calibrate(), UncertaintyMetrics(), val=loader(b))
    print(e.value)
    assert all(not p._forward_hooks and not p._forward_pre_hooks for p in m.modules())
    print(set(vars(m)) - before)


def test_again_same_trainer(tmp_path):
    m = make(PL)
    t = trainer_of(PL, tmp_path, Calibrate())
    t.fit(m, loader(data_for(m, 6, seed=1)), loader(data_for(m)))
    a = m.calibrators["deterministic"].temperature
    t.validate(m, loader(data_for(m)), verbose=False)
    assert m.calibrators["deterministic"].temperature == pytest.approx(a, rel=1e-5)
    t.test(m, loader(data_for(m)), verbose=False)
    t.fit_loop.max_epochs = 3
    t.fit(m, loader(data_for(m, 6, seed=1)), loader(data_for(m)))
    assert m.calibrators["deterministic"].temperature != a


def test_flip_tta_inplace(tmp_path):
    class In(kind(PL)):
        def evaluate(self, b):
            x = b[0]
            x.sub_(0.4).div_(0.5)
            return F.cross_entropy(self(x), b[1], ignore_index=255)

    look = Look(MCDropout(samples=2))
    l2 = Look()
    m = In()
    m.net.dropout.p = 1e-12
    validated(tmp_path, look, l2, module=m)
    print((look.steps[0].pooled.softmax(1) - l2.steps[0].pooled.softmax(1)).abs().max())


def test_checkpointed_grad(tmp_path):
    m = make(PL)
    import torch.nn.utils.parametrizations as P

    P.weight_norm(m.net.stem)
    t = fit(PL, tmp_path, m, Calibrate(), Calibrate(estimator="mc_dropout"))
    keep = PL.callbacks.WeightAveraging()
    fit(PL, tmp_path, m, keep, Calibrate())


def test_swa(tmp_path):
    m = make(PL)
    fit(PL, tmp_path, m, PL.callbacks.StochasticWeightAveraging(0.1), Calibrate(), max_epochs=4)
    assert m.calibrators


def test_lrfind(tmp_path):
    m = make(PL)
    m.lr = 0.1
    t = trainer_of(
        PL, tmp_path, Calibrate(), PL.callbacks.LearningRateFinder(num_training_steps=5, min_lr=1e-4), max_epochs=2
    )
    t.fit(m, loader(data_for(m, 6, seed=1), 2), loader(data_for(m)))


def test_bsfind(tmp_path):
    class D(PL.LightningDataModule):
        batch_size = 1

        def train_dataloader(s):
            return loader(data_for(m, 6, seed=1), s.batch_size)

        def val_dataloader(s):
            return loader(data_for(m), s.batch_size)

    m = make(PL)
    t = trainer_of(
        PL, tmp_path, Calibrate(), PL.callbacks.BatchSizeFinder(max_trials=2, steps_per_trial=1), max_epochs=2
    )
    t.fit(m, datamodule=D())
    print(m.calibrators)
