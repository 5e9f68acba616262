"""DALI's CPU pipeline on a folder of JPEGs, for `loader.py`; runs in an environment with DALI and nothing of ours.

    python dali_worker.py FOLDER SIDE BATCH_SIZE

Draws an epoch for each line on its standard input, and answers with a line of JSON: seconds of wall and of CPU time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from nvidia.dali import fn, pipeline_def, types  # type: ignore[import-not-found,import-untyped,unused-ignore]


# synchronous, because a pipeline that works ahead would spend its time in the other contestants' rounds
@pipeline_def(num_threads=1, device_id=None, exec_dynamic=False, exec_pipelined=False, exec_async=False)  # type: ignore[untyped-decorator,unused-ignore]
def photos(folder: str, side: int) -> Any:
    jpegs, labels = fn.readers.file(file_root=folder, random_shuffle=True, name="reader")
    images = fn.decoders.image_random_crop(jpegs, output_type=types.RGB)
    images = fn.resize(images, size=(side, side), interp_type=types.INTERP_LINEAR)
    return fn.flip(images, horizontal=fn.random.coin_flip()), labels


def main() -> None:
    folder, side, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pipeline = photos(folder, side, batch_size=batch_size, seed=0)
    pipeline.build()
    steps = pipeline.epoch_size("reader") // batch_size
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            images, _ = pipeline.run()
            assert tuple(images.as_tensor().shape()) == (batch_size, side, side, 3)
        answer = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "images": steps * batch_size}
        print(json.dumps(answer), flush=True)


main()
