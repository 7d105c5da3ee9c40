import copy
import os
import threading

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import seguq
from seguq import functional as F
from seguq.core.errors import SeguqError, UsageError
from seguq.inference import DeepEnsemble
from tests.inference.models import Count, LiveBytes, Raising, SmallNet, flags, images, mix_flags, same_tensors, tensors

OF_PROBS = ("predictive_entropy", "least_confidence", "smallest_margin")
OF_SAMPLES = ("total_entropy", "expected_entropy", "mutual_information", "variance", "variation_ratio")


def member(seed, classes=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(classes).eval()


def members(count=3, classes=3):
    return [member(seed, classes) for seed in range(count)]


def ensemble(members, model=None, **settings):
    return DeepEnsemble(members, model, **{"calibrator": None, **settings})


@torch.no_grad()
def probs_of(models, x):
    """The members' probabilities, ``(S, B, C, *spatial)``, by a plain loop."""
    return torch.stack([torch.softmax(model.eval()(x), 1) for model in models])


def test_samples_are_the_members_probs_in_order():
    actual = torch.stack(list(ensemble(members()).samples(images())))
    assert torch.equal(actual, probs_of(members(), images()))


def test_probs_are_the_mean_of_the_members():
    expected = probs_of(members(), images()).mean(0)
    torch.testing.assert_close(ensemble(members())(images()).probs, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", [*OF_PROBS, *OF_SAMPLES])
def test_a_measure_is_that_of_functional_on_the_members_probs(name, count):
    probs = probs_of(members(count), images())
    expected = getattr(F, name)(probs.mean(0) if name in OF_PROBS else probs)
    torch.testing.assert_close(ensemble(members(count))(images())[name], expected, rtol=0, atol=1e-6)


def test_members_that_agree_have_no_mutual_information():
    assert ensemble([member(0)] * 4)(images())["mutual_information"].max() < 1e-6


def test_members_may_differ_in_architecture():
    other = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.GroupNorm(1, 4), nn.Conv2d(4, 3, 1))
    models = [member(0), other]
    expected = F.mutual_information(probs_of(models, images()))
    torch.testing.assert_close(ensemble(models)(images())["mutual_information"], expected, rtol=0, atol=1e-6)


def test_members_that_differ_in_classes_are_an_error_with_both_shapes():
    with pytest.raises(SeguqError, match=r"member 0 gives \(2, 3, 16, 16\), member 1 \(2, 4, 16, 16\)"):
        ensemble([member(0), member(1, classes=4)])(images())


def test_members_whose_logits_differ_in_size_agree_once_resized():
    halved = nn.Sequential(nn.AvgPool2d(2), member(1))
    assert tuple(ensemble([member(0), halved])(images()).probs.shape) == (2, 3, 16, 16)


def test_the_tag_names_the_number_of_members_and_their_weights():
    models = members(4)
    tag = ensemble(models).tag
    assert tag.startswith("deep_ensemble(members=4, weights=")
    assert ensemble(models[::-1]).tag == tag != ensemble([*models[:3], member(9)]).tag


def test_describe_has_one_pass_for_each_member():
    assert ensemble(members(4)).describe()["passes"] == 4


def test_each_member_is_asked_once():
    models = members()
    counts = [Count(model) for model in models]
    ensemble(models)(images())
    assert [count.forwards for count in counts] == [1, 1, 1]


def test_members_in_training_mode_are_asked_in_evaluation_mode():
    models = members()
    expected = ensemble(models)(images()).probs
    for model in models:
        model.train()
    assert torch.equal(ensemble(models)(images()).probs, expected)


def test_an_exception_in_a_member_leaves_all_as_they_were():
    models = [member(0), Raising(0, member(1))]
    for model in models:
        mix_flags(model)
    before = [flags(model) for model in models]
    with pytest.raises(FloatingPointError):
        ensemble(models)(images())
    assert [flags(model) for model in models] == before


def test_between_samples_the_members_and_the_grad_mode_are_as_they_were():
    models = members()
    for model in models:
        mix_flags(model)
    before = [flags(model) for model in models], True
    seen = [([flags(m) for m in models], torch.is_grad_enabled()) for _ in ensemble(models).samples(images())]
    assert seen == [before] * 3


def test_memory_does_not_grow_with_the_number_of_members():
    def peak(count):
        est, x = ensemble([member(0)] * count), images(2, 64)
        with LiveBytes() as live, torch.no_grad():
            est(x)
        return live.peak

    assert peak(40) <= peak(4)


def test_one_logit_members_are_an_ensemble_of_sigmoids():
    models = members(3, classes=1)
    with torch.no_grad():
        expected = torch.stack([torch.sigmoid(model(images())[:, 0]) for model in models]).mean(0)
    actual = ensemble(models, task="binary")(images()).probs[:, 1]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


# members from files


class Module(pl.LightningModule):
    """A module that holds the network under a name of its own."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def bare(model, path):
    torch.save(model.state_dict(), path)


def under_state_dict(model, path):
    torch.save({"state_dict": {f"network.{name}": value for name, value in model.state_dict().items()}}, path)


def compiled(model, path):
    torch.save({f"_orig_mod.{name}": value for name, value in model.state_dict().items()}, path)


@pytest.mark.parametrize("write", [bare, under_state_dict, compiled])
def test_members_may_be_files_of_weights(tmp_path, write):
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for model, path in zip(members(), paths, strict=True):
        write(model, path)
    assert torch.equal(ensemble(paths, member(9))(images()).probs, ensemble(members())(images()).probs)


def test_members_may_be_checkpoints_of_lightning(tmp_path):
    data = DataLoader(TensorDataset(images(4), torch.randint(0, 3, (4, 16, 16))), batch_size=2)
    models, paths = members(2), [tmp_path / "0.ckpt", tmp_path / "1.ckpt"]
    for model, path in zip(models, paths, strict=True):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet
        )
        trainer.fit(Module(model), data)
        trainer.save_checkpoint(path)
    expected = probs_of(models, images())
    assert not torch.equal(expected, probs_of(members(2), images())), "nothing was trained"
    assert torch.equal(torch.stack(list(ensemble(paths, member(9)).samples(images()))), expected)


def test_members_may_be_modules_and_files_mixed(tmp_path):
    bare(member(1), tmp_path / "1.pt")
    mixed = ensemble([member(0), str(tmp_path / "1.pt"), member(2)], member(9))
    assert torch.equal(mixed(images()).probs, ensemble(members())(images()).probs)


def test_the_module_that_weights_go_into_is_not_changed(tmp_path):
    bare(member(0), tmp_path / "0.pt")
    model = member(9)
    before = tensors(model)
    ensemble([tmp_path / "0.pt"], model)
    assert same_tensors(model, before)


def test_a_file_without_a_module_to_put_it_into_is_an_error_that_says_so(tmp_path):
    bare(member(0), tmp_path / "0.pt")
    with pytest.raises(SeguqError, match=r"0\.pt: pass model="):
        ensemble([tmp_path / "0.pt"])


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SeguqError, match=r"nowhere\.pt does not exist"):
        ensemble([tmp_path / "nowhere.pt"], member(9))


def test_weights_that_do_not_fit_are_an_error_that_names_the_file(tmp_path):
    bare(nn.Conv2d(1, 1, 1), tmp_path / "other.pt")
    with pytest.raises(SeguqError, match=r"other\.pt does not fit the model"):
        ensemble([tmp_path / "other.pt"], member(9))


def test_weights_of_another_shape_are_an_error_that_names_file_and_tensor(tmp_path):
    bare(member(0, classes=4), tmp_path / "four.pt")
    with pytest.raises(SeguqError, match=r"four\.pt does not fit the model: .*head\.weight"):
        ensemble([tmp_path / "four.pt"], member(9))


@pytest.mark.parametrize("nothing", [[], (), member(0), "a.pt"], ids=["list", "tuple", "a module", "a path"])
def test_members_that_are_no_list_of_some_are_an_error(nothing):
    with pytest.raises(SeguqError, match="members must be a list of at least one"):
        ensemble(nothing)


def test_the_package_hands_on_the_estimator():
    assert seguq.DeepEnsemble is DeepEnsemble


# members that are read one after another


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for model, path in zip(members(), paths, strict=True):
        bare(model, path)
    return paths


def test_lazy_members_give_what_loaded_ones_give(files):
    lazy, loaded = ensemble(files, member(9), lazy=True), ensemble(files, member(9))
    for _ in range(2):
        assert torch.equal(lazy(images()).probs, loaded(images()).probs)
    assert lazy.tag == loaded.tag and lazy.describe() == loaded.describe()


def test_lazy_members_need_the_memory_of_one(files):
    assert len({id(model) for model in ensemble(files, member(9), lazy=True).models}) == 1
    assert len({id(model) for model in ensemble(files, member(9)).models}) == 3


def test_lazy_members_may_be_mixed_with_modules(tmp_path):
    first, second = members(2)
    bare(second, tmp_path / "second.pt")
    given = member(9)
    est = ensemble([first, tmp_path / "second.pt"], given, lazy=True)
    assert torch.equal(est(images()).probs, ensemble([first, second])(images()).probs)
    expected = member(9).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in given.state_dict().items())  # a copy is filled


def test_a_lazy_member_that_does_not_fit_is_an_error_at_once(tmp_path):
    bare(member(0, classes=5), tmp_path / "other.pt")
    with pytest.raises(SeguqError, match=r"other\.pt does not fit the model"):
        ensemble([tmp_path / "other.pt"], member(9), lazy=True)


def test_lazy_members_in_two_threads_do_not_mix(files):
    est = ensemble(files, member(9), lazy=True)
    expected, found = est(images()).probs, []

    def ask(mine):
        found.extend(mine(images()).probs for _ in range(20))

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in (est, copy.copy(est))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and all(torch.equal(probs, expected) for probs in found)


@pytest.mark.filterwarnings("error:the calibrator")
@pytest.mark.filterwarnings("ignore:the best temperature")
@pytest.mark.parametrize("lazy", [False, True])
def test_a_calibrator_holds_for_the_files_whichever_was_read_last(lazy, files):
    est = DeepEnsemble(files, member(9), lazy=lazy)
    os.utime(files[0])  # a file of another time has the same weights
    est.calibrate(seguq.TemperatureScaling(), [(images(), torch.zeros(len(images()), *images().shape[2:]).long())])
    expected = est(images()).probs
    stream = est.samples(images())
    next(stream)
    stream.close()
    os.utime(files[1])
    assert torch.equal(est(images()).probs, expected)
    est.calibrator = "auto"
    assert torch.equal(est(images()).probs, expected)
    est.calibrator = None
    assert not torch.equal(est(images()).probs, expected)


def test_a_lazy_member_whose_file_is_gone_is_named(files):
    est = ensemble(files, member(9), lazy=True)
    files[1].unlink()
    for ask in (lambda: est(images()), lambda: est.tag, est.describe):
        with pytest.raises(UsageError, match=r"1\.pt does not exist"):
            ask()


def test_a_lazy_member_is_found_from_another_folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    est = ensemble([path.name for path in files], member(9), lazy=True)
    monkeypatch.chdir("/")
    assert torch.equal(est(images()).probs, ensemble(files, member(9))(images()).probs)


def test_a_lazy_ensemble_made_under_inference_mode_works_outside(files):
    with torch.inference_mode():
        est = ensemble(files, member(9), lazy=True)
    assert torch.equal(est(images()).probs, ensemble(files, member(9))(images()).probs)


def test_each_member_is_given_the_images_in_its_own_precision():
    half, single = member(0).bfloat16(), member(1)
    alone = next(ensemble([single]).samples(images()))
    for order in ([half, single], [single, half]):
        found = list(ensemble(order).samples(images()))
        assert torch.equal(found[order.index(single)].float(), alone)


@pytest.mark.parametrize("est", [DeepEnsemble(), seguq.TestTimeAugmentation(DeepEnsemble())], ids=["alone", "inside"])
@pytest.mark.parametrize("use", [lambda est: est(images()), lambda est: est.tag, lambda est: est.bind(SmallNet())])
def test_without_members_it_waits_for_a_command_and_says_so(est, use):
    with pytest.raises(UsageError, match="DeepEnsemble needs members"):
        use(est)


@pytest.mark.parametrize(("given", "text"), [(5, "members must be a list"), ([5], "a member must be a module")])
def test_something_else_than_members_is_refused(given, text):
    with pytest.raises(SeguqError, match=text):
        ensemble(given, member(0))
