"""The preparation pipeline on generated trees of any size, interrupted at random by kill -9, and what it cost per image.

    python tests/scale.py --pairs 55700 --kills 5 --results results/scale

Frames are tiny, so that only their number matters. What is claimed is checked: every frame has its masks and its prepared file, none was
made twice, and CPU time per image and memory do not grow with the number of images.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

DRIVES = 50  # of two cameras each
SIZE = (16, 48)
OVERRIDES = {'size': [64, 64], 'augmentation.crop': [64, 64]}


def picture(drive, number):
    "A frame: noise that belongs to the drive, and a square that moves through it."
    image = np.random.default_rng(drive).integers(0, 120, (*SIZE, 3), np.uint8)
    image[4:12, number % 40:number % 40 + 8] = 200
    return image


def make_tree(data, pairs):
    "Drives with as many pairs as asked for, and the benchmark pictures that a list wants to leave out: none of them occurs."
    frames = pairs // (2 * DRIVES) + 1
    assert (frames - 1) * 2 * DRIVES == pairs, f'pairs: expected a multiple of {2 * DRIVES}, found {pairs}'
    for i in range(2 * DRIVES):
        folder = data / f'KITTI-raw/2011_09_26/2011_09_26_drive_{i // 2:04}_sync/image_0{2 + i % 2}/data'
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(frames):
            cv2.imwrite(str(folder / f'{number:010}.png'), picture(i, number))
    for folder in ('KITTI-2015/training/image_2', 'KITTI-2012/training/colored_0'):
        (data / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(data / folder / '000000_10.png'), picture(10_000, 0))
    return frames * 2 * DRIVES


class Squares:
    "A mask generator that finds the square, and writes down each call."

    def __init__(self, log):
        self.log, self.settings = log, {'generator': 'Squares'}

    def __call__(self, image):
        from unsamflow.masks import make_record
        with open(self.log, 'a') as file:
            file.write('.')
        return [make_record(image[..., 0] == 200)]


def work(base, processes):
    "One start of the pipeline: list, masks, prepared frames; only what is missing. Runs in a process of its own, to be killed."
    from unsamflow.datasets import setting, write_list
    from unsamflow.preparation import RULES, build_list, describe_rule, open_executor, opened_source, prepare_cache, prepare_masks
    from unsamflow.training import Source, load_config, open_source
    source = Source(name='kitti-raw', options={'list_file': 'kitti-raw', 'masks': 'kitti-raw'})
    with open_executor(processes) as (executor, workers):
        listed = build_list('kitti-raw', executor=executor, log=base / 'log-list.jsonl')
        setting('lists').mkdir(exist_ok=True)
        write_list(setting('lists') / 'kitti-raw.txt', listed.pairs, describe_rule('kitti-raw', RULES['kitti-raw'], listed))
        generator = {'name': 'scale:Squares', 'log': str(base / 'calls')}
        prepare_masks(opened_source(source), setting('masks') / 'kitti-raw', generator, executor, workers, log=base / 'log-masks.jsonl')
        config = load_config('kitti', **OVERRIDES, cache=str(setting('cache')))
        prepare_cache(open_source(source, config), executor, workers, log=base / 'log-cache.jsonl')


def products(base):
    "Every finished file with the time of its making."
    return {path: path.stat().st_mtime_ns for pattern in ('masks/**/*.json.gz', 'cache/**/*.npz') for path in base.glob(pattern) if not path.name.startswith('.')}


def progress(base, frames):
    "Share of the work that is done, 0 to 1."
    thumbnails = len(list(base.glob('cache/thumbnails/kitti-raw/*.npz'))) / (2 * DRIVES)
    masks = (base / 'calls').stat().st_size / frames if (base / 'calls').exists() else 0
    cached = sum(len(files) for _, _, files in os.walk(base / 'cache')) - 2 * DRIVES if masks else 0
    return (thumbnails + masks + max(0, cached) / frames) / 3


def run(base, pairs, kills, seed=0, processes=1):
    "Makes a tree, prepares it with interruptions, checks the outcome; returns the figures."
    began, rng = time.perf_counter(), random.Random(seed)
    frames = make_tree(base / 'data', pairs)
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])} | {f'UNSAMFLOW_{k.upper()}': str(base / k) for k in ('data', 'masks', 'cache', 'lists')}
    goals, known, killed = sorted(rng.uniform(0.02, 0.98) for _ in range(kills)), {}, []
    while True:
        process = subprocess.Popen([sys.executable, __file__, '--work', str(base), '--processes', str(processes)], env=environment, stdout=subprocess.DEVNULL, stderr=open(base / 'errors', 'w'))
        while process.poll() is None and not (goals and progress(base, frames) >= goals[0]):
            time.sleep(0.2 if pairs < 5000 else 1)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.append(round(progress(base, frames), 4))
        goals = goals[1:]
        known |= products(base)
    assert process.returncode == 0, (base / 'errors').read_text()[-2000:]
    return check(base, pairs, frames, known, killed, processes) | measure(base) | {'minutes': round((time.perf_counter() - began) / 60, 1)}


def check(base, pairs, frames, known, killed, processes):
    "Nothing lost, nothing done twice, everything right."
    from unsamflow.datasets import read_frame, read_list
    done = products(base)
    again = sum(done[path] != when for path, when in known.items())
    calls = (base / 'calls').stat().st_size
    wrong = 0
    cached = [path for path in done if path.suffix == '.npz' and 'thumbnails' not in path.parts]
    for path in cached:
        labels = read_frame(path).segments[0]
        wrong += set(labels.unique().tolist()) != {0, 1}
    found = {'pairs': len(read_list(base / 'lists/kitti-raw.txt')), 'masks': sum(path.suffix == '.gz' for path in done), 'prepared': len(cached), 'frames': frames,
             'killed_at': killed, 'generator_calls': calls, 'made_again': again, 'wrong': wrong}
    assert (found['pairs'], found['masks'], found['prepared'], again, wrong) == (pairs, frames, frames, 0, 0), found
    assert frames <= calls <= frames + processes * len(killed), found  # a kill may cost the images that were being made
    return found


def measure(base):
    "CPU milliseconds per image and memory, as the logs have them, over the course of each stage."
    figures = {}
    for stage in ('masks', 'cache'):
        lines = [json.loads(line) for line in (base / f'log-{stage}.jsonl').read_text().splitlines()]
        course, before = [], 0
        for old, new in zip(lines, lines[1:]):
            if new['done'] < old['done']:  # a new start
                before += old['done']
            elif new['done'] > old['done']:
                course.append([before + new['done'], round(1000 * (new['cpu_seconds'] - old['cpu_seconds']) / (new['done'] - old['done']), 3), new['memory_mb']])
        figures[stage] = course
    return {'course': figures, 'cpu_ms': {k: round(float(np.average([c[1] for c in v])), 3) if v else None for k, v in figures.items()},
            'memory_mb': {k: max((c[2] for c in v), default=None) for k, v in figures.items()}}


def draw(path, runs):
    "CPU time per image and memory against the images done."
    import matplotlib.pyplot as plt
    plt.style.use(Path(__file__).parents[1] / 'nbs/figures.mplstyle')
    fig, ax = plt.subplots(1, 2, figsize=(8, 2.6), layout='constrained')
    for stage, colour in (('masks', 'C0'), ('cache', 'C1')):
        for found, style in zip(runs, ('--', '-')):
            done, cost, memory = np.array(found['course'][stage]).T
            width = max(1, len(cost) // 60)
            smooth = np.convolve(cost, np.ones(width) / width, 'valid')
            ax[0].plot(done[-len(smooth):], smooth, style, c=colour)
            ax[1].plot(done, memory, style, c=colour, label=f'{stage}, {found["pairs"]:,} pairs')
    ax[0].set_xlabel('images done'); ax[0].set_ylabel('CPU time per image, ms'); ax[0].set_ylim(0)
    ax[1].set_xlabel('images done'); ax[1].set_ylabel('memory of a process, MB'); ax[1].set_ylim(0, 1000); ax[1].legend(loc='lower right')
    fig.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pairs', type=int, default=55_700)
    parser.add_argument('--base', type=int, default=1_000, help='pairs of the small tree that it is compared with')
    parser.add_argument('--kills', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', help='where the trees go; default: a temporary folder')
    parser.add_argument('--results', type=Path, default=Path('results/scale'))
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--work', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.processes)
    from unsamflow.experiments import environment, write_json
    runs = []
    for pairs, kills in ((options.base, 0), (options.pairs, options.kills)):
        with tempfile.TemporaryDirectory(dir=options.folder) as base:
            runs.append(run(Path(base), pairs, kills, options.seed, options.processes))
    options.results.mkdir(parents=True, exist_ok=True)
    write_json(options.results / 'environment.json', environment())
    draw(options.results / 'scale.png', runs)
    for found in runs:
        found['course'] = {k: v[::max(1, len(v) // 100)] for k, v in found['course'].items()}
    write_json(options.results / 'metrics.json', {f'{r["pairs"]} pairs': r for r in runs} | {'seed': options.seed, 'processes': options.processes})
    print(json.dumps([{k: v for k, v in r.items() if k != 'course'} for r in runs], indent=1))


if __name__ == '__main__':
    main()
