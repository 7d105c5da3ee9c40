import copy
import pickle
import subprocess
import sys
from abc import ABC, abstractmethod

import pytest
from torch import nn

from seguq.calibration import Calibrator
from seguq.core.errors import UsageError
from seguq.core.named import Named, hand_on, modules_of
from seguq.inference import Estimator


class Shape(Named, ABC):
    """A kind."""

    def __init__(self, color="red"):
        self.color = color

    @abstractmethod
    def area(self): ...


class Round(Shape):
    """Between the kind and its classes: cannot be made, so it is none."""


class Circle(Round):
    name = "circle"

    def __init__(self, radius, **settings):
        super().__init__(**settings)
        self.radius = radius

    def area(self):
        return 3.14 * self.radius**2

    def fitted(self):
        return {"area": self.area()}


class Square(Shape):
    stored_as = {"side": "sides.side"}  # noqa: RUF012

    def __init__(self, side=2, network=None):
        super().__init__()
        self.sides, self.network = type("Sides", (), {"side": side}), network

    def area(self):
        return self.sides.side**2


def test_a_class_is_known_by_its_name_and_by_the_name_of_the_class():
    assert Shape.named("circle") is Shape.named("Circle") is Circle
    assert Shape.named("Square") is Square
    assert Shape.named("tests.core.test_named.Circle") is Circle


def test_kinds_do_not_know_each_others_names():
    with pytest.raises(UsageError, match=r"no Shape 'mc_dropout': there are Square, circle; one of your own"):
        Shape.named("mc_dropout")


def test_what_cannot_be_made_is_not_there():
    assert Shape.names() == ("Square", "circle")
    with pytest.raises(UsageError, match="no Shape 'Round'"):
        Shape.named("Round")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.core.no_such_module.Circle", "cannot be imported"),
        ("tests.core.test_named.Hexagon", "cannot be imported"),
        ("tests.core.test_named.pytest", "is no Shape"),
        ("tests.core.test_named.Round", "is no Shape"),
        ("seguq.inference.deterministic.Deterministic", "is no Shape: it must derive from tests.core.Shape"),
        (".Circle", "cannot be imported"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_an_error_that_names_it(path, words):
    with pytest.raises(UsageError, match=words) as caught:
        Shape.named(path)
    assert path in str(caught.value)


def test_an_object_is_made_of_those_arguments_on_offer_that_it_takes():
    made = Shape.make("circle", radius=2, color="blue", side=5)
    assert (made.radius, made.color) == (2, "blue")


def test_arguments_are_those_of_the_constructor_and_of_what_it_hands_its_settings_to():
    circle = Circle(2, color="blue")
    assert circle.arguments() == {"radius": 2, "color": "blue"}
    assert Square(3).arguments() == {"side": 3, "network": None}
    assert type(circle)(**circle.arguments()).arguments() == circle.arguments()


def test_a_repr_shows_what_differs_from_the_defaults_and_what_was_learned():
    assert repr(Circle(2)) == "Circle(radius=2) [area=12.56]"
    assert repr(Circle(2, color="blue")) == "Circle(radius=2, color='blue') [area=12.56]"
    assert repr(Square()) == "Square()"
    assert repr(Square(network=nn.Sequential(nn.ReLU()))) == "Square(network=<Sequential>)"


def test_an_argument_that_is_not_kept_is_an_error_that_names_it():
    class Blob(Shape):
        def __init__(self, size=1):
            super().__init__()
            self.bigness = size

        def area(self):
            return self.bigness

    with pytest.raises(UsageError, match=r"Blob takes the argument 'size', but does not keep it: set self\.size"):
        repr(Blob())
    Shape._known.pop("Blob")


def test_a_class_of_the_same_name_in_another_module_does_not_take_its_place():
    Estimator.named("mc_dropout")
    with pytest.raises(UsageError, match=r"give the Estimator somewhere\.MCDropout another one"):
        type("MCDropout", (Estimator,), {"name": "mine", "__module__": "somewhere"})


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_know_their_arguments(again):
    assert again(Circle(2)).arguments() == {"radius": 2, "color": "red"}


def test_the_name_of_one_of_seguqs_own_cannot_be_taken():
    Estimator.named("mc_dropout")
    with pytest.raises(UsageError, match=r"'mc_dropout' is that of seguq\.inference\.mc_dropout\.MCDropout: give"):
        type("Mine", (Estimator,), {"name": "mc_dropout"})


def test_a_class_that_is_defined_again_takes_the_place_of_the_first():
    first = type("Notebook", (Circle,), {"name": "notebook"})
    second = type("Notebook", (Circle,), {"name": "notebook"})
    assert Shape.named("notebook") is second is not first
    Shape._known.pop("notebook"), Shape._known.pop("Notebook")


def test_the_files_of_a_folder_are_its_modules_those_of_inner_folders_too():
    found = modules_of("seguq.inference")
    assert {"seguq.inference.mc_dropout", "seguq.inference.tiles.sliding_window"} <= set(found)


def test_a_folder_hands_its_classes_on():
    get = hand_on(Calibrator)
    assert get("TemperatureScaling") is Calibrator.named("global")
    for name in ("Nothing", "temperature_scaling", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"'seguq.calibration' has no attribute '{name}'"):
            get(name)


@pytest.mark.parametrize(
    ("asked", "loaded", "not_loaded"),
    [
        ("from seguq.inference import MCDropout", "mc_dropout", "swag"),
        ("import seguq; seguq.inference.Estimator.named('deterministic')", "deterministic", "tta"),
    ],
)
def test_a_class_is_imported_when_it_is_asked_for_and_no_other(asked, loaded, not_loaded):
    code = f"{asked}\nimport sys\nfor n in {(loaded, not_loaded)!r}: print('seguq.inference.' + n in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
