"Training: survives kills, bad disks and bad files; presets say what the paper says."
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from unsamflow.training import PRESETS, Run, load_checkpoint, load_config, save_checkpoint, save_weights, train, training_loader

TRAIN = '''
import json, sys, torch
torch.set_num_threads(1)
from unsamflow.training import load_config, train
train(load_config('demo', **json.loads(sys.argv[1])), sys.argv[2], progress=False)
'''


def start(overrides, folder):
    return subprocess.Popen([sys.executable, '-c', TRAIN, json.dumps(overrides), str(folder)], env=os.environ | {'OMP_NUM_THREADS': '1'}, stderr=subprocess.PIPE)


@pytest.mark.timeout(900)
def test_killed_ten_times_at_random_it_ends_with_the_same_weights(tiny, tmp_path):
    overrides = tiny | {'steps': 40, 'checkpoint_minutes': 0.0}
    whole = start(overrides, tmp_path / 'whole')
    assert whole.wait() == 0, whole.stderr.read().decode()
    rng, kills = random.Random(0), 0
    while kills < 10:
        process = start(overrides, tmp_path / 'killed')
        before = step_of(tmp_path / 'killed')
        wait_for_step(process, tmp_path / 'killed', min(before + rng.randint(1, 3), 39))
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert step_of(tmp_path / 'killed') >= before  # nothing that a checkpoint held is lost
    last = start(overrides, tmp_path / 'killed')
    assert last.wait() == 0, last.stderr.read().decode()
    a, b = (load_checkpoint(tmp_path / name / 'checkpoint.pt')['model'] for name in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    steps = [json.loads(line)['step'] for line in (tmp_path / 'killed/log.jsonl').read_text().splitlines()]
    assert steps == list(range(1, 41))


def step_of(folder):
    path = folder / 'checkpoint.pt'
    return load_checkpoint(path)['step'] if path.is_file() else 0


def wait_for_step(process, folder, step, seconds=60):
    "Waits for the log's line of that step, which comes just before its checkpoint."
    end, log = time.time() + seconds, folder / 'log.jsonl'
    while time.time() < end and process.poll() is None:
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    path = tmp_path / 'checkpoint.pt'
    save_checkpoint(path, step=1)
    script = f'''
import resource, signal, torch
from unsamflow.training import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
save_checkpoint({str(path)!r}, step=2, weights=torch.zeros(100000))
'''
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert process.returncode != 0 and str(path) in process.stderr.strip().splitlines()[-1]
    assert load_checkpoint(path)['step'] == 1
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.pt']


def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        train(load_config('demo', **tiny), tmp_path / 'file' / 'run', progress=False)


def test_checkpoint_of_another_network_is_refused(tiny, tmp_path):
    Run(load_config('demo', **tiny), tmp_path).save()
    with pytest.raises(ValueError, match='mf: checkpoint None, now .concat'):
        train(load_config('demo', mf='concat', **tiny), tmp_path, progress=False)


def test_time_limit_leaves_a_checkpoint(tiny, tmp_path):
    run = train(load_config('demo', **tiny | {'steps': 1000}), tmp_path, minutes=0.02, progress=False)
    assert 0 < run.step < 1000 and load_checkpoint(run.checkpoint)['step'] == run.step
    assert not (tmp_path / 'weights.safetensors').exists()


def test_stream_continues_where_it_was(tiny):
    config = load_config('demo', **tiny)
    whole = list(training_loader(config, config.phases[0], 0, 4))
    rest = list(training_loader(config, config.phases[0], 2, 4))
    for a, b in zip(whole[2:], rest, strict=True):
        assert torch.equal(a.image_1, b.image_1) and a.name == b.name


def test_workers_change_nothing(tiny):
    config = load_config('demo', **tiny)
    other = load_config('demo', **tiny | {'workers': 2})
    for a, b in zip(training_loader(config, config.phases[0], 0, 3), training_loader(other, other.phases[0], 0, 3), strict=True):
        assert torch.equal(a.image_1, b.image_1)


@pytest.mark.parametrize('name', sorted(p.stem for p in PRESETS.glob('*.yaml')))
def test_every_preset_is_valid(name):
    assert load_config(name).steps > 0


@pytest.mark.parametrize('key, value', [('stepps', 3), ('steps', '3'), ('steps', 0), ('fit', 'stretch'), ('augmentation.zoom', [1.0]), ('stages', []), ('mf', 'max')])
def test_bad_configuration_names_the_key(key, value):
    with pytest.raises(ValueError, match=key.split('.')[-1]):
        load_config('demo', **{key: value})


def test_stages_must_start_at_zero():
    with pytest.raises(ValueError, match='stages: starts must begin at 0'):
        load_config('demo', stages=[{'start': 0.5, 'census': 1.0}])


PAPER = {  # the literals of the schedule, optimiser and weights
    'steps': 200_000, 'batch': 8, 'betas': (0.9, 0.999), 'eps': 1e-7, 'weight_decay': 1e-6, 'clip': 10.0, 'level_weights': (1.0, 1.0, 1.0, 1.0, 0.0),
    'aug_weight': 0.1, 'hg_weight': 0.1, 'hg_regions': 6, 'swap': 0.5, 'mirror': 0.5}
AUGMENTATION = {'brightness': 0.3, 'contrast': 0.3, 'saturation': 0.3, 'hue': 0.1, 'blur_probability': 0.5, 'blur_radius': 3.0, 'noise': 0.04, 'pasted_objects': 3, 'cache_size': 100, 'horizontal_mirror': 0.5}
KITTI = {'zoom': (1.0, 1.4), 'relative_zoom': (0.99, 1.01), 'rotation': 0.01, 'relative_rotation': 0.01, 'squeeze': (1.0, 1.0), 'shift': 0.01, 'relative_shift': 0.00125, 'vertical_mirror': 0.0, 'crop': (192, 640)}
SINTEL = {'zoom': (1.0, 1.5), 'relative_zoom': (0.985, 1.015), 'rotation': 0.2, 'relative_rotation': 0.015, 'squeeze': (0.86, 1.16), 'shift': 0.05, 'relative_shift': 0.00375, 'vertical_mirror': 0.5, 'crop': (320, 704)}


@pytest.mark.parametrize('name, size, fit, threshold, own', [('kitti', (256, 832), 'resize', 0.5, KITTI), ('sintel', (384, 832), 'crop', 3.0, SINTEL)])
def test_presets_hold_the_papers_numbers(name, size, fit, threshold, own):
    config = load_config(name)
    assert (config.size, config.fit, config.hg_threshold) == (size, fit, threshold)
    assert {k: getattr(config, k) for k in PAPER} == PAPER
    assert {k: getattr(config.augmentation, k) for k in AUGMENTATION | own} == AUGMENTATION | own
    assert [(p.start, p.schedule, p.learning_rate) for p in config.phases] == [(0.0, 'constant', 2e-4), (0.5, 'one-cycle', 4e-4)]
    first, second, third = config.stages
    assert (first.l1, first.ssim, first.census, first.occlusion, first.self_supervision) == (0.15, 0.85, 0.0, 'range-map', 0.0)
    assert (second.start, second.l1, second.ssim, second.census, second.occlusion, second.self_supervision) == (0.25, 0.0, 0.0, 1.0, 'forward-backward', 0.02)
    assert (third.start, third.census, third.self_supervision, third.adaptations) == (0.75, 1.0, 0.02, True)


def test_weights_cannot_be_written_into_a_file(tiny, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        save_weights(Run(load_config('demo', **tiny), tmp_path).objective.model, tmp_path / 'file' / 'weights.safetensors')
