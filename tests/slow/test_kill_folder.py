"""Tasks for people are whole, and what people did is there, however often the process that sends them is killed."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from seguq.annotators import Folder
from seguq.data import ImageSource, nuclei_mini
from tests.annotators.selections import selection

pytestmark = pytest.mark.slow
CLASSES = nuclei_mini() / "classes.json"
IMAGES = ImageSource(nuclei_mini() / "images" / "pool")
ASKED = selection(0, *((image_id, (8, 8, 40, 60)) for image_id in IMAGES.ids[:40]))
SEND = """
import sys
from seguq.annotators import Folder
from tests.slow.test_kill_folder import ASKED, CLASSES, IMAGES
Folder(sys.argv[1] + "-warm", CLASSES).send(ASKED, IMAGES)  # all that is imported, and once
people = Folder(sys.argv[1], CLASSES)
print("begins", flush=True)
while True:
    people.send(ASKED, IMAGES)
    list(people.collect())
"""


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_send_that_is_killed_at_any_time_is_completed(tmp_path):
    place, root = tmp_path / "tasks", Path(__file__).parents[2]
    mask = cv2.imencode(".png", np.ones((256, 256), np.uint8))[1].tobytes()
    rng = np.random.default_rng(0)
    painted = {}
    for kill in range(12):
        process = subprocess.Popen([sys.executable, "-c", SEND, place], cwd=root, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        template = place / "round-00" / ASKED.image_ids[2 * kill] / "template.png"
        if template.is_file():
            template.with_name("mask.png").write_bytes(mask)
            painted[template.with_name("mask.png").relative_to(place)] = mask
    people = Folder(place, CLASSES)
    people.send(ASKED, IMAGES)
    found = list(people.collect())
    assert len(painted) >= 3 and len(found) == len(painted)
    undisturbed = tmp_path / "undisturbed"
    other = Folder(undisturbed, CLASSES)
    other.send(ASKED, IMAGES)
    for name, content in painted.items():
        (undisturbed / name).write_bytes(content)
    list(other.collect())
    assert contents(place) == contents(undisturbed)
