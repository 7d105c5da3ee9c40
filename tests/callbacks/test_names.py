"""The names that callbacks log under: none that somebody else logs is overwritten, or overwrites theirs."""

import pytest
import pytorch_lightning

from seguq.callbacks import Calibrate, UncertaintyMetrics
from seguq.core.errors import SeguqError
from tests.callbacks.tiny import Images, both_names, loader, make_module, make_trainer

CALLBACKS = {"val/ece": UncertaintyMetrics, "val/nll_after": Calibrate}
HOOKS = ("validation_step", "on_validation_epoch_end", "on_validation_epoch_start")


def logging(package, hook, name):
    """A module that logs 0.25 under a name in one of its hooks."""
    own = type(make_module(package))

    def of_its_own(self, *words):
        self.log(name, 0.25, on_step=False, on_epoch=True, batch_size=1, add_dataloader_idx=False)

    return type("Logging", (own,), {hook: of_its_own})()


def validate(package, folder, module, *callbacks):
    trainer = make_trainer(package, folder, *callbacks)
    trainer.validate(module, loader(Images(4)), verbose=False)
    return trainer


@both_names
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_name_that_the_module_logs_is_an_error_that_names_the_prefix(name, hook, package, tmp_path):
    with pytest.raises(SeguqError, match=rf"{name!r} is logged by the module itself.*\(prefix='seguq/'\)"):
        validate(package, tmp_path, logging(package, hook, name), CALLBACKS[name]())


@pytest.mark.parametrize("name", CALLBACKS)
def test_with_a_prefix_both_are_logged(name, tmp_path):
    module = logging(pytorch_lightning, "validation_step", name)
    trainer = validate(pytorch_lightning, tmp_path, module, CALLBACKS[name](prefix="seguq/"))
    assert float(trainer.callback_metrics[name]) == 0.25
    assert f"seguq/{name}" in trainer.callback_metrics


def test_a_callback_goes_on_under_its_own_names_in_each_epoch_and_run(tmp_path):
    module, callbacks = make_module(pytorch_lightning), [Calibrate(), UncertaintyMetrics()]
    trainer = make_trainer(pytorch_lightning, tmp_path, *callbacks, max_epochs=2)
    trainer.fit(module, loader(Images(4)), loader(Images(4)))
    trainer.validate(module, loader(Images(5)), verbose=False)
    trainer.test(module, loader(Images(5)), verbose=False)


def test_two_of_one_kind_go_side_by_side_with_prefixes_of_their_own(tmp_path):
    callbacks = [UncertaintyMetrics(prefix=prefix, measures=["predictive_entropy"]) for prefix in ("a/", "b/")]
    trainer = validate(pytorch_lightning, tmp_path, make_module(pytorch_lightning), *callbacks)
    assert {"a/val/ece", "b/val/ece"} <= set(trainer.callback_metrics)
