import csv
import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch
import matplotlib.pyplot as plt
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers.logger import DummyExperiment, DummyLogger

from seguq.callbacks.loggers import log_figure, log_table
from seguq.core.errors import SeguqError

ROOT = Path(__file__).parents[2]
both_names = pytest.mark.parametrize("lightning", [pytorch_lightning, lightning.pytorch], ids=lambda it: it.__name__)
COLUMNS = ["image", "score", "pixels"]
ROWS = [["a|b", np.float64(0.5), torch.tensor(3)], ["ä", None, 1234567]]
PLAIN = [["a|b", 0.5, 3], ["ä", None, 1234567]]
CSV = "image,score,pixels\na|b,0.5,3\nä,,1234567\n"


@pytest.fixture
def figure():
    """A figure of pyplot, of 40 by 30 red pixels."""
    plt.switch_backend("agg")
    figure = plt.figure(figsize=(4, 3), dpi=10, facecolor="red")
    yield figure
    plt.close(figure)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Recorder:
    """Keeps the arguments of each call of the methods below."""

    def __init__(self):
        self.calls = []


class WandbLogger(Recorder):
    """The methods of Lightning's WandbLogger; its experiment is a Run, which is not called."""

    experiment = SimpleNamespace(log=None, log_artifact=None)

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.calls.append(("log_table", key, columns, data, step))

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        raise AssertionError("a table is no text")

    def log_image(self, key, images, step=None, **kwargs):
        assert isinstance(images, list)
        self.calls.append(("log_image", key, images, step))


class MlflowClient(Recorder):
    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.calls.append(("log_figure", run_id, figure, artifact_file))

    def log_text(self, run_id, text, artifact_file):
        self.calls.append(("log_text", run_id, text, artifact_file))

    def log_table(self, run_id, data, artifact_file):
        raise AssertionError("a table as JSON is shown by no page of MLflow's")

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None):
        raise AssertionError("a figure is no image")


class CometExperiment(Recorder):
    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None, metadata=None, format="auto"):
        self.calls.append(("log_figure", figure_name, figure, step))

    def log_table(self, filename, tabular_data=None, headers=False, **format_kwargs):
        self.calls.append(("log_table", filename, tabular_data, headers))

    def log_text(self, text, step=None, metadata=None):
        raise AssertionError("a table is no text")

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        raise AssertionError("a figure is no image")


class SummaryWriter(Recorder):
    log_dir = "logs"

    def add_figure(self, tag, figure, global_step=None, close=True, walltime=None):
        self.calls.append(("add_figure", tag, figure, global_step, close))

    def add_text(self, tag, text_string, global_step=None, walltime=None):
        self.calls.append(("add_text", tag, text_string, global_step))


def log_both(loggers, figure):
    log_figure(loggers, "val/reliability", figure, 120)
    log_table(loggers, "val/images", COLUMNS, ROWS, 120)


# CSV


@both_names
def test_a_csv_logger_gets_a_picture_and_a_csv_file_in_its_folder(tmp_path, figure, lightning):
    logger = lightning.loggers.CSVLogger(tmp_path, name="run", version=3)
    log_both([logger], figure)
    folder = tmp_path / "run" / "version_3"
    assert files(folder) == ["figures/val/reliability-step=000120.png", "tables/val/images-step=000120.csv"]
    assert (folder / "tables/val/images-step=000120.csv").read_bytes().decode() == CSV
    picture = np.asarray(Image.open(folder / "figures/val/reliability-step=000120.png").convert("RGB"))
    assert picture.shape == (30, 40, 3)
    assert (picture == [255, 0, 0]).all()


@both_names
def test_a_csv_logger_still_writes_its_metrics(tmp_path, figure, lightning, recwarn):
    logger = lightning.loggers.CSVLogger(tmp_path, name="run")
    log_both([logger], figure)
    logger.log_metrics({"loss": 0.25}, step=7)
    logger.save()
    folder = Path(logger.log_dir)
    assert folder == tmp_path / "run" / "version_0"
    assert list(csv.DictReader((folder / "metrics.csv").open())) == [{"loss": "0.25", "step": "7"}]
    assert not [warning for warning in recwarn if "not empty" in str(warning.message)]


@both_names
def test_a_csv_logger_of_a_trainer_gets_both(tmp_path, figure, lightning):
    logger = lightning.loggers.CSVLogger(tmp_path, name="run")
    trainer = lightning.Trainer(
        logger=logger, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False, barebones=False
    )
    log_both(trainer.loggers, figure)
    assert len(files(tmp_path)) == 2


def test_another_step_is_another_file_and_the_same_step_takes_its_place(tmp_path):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    for step, value in ((1, 1), (2_000_000, 2), (1, 3)):
        log_table([logger], "a", ["x"], [[value]], step)
    folder = Path(logger.log_dir)
    assert files(folder) == ["tables/a-step=000001.csv", "tables/a-step=2000000.csv"]
    assert (folder / "tables/a-step=000001.csv").read_text() == "x\n3\n"


def test_files_are_written_whole(tmp_path, figure, monkeypatch):
    def fail(self, target):
        raise OSError("no space")

    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    monkeypatch.setattr(Path, "replace", fail)
    for log in (log_figure, log_table):
        with pytest.raises(OSError, match="no space"):
            log([logger], "a", *([figure] if log is log_figure else [["x"], [[1]]]), 1)
    assert files(tmp_path) == []


def test_a_csv_logger_whose_folder_is_not_on_this_machine_gets_none(figure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = pytorch_lightning.loggers.CSVLogger("memory://logs")
    log_both([logger], figure)
    assert files(tmp_path) == []


# TensorBoard


@both_names
def test_tensorboard_gets_an_image_and_a_text(tmp_path, figure, lightning):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = lightning.loggers.TensorBoardLogger(tmp_path)
    log_both([logger], figure)
    logger.save()
    events = EventAccumulator(logger.log_dir).Reload()
    (image,) = events.Images("val/reliability")
    (text,) = events.Tensors("val/images/text_summary")
    assert (image.step, image.width, image.height) == (120, 40, 30)
    picture = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
    assert (picture == [255, 0, 0]).all()
    assert (text.step, text.tensor_proto.string_val[0].decode().splitlines()[0]) == (120, "| image | score | pixels |")
    logger.finalize("success")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_the_table_as_one():
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.text.text_plugin import plugin_util

    writer = SummaryWriter()
    rows = [["a|b", 0.123456789, 3], ["two\nlines <b>", None, 1234567]]
    log_table([SimpleNamespace(experiment=writer)], "a", COLUMNS, rows, 1)
    html = plugin_util.markdown_to_safe_html(writer.calls[0][2])
    cells = [part.split("</t")[0] for part in html.replace("<th>", "<td>").split("<td>")[1:]]
    assert cells == [*COLUMNS, "a|b", "0.123457", "3", "two lines &lt;b&gt;", "", "1234567"]


def test_tensorboard_is_told_not_to_close_the_figure(figure):
    writer = SummaryWriter()
    log_figure([SimpleNamespace(experiment=writer)], "val/reliability", figure, 120)
    assert writer.calls == [("add_figure", "val/reliability", figure, 120, False)]


# the others, by what they can do


def test_wandb_gets_an_image_and_a_table(figure):
    logger = WandbLogger()
    log_both([logger], figure)
    (_, key, (image,), step), table = logger.calls
    assert (key, step, image.mode, image.size) == ("val/reliability", 120, "RGB", (40, 30))
    assert (np.asarray(image) == [255, 0, 0]).all()
    assert table == ("log_table", "val/images", COLUMNS, PLAIN, 120)


def test_mlflow_gets_both_as_files_of_its_run(figure):
    client = MlflowClient()
    log_both([SimpleNamespace(experiment=client, run_id="abc")], figure)
    assert client.calls == [
        ("log_figure", "abc", figure, "figures/val/reliability-step=000120.png"),
        ("log_text", "abc", CSV, "tables/val/images-step=000120.csv"),
    ]


def test_comet_gets_a_figure_and_a_table(figure):
    experiment = CometExperiment()
    log_both([SimpleNamespace(experiment=experiment)], figure)
    assert experiment.calls == [
        ("log_figure", "val/reliability", figure, 120),
        ("log_table", "tables/val/images-step=000120.csv", PLAIN, COLUMNS),
    ]


def test_methods_behind_a_decorator_are_known_too(figure):
    @rank_zero_only
    def log_image(key, images, step=None, **kwargs):
        calls.append(key)

    calls = []
    log_figure([SimpleNamespace(experiment=object(), log_image=log_image)], "a", figure, 1)
    assert calls == ["a"]


def test_every_logger_gets_its_own(tmp_path, figure):
    wandb, client, experiment, writer = WandbLogger(), MlflowClient(), CometExperiment(), SummaryWriter()
    loggers = [
        wandb,
        SimpleNamespace(experiment=client, run_id="abc"),
        SimpleNamespace(experiment=experiment),
        SimpleNamespace(experiment=writer),
        pytorch_lightning.loggers.CSVLogger(tmp_path),
    ]
    log_both(iter(loggers[:0]), figure)
    log_figure(iter(loggers), "a", figure, 1)
    log_table(iter(loggers), "a", COLUMNS, (row for row in ROWS), 1)
    assert [len(one.calls) for one in (wandb, client, experiment, writer)] == [2] * 4
    assert len(files(tmp_path)) == 2


# those that take none


class OwnLogger(pytorch_lightning.loggers.Logger):
    """The least that Lightning asks of a logger."""

    name, version = "own", 0

    def log_metrics(self, metrics, step=None):
        raise AssertionError("nothing was measured")

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError("nothing was set")


class OtherImageLogger(OwnLogger):
    """A person's own logger, with a method of the same name that is another."""

    experiment = SimpleNamespace(add_figure="a text", log_table=lambda table: 1 / 0)

    def log_image(self, image, caption):
        raise AssertionError("called with other arguments")

    def log_table(self, table):
        raise AssertionError("called with other arguments")


@pytest.mark.parametrize(
    "logger",
    [
        OwnLogger(),
        OtherImageLogger(),
        SimpleNamespace(experiment=None),
        SimpleNamespace(experiment=object()),
        DummyLogger(),
        object(),
        None,
    ],
    ids=lambda logger: type(logger).__name__,
)
def test_a_logger_that_can_take_none_gets_none_without_an_error(logger, figure):
    log_both([logger], figure)


@pytest.mark.parametrize("names", [{"run_id": None}, {}], ids=["no run", "not MLflow's"])
def test_mlflow_without_a_run_gets_none(figure, names):
    client = MlflowClient()
    log_both([SimpleNamespace(experiment=client, **names)], figure)
    assert client.calls == []


def test_a_folder_that_is_not_of_a_csv_logger_stays_empty(tmp_path, figure):
    log_both([SimpleNamespace(experiment=SimpleNamespace(log_dir=str(tmp_path)), log_dir=str(tmp_path))], figure)
    assert files(tmp_path) == []


@pytest.mark.parametrize("logger", [WandbLogger(), SimpleNamespace(run_id="abc"), SimpleNamespace()])
def test_a_logger_with_a_dummy_experiment_is_left_alone(logger, figure, monkeypatch):
    def touched(*args, **kwargs):
        raise AssertionError("a dummy was used")

    monkeypatch.setattr(DummyExperiment, "nop", touched)
    monkeypatch.setattr(Figure, "savefig", touched)
    logger.experiment = DummyExperiment()
    log_both([logger], figure)
    assert getattr(logger, "calls", []) == []


@both_names
@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_other_processes_than_the_first_write_nothing(tmp_path, figure, monkeypatch, lightning, name):
    if name == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    logger = getattr(lightning.loggers, name)(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_both([logger], figure)
    assert list(tmp_path.iterdir()) == []


# figures and tables


@pytest.mark.parametrize("name", ["csv", "tensorboard", "wandb"])
def test_the_figure_stays_open_and_keeps_its_canvas(tmp_path, figure, name):
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    logger = {
        "csv": lambda: pytorch_lightning.loggers.CSVLogger(tmp_path),
        "tensorboard": lambda: pytorch_lightning.loggers.TensorBoardLogger(tmp_path),
        "wandb": WandbLogger,
    }[name]()
    canvas = figure.canvas
    log_figure([logger], "a", figure, 1)
    assert plt.fignum_exists(figure.number)
    assert figure.canvas is canvas


def test_a_figure_that_pyplot_does_not_know_is_logged(tmp_path):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    log_figure([logger], "a", Figure(figsize=(1, 1)), 1)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../../b", "."])
def test_a_name_that_would_leave_the_folder_is_an_error(tmp_path, figure, name):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    with pytest.raises(SeguqError, match="cannot be that of a file"):
        log_figure([logger], name, figure, 1)
    with pytest.raises(SeguqError, match="cannot be that of a file"):
        log_table([logger], name, ["x"], [[1]], 1)
    assert files(tmp_path) == []


def test_a_row_with_too_few_cells_is_an_error_that_names_it():
    with pytest.raises(SeguqError, match=r"row 1 of the table 'a' has 2 cells, but there are 3 columns"):
        log_table([], "a", COLUMNS, [["x", 1, 2], ["y", 1]], 1)


def test_a_table_without_a_row_has_its_columns(tmp_path):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    log_table([logger], "a", COLUMNS, [], 1)
    (file,) = files(tmp_path)
    assert (tmp_path / file).read_text() == "image,score,pixels\n"


def test_cells_with_commas_quotes_and_lines_are_read_back(tmp_path):
    logger = pytorch_lightning.loggers.CSVLogger(tmp_path)
    rows = [["a,b", '"c"', "d\ne"], ["", " ", "ä大"]]
    log_table([logger], "a", COLUMNS, rows, 1)
    (file,) = files(tmp_path)
    with (tmp_path / file).open(newline="", encoding="utf-8") as content:
        assert list(csv.reader(content)) == [COLUMNS, *rows]


LOG = """
import sys
from types import SimpleNamespace
from matplotlib.figure import Figure
from seguq.callbacks.loggers import log_figure, log_table

class Client:
    def log_figure(self, run_id, figure, artifact_file):
        print(artifact_file)

before = set(sys.modules)
loggers = [SimpleNamespace(experiment=Client(), run_id="abc"), SimpleNamespace(experiment=object()), object()]
log_figure(loggers, "a", Figure(), 1)
log_table(loggers, "a", ["x"], [[1]], 1)
packages = {"pytorch_lightning", "lightning", "tensorboard", "wandb", "mlflow", "comet_ml"}
print(packages & {name.split(".")[0] for name in set(sys.modules) - before})
"""


def test_logging_imports_no_package_of_a_logger():
    done = subprocess.run([sys.executable, "-c", LOG], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["figures/a-step=000001.png", "set()"]
