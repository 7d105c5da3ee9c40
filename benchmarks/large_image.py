"""What a 20,000 x 20,000 image needs: time and memory of SlidingWindow.stream over a tiled GeoTIFF, and of a resume.

    python benchmarks/large_image.py --size 20000

The run is killed on its way and taken up again; memory is the peak of the process that does it. It needs rasterio, and
on the disk about 13 bytes a pixel.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 3, padding=1),
        nn.Upsample(scale_factor=4, mode="bilinear"),
    ).eval()


def written(path, size):
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (3, 1024, 1024), np.uint8)
    settings = {"driver": "GTiff", "dtype": "uint8", "count": 3, "tiled": True, "blockxsize": 512, "blockysize": 512}
    with rasterio.open(path, "w", height=size, width=size, **settings) as file:
        for top in range(0, size, 1024):
            for left in range(0, size, 1024):
                height, width = min(1024, size - top), min(1024, size - left)
                file.write(np.roll(tile, top + left, 2)[:, :height, :width], window=Window(left, top, width, height))


def run(raster, folder, window):
    """One process: stream, and say how much memory it took."""
    import seguq
    from seguq.data import RasterReader
    from seguq.store import MapFiles

    torch.set_num_threads(1)
    inner = seguq.Deterministic(network(), calibrator=None, measures=["predictive_entropy", "energy"])
    est = seguq.SlidingWindow(inner, window, overlap=0.25, margin=16, calibrator=None)
    est.stream(RasterReader(raster), MapFiles(folder))
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}))


def rows(folder):
    meta = folder / "maps.json"
    return json.loads(meta.read_text())["rows"] if meta.is_file() else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(options.child[0], Path(options.child[1]), options.window)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for size in (options.size // 4, options.size):
            raster, folder = Path(temporary) / f"{size}.tif", Path(temporary) / f"maps-{size}"
            written(raster, size)
            child = [sys.executable, __file__, "--window", str(options.window), "--child", str(raster), str(folder)]
            begun = time.perf_counter()
            process = subprocess.Popen(child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while rows(folder) < size // 2:
                time.sleep(0.05)
                if process.poll() is not None:
                    raise SystemExit("the run ended before it could be killed")
            process.send_signal(signal.SIGKILL)
            process.wait()
            half, killed = time.perf_counter() - begun, rows(folder)
            begun = time.perf_counter()
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            rest, peak = time.perf_counter() - begun, json.loads(done.stdout)["peak"]
            print(f"{size} x {size}: killed after {half:.0f} s at row {killed}; the rest took {rest:.0f} s", end="")
            print(f" and at most {peak:.0f} MiB of memory (the image: {3 * size * size / 2**20:.0f} MiB)", flush=True)
            raster.unlink()


if __name__ == "__main__":
    main()
