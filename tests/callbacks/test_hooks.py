"""Listening to a module's own hooks, and taking a missing method's place, without a trace."""

import copy
import gc
import itertools
import pickle
import weakref

import pytest

from seguq.callbacks.hooks import listen, stand_in


class Module:
    """Stands for a LightningModule with a hook of its own."""

    def __init__(self):
        self.calls = []

    def on_save_checkpoint(self, checkpoint):
        self.calls.append(dict(checkpoint))
        checkpoint["own"] = True
        return "result"


def test_a_listener_is_called_after_the_modules_own_hook_with_the_same_checkpoint():
    module, heard = Module(), []
    listen(module, "on_save_checkpoint", lambda checkpoint: heard.append(dict(checkpoint)))
    checkpoint = {"epoch": 1}
    module.on_save_checkpoint(checkpoint)
    assert module.calls == [{"epoch": 1}]
    assert heard == [{"epoch": 1, "own": True}]


def test_what_a_listener_writes_is_in_the_checkpoint():
    module, checkpoint = Module(), {}
    listen(module, "on_save_checkpoint", lambda checkpoint: checkpoint.update(ours=1))
    module.on_save_checkpoint(checkpoint)
    assert checkpoint == {"own": True, "ours": 1}


def test_the_hook_still_gives_what_it_gave():
    module = Module()
    listen(module, "on_save_checkpoint", lambda checkpoint: None)
    assert module.on_save_checkpoint({}) == "result"


def test_listeners_are_called_in_the_order_in_which_they_came_and_the_hook_once():
    module, heard = Module(), []
    for name in "abc":
        listen(module, "on_save_checkpoint", lambda checkpoint, name=name: heard.append(name))
    module.on_save_checkpoint({})
    assert heard == ["a", "b", "c"]
    assert len(module.calls) == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_in_whatever_order_they_end_the_last_leaves_the_module_as_it_was(order):
    module = Module()
    before = dict(vars(module))
    stops = [listen(module, "on_save_checkpoint", lambda checkpoint: None) for _ in range(3)]
    for number in order[:2]:
        stops[number]()
    assert "on_save_checkpoint" in vars(module)
    stops[order[2]]()
    assert vars(module) == before


def test_a_listener_that_has_ended_hears_nothing_more():
    module, heard = Module(), []
    stop = listen(module, "on_save_checkpoint", lambda checkpoint: heard.append("ended"))
    listen(module, "on_save_checkpoint", lambda checkpoint: heard.append("other"))
    stop()
    stop()  # twice is as good as once
    module.on_save_checkpoint({})
    assert heard == ["other"]


def test_a_hook_that_was_set_on_the_instance_is_called_and_comes_back():
    module, heard = Module(), []

    def own(checkpoint):
        heard.append("own")

    module.on_save_checkpoint = own
    stop = listen(module, "on_save_checkpoint", lambda checkpoint: heard.append("ours"))
    module.on_save_checkpoint({})
    stop()
    assert heard == ["own", "ours"]
    assert module.on_save_checkpoint is own


def test_what_somebody_else_put_over_it_since_is_left_alone():
    module = Module()
    stop = listen(module, "on_save_checkpoint", lambda checkpoint: None)
    other = module.on_save_checkpoint = lambda checkpoint: None
    stop()
    assert module.on_save_checkpoint is other


def test_a_copy_of_the_module_takes_no_listener_along():
    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError("it was copied")

        def __call__(self, checkpoint):
            pass

    module = Module()
    listen(module, "on_save_checkpoint", Uncopyable())
    assert copy.deepcopy(module).calls == []


def copied(module):
    return copy.deepcopy(module)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


both_ways = pytest.mark.parametrize("copied", [copied, pickled])


@both_ways
def test_the_hook_of_a_copy_is_the_copys_own(copied):
    module, heard = Module(), []
    stop = listen(module, "on_save_checkpoint", heard.append)
    other = copied(module)
    other.on_save_checkpoint({"epoch": 1})
    stop()
    assert other.calls == [{"epoch": 1}]
    assert module.calls == heard == []


@both_ways
def test_a_copy_of_a_module_whose_hook_was_set_on_it_has_that_hook(copied):
    module = Module()
    module.on_save_checkpoint = print
    listen(module, "on_save_checkpoint", lambda checkpoint: None)
    assert copied(module).on_save_checkpoint is print


class Base:
    def predict_step(self, batch):
        return (type(self).__name__, self, batch)


class WithStep(Base):
    """Stands for a module that has of its base class what is stood in for."""


@both_ways
def test_a_copy_takes_no_stand_in_along(copied):
    module = WithStep()
    stand_in(module, "predict_step", lambda batch: "stand-in")
    other = copied(module)
    assert other.predict_step(1) == ("WithStep", other, 1)


@both_ways
def test_a_copy_can_be_listened_to(copied):
    module, heard = Module(), []
    listen(module, "on_save_checkpoint", lambda checkpoint: heard.append("of the module"))
    other = copied(module)
    stop = listen(other, "on_save_checkpoint", lambda checkpoint: heard.append("of the copy"))
    other.on_save_checkpoint({})
    stop()
    other.on_save_checkpoint({})
    assert heard == ["of the copy"]
    assert len(other.calls) == 2


def test_nothing_is_kept_of_a_listener_that_has_ended():
    class Listener:
        def __call__(self, checkpoint):
            pass

    module, listener = Module(), Listener()
    reference = weakref.ref(listener)
    listen(module, "on_save_checkpoint", listener)()
    del listener
    gc.collect()
    assert reference() is None


def test_an_error_in_a_listener_comes_through():
    def fails(checkpoint):
        raise FloatingPointError("the listener fails")

    module = Module()
    listen(module, "on_save_checkpoint", fails)
    with pytest.raises(FloatingPointError, match="the listener fails"):
        module.on_save_checkpoint({})


def test_a_stand_in_is_called_in_place_of_the_method_until_it_ends():
    module = Module()
    stop = stand_in(module, "predict_step", lambda batch, batch_idx: (batch, batch_idx))
    assert module.predict_step("batch", batch_idx=2) == ("batch", 2)
    stop()
    assert "predict_step" not in vars(module)


def test_the_first_of_several_stand_ins_is_the_one():
    module = Module()
    first = stand_in(module, "predict_step", lambda: "first")
    second = stand_in(module, "predict_step", lambda: "second")
    second()
    assert module.predict_step() == "first"
    first()
    assert "predict_step" not in vars(module)


def test_a_stand_in_gives_back_the_attribute_that_it_covered():
    module = Module()
    own = module.predict_step = lambda: "own"
    stand_in(module, "predict_step", lambda: "stand-in")()
    assert module.predict_step is own
