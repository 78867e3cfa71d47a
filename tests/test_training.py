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
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unsamflow.network import UnSAMFlow
from unsamflow.training import (
    MASK_CORRELATION, PRESETS, Log, Objective, Run, Source, branch_off, cache_name, check_data, check_same_run, load_checkpoint, load_config, make_optimizer, read_variants,
    save_checkpoint, save_weights, start_from, train, training_loader)

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


def test_log_and_curves_agree_after_an_interruption(tiny, tmp_path):
    def stop(model, step):
        if step == 5:
            raise KeyboardInterrupt
        return {'validation_epe': float(step)}

    config = load_config('demo', checkpoint_minutes=0.0, **tiny)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, stop, validate_every=1, progress=False)  # step 5 is taken, but neither logged nor saved
    train(config, tmp_path, progress=False)
    lines = {line['step']: line for line in map(json.loads, (tmp_path / 'log.jsonl').read_text().splitlines())}
    assert list(lines) == list(range(1, 9))
    curves = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    for name in ('loss', 'gradient_norm', 'learning_rate'):
        drawn = {event.step: event.value for event in curves.Scalars(name)}
        assert drawn == pytest.approx({step: line[name] for step, line in lines.items()}, rel=1e-5)
    assert {event.step: event.value for event in curves.Scalars('validation_epe')} == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_log_holds_the_learning_rate_of_the_step_and_its_last_lines(tiny, tmp_path):
    phases = [{'schedule': 'one-cycle', 'learning_rate': 4e-4, **phase} for phase in tiny['phases']]
    run = train(load_config('demo', **tiny | {'phases': phases, 'steps': 5, 'log_every': 3}), tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [3, 5] and all(line['learning_rate'] > 0 for line in lines)
    with safe_open(tmp_path / 'weights.safetensors', 'pt') as file:
        assert file.metadata() == {'mask_features': '', 'preset': 'demo', 'data': 'scenes', 'steps': '5', 'seed': '0'}
    assert run.step == 5


def test_a_skipped_step_does_not_spoil_the_means(tmp_path):
    log = Log(tmp_path, 0)
    for value in (1.0, float('nan'), 3.0):
        log.add({'loss': torch.tensor(value)})
    assert log.write(3)['loss'] == 2.0
    log.close()
    silent = Log(tmp_path / 'other', 0, active=False)  # of several processes, one writes
    silent.write(1)
    silent.close()
    assert not (tmp_path / 'other').exists()


VARIANTS = [
    ({}, {'affine', 'occlusion'}), ({'aug': True}, {'affine', 'occlusion', 'cache_filled'}), ({'hg': True}, {'affine', 'occlusion', 'homography'}),
    ({'mf': 'concat'}, {'affine', 'occlusion'}), ({'mf': 'residual'}, {'affine', 'occlusion'}), ({'mf': 'concat+residual'}, {'affine', 'occlusion'}),
    ({'smoothness': 'image-edge', 'smoothness_weight': 50.0}, {'affine', 'occlusion', 'smoothness'}),
    ({'smoothness': 'segment-boundary', 'smoothness_weight': 50.0}, {'affine', 'occlusion', 'smoothness'})]


@pytest.mark.parametrize('switches, names', VARIANTS)
def test_every_variant_has_its_terms_and_reaches_every_parameter(tiny, switches, names):
    config = load_config('demo', **tiny, **switches)
    torch.manual_seed(0)
    objective = Objective(config)
    terms = objective(next(training_loader(config, config.phases[0], 7, 8)), 7)
    assert terms.keys() == names | {'loss', 'photometric', 'occluded'}
    terms['loss'].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert sum(p.grad.abs().max() > 0 for p in objective.parameters()) > 0.9 * len(list(objective.parameters()))


def test_missing_masks_and_missing_data_are_found_before_the_first_step(tiny, tmp_path):
    late = tiny['phases'] + [{'start': 0.5, 'data': [{'name': 'stereo'}]}]
    with pytest.raises(ValueError, match='stereo: expected masks, since the preset switches aug, hg on, found none'):
        train(load_config('demo', aug=True, hg=True, **tiny | {'phases': late}), tmp_path, progress=False)
    late[1]['data'] = [{'name': 'frames', 'options': {'source': str(tmp_path / 'nowhere')}}]
    with pytest.raises(FileNotFoundError, match='nowhere'):
        train(load_config('demo', **tiny | {'phases': late}), tmp_path, progress=False)
    assert not (tmp_path / 'log.jsonl').exists()
    check_data(load_config('demo', **tiny | {'phases': late}), step=8)  # all behind
    late[1]['start'] = 0.9
    check_data(load_config('demo', **tiny | {'phases': late, 'steps': 4}))  # a phase that a run this short never enters


def test_prepared_frames_of_other_masks_or_sizes_lie_elsewhere():
    kitti, larger, crops = load_config('kitti'), load_config('kitti', size=[320, 960]), load_config('sintel')
    plain, masked = Source(name='kitti-raw'), Source(name='kitti-raw', options={'masks': 'vit-h'})
    assert len({cache_name(plain, kitti), cache_name(masked, kitti), cache_name(plain, larger), cache_name(plain, crops)}) == 4
    few, many = (Source(name='scenes', options={'count': n}) for n in (4, 4000))
    assert cache_name(few, crops) == cache_name(many, load_config('demo'))


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


@pytest.mark.parametrize('name', sorted({p.stem for p in PRESETS.glob('*.yaml')} - {'variants'}))
def test_every_preset_is_valid_with_every_variant(name):
    assert load_config(name).steps > 0
    assert all(load_config(f'{name}-{variant}').name == f'{name}-{variant}' for variant in read_variants())


@pytest.mark.parametrize('key, value', [
    ('stepps', 3), ('steps', '3'), ('steps', 0), ('fit', 'stretch'), ('augmentation.zoom', [1.0]), ('stages', []), ('mf', 'max'), ('clip', -1.0), ('swap', 2.0),
    ('augmentation.crop', [128, 128]), ('smoothness_weight', -1.0), ('size', [0, 64]), ('level_weights', [0.0] * 5), ('level_weights', [1.0, 1.0, 1.0, 1.0, -1.0]),
    ('augmentation.cache_size', 0), ('stages', [{'start': 0.0}]), ('phases', [{'data': []}])])
def test_bad_configuration_is_one_line_that_names_the_key(key, value):
    with pytest.raises(ValueError, match=key) as error:
        load_config('demo', **{key: value})
    assert str(error.value).startswith('demo: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('text, words', [('steps: [3', 'expected yaml'), ('- steps', 'expected keys and values, found list')])
def test_bad_preset_file_is_named(tmp_path, text, words):
    (tmp_path / 'mine.yaml').write_text(text)
    with pytest.raises(ValueError, match=rf'mine.yaml: {words}') as error:
        load_config(tmp_path / 'mine.yaml')
    assert '\n' not in str(error.value)


def test_stages_must_start_at_zero():
    with pytest.raises(ValueError, match='stages: starts must begin at 0'):
        load_config('demo', stages=[{'start': 0.5, 'census': 1.0}])


@pytest.mark.parametrize('changes, words', [
    ({'hg': True, 'stages': [{'start': 0.0, 'census': 1.0}]}, 'expected one with adaptations, where hg can enter'),
    ({'smoothness': 'image-edge', 'stages': [{'start': 0.0, 'census': 1.0}]}, 'expected one with adaptations, where smoothness can enter'),
    ({'aug': True, 'stages': [{'start': 0.0, 'census': 1.0, 'adaptations': True}]}, 'expected self_supervision above 0 where aug enters'),
    ({'fit': 'resize', 'scale': [0.5, 1.0]}, 'scale: expected')])
def test_what_would_be_ignored_in_silence_is_an_error(changes, words):
    with pytest.raises(ValueError, match=words):
        load_config('demo', **changes)


def test_a_checkpoint_from_before_a_field_counts_with_its_default():
    config = load_config('demo')
    saved = json.loads(config.model_dump_json())
    del saved['scale'], saved['augmentation']['noise']
    check_same_run('checkpoint.pt', saved, config)
    with pytest.raises(ValueError, match='augmentation: checkpoint'):
        check_same_run('checkpoint.pt', saved, load_config('demo', **{'augmentation.noise': 0.1}))


@pytest.mark.parametrize('steps', [1, 2, 19, 20, 21, 60])
def test_a_cycle_of_any_length_has_a_rate_at_every_step(steps):
    config = load_config('kitti')
    optimizer, schedule = make_optimizer(torch.nn.Linear(2, 2), config, config.phases[1], steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 4e-4 for rate in rates)
    falling = rates[rates.index(max(rates)):]
    assert falling == sorted(falling, reverse=True) and len(falling) >= 0.9 * steps


def test_weights_of_another_kind_of_mask_features_are_refused(tmp_path):
    save_weights(UnSAMFlow('concat'), tmp_path / 'weights.safetensors')
    with pytest.raises(ValueError, match=r"weights.safetensors: expected weights for mask features 'concat\+residual', found 'concat'"):
        start_from(UnSAMFlow('concat+residual'), tmp_path / 'weights.safetensors')
    start_from(UnSAMFlow('concat'), tmp_path / 'weights.safetensors')


def test_two_places_to_start_from_are_an_error(tiny, tmp_path):
    with pytest.raises(ValueError, match="branch, weights: expected one place to start from, found 'a.pt' and 'b.safetensors'"):
        train(load_config('demo', **tiny), tmp_path, branch='a.pt', weights='b.safetensors', progress=False)


@pytest.mark.parametrize('mf', [None, 'concat'])
def test_a_baseline_without_moments_can_be_branched_from(tiny, tmp_path, mf):
    "Every step of its phase was skipped so far."
    baseline = Run(load_config('demo', **tiny), tmp_path)
    baseline.step = 6
    baseline.save('branch.pt')
    run = Run(load_config('demo', mf=mf, **tiny), tmp_path / 'variant')
    run.branch(tmp_path / 'branch.pt')
    assert run.step == 6 and not run.optimizer.state
    assert torch.equal(run.objective.model.estimator.first[0].bias, baseline.objective.model.estimator.first[0].bias)


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


SHARED = '''
import json, sys, torch
from accelerate import Accelerator, debug_launcher
from unsamflow.training import Run, load_config, train, training_loader


def work(overrides, folder, mode):
    torch.set_num_threads(1)
    config, accelerator = load_config('demo', **overrides), Accelerator(cpu=True)
    if mode == 'train':
        return train(config, folder, accelerator=accelerator, progress=False)
    if mode == 'begin':
        return train(config, folder, accelerator=accelerator, progress=False, minutes=0.0)
    if mode == 'bad':
        return skip(Run(config, folder, accelerator))
    torch.set_default_dtype(torch.float64)  # in single precision, rounding decides differently about a few pixels' occlusion, and 1e-5 is out of reach
    run = Run(config, folder, accelerator)
    torch.set_default_dtype(torch.float32)
    imitate, double = run.objective.imitate, lambda pair: pair._replace(image_1=pair.image_1.double(), image_2=pair.image_2.double())
    run.objective.imitate = lambda view: imitate(double(view))
    for step in (0, 3, 6):  # a step of each stage
        batch = double(next(training_loader(config, config.phases[0], step, step + 1, accelerator.process_index, accelerator.num_processes)))
        run.objective.zero_grad()
        accelerator.backward(run.parallel(batch, step)['loss'])
        if accelerator.is_main_process:
            torch.save({n: p.grad for n, p in run.objective.model.named_parameters()}, f'{folder}/{mode}-{step}.pt')


def skip(run):
    "Three steps; at the second, one process has a frame that is NaN."
    rank, count = run.accelerator.process_index, run.accelerator.num_processes
    for step in range(3):
        batch = next(training_loader(run.config, run.config.phases[0], step, step + 1, rank, count))
        bad = step == 1 and rank == 1
        run.advance(batch._replace(image_1=batch.image_1 * float('nan')) if bad else batch)
    torch.save((int(run.skipped), run.objective.model.state_dict()), f'{run.folder}/process-{rank}.pt')


if __name__ == '__main__':
    debug_launcher(work, (json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]), num_processes=int(sys.argv[4]))
'''


def launch(processes, overrides, folder, mode, tmp_path):
    "Runs the script in as many gloo processes, launched by accelerate."
    script = tmp_path / 'script.py'
    script.write_text(SHARED)
    done = subprocess.run([sys.executable, str(script), json.dumps(overrides), str(folder), mode, str(processes)], capture_output=True, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(1800)
def test_one_process_two_processes_and_one_by_one_give_the_same_gradient(tiny, tmp_path):
    overrides = tiny | {'batch': 8, 'hg': True, 'mf': 'concat'}
    for processes in (1, 2):
        launch(processes, overrides, tmp_path, f'{processes}-processes', tmp_path)
    for step in (0, 3, 6):
        one, two = (torch.load(tmp_path / f'{n}-processes-{step}.pt', weights_only=True) for n in (1, 2))
        alone = gradient_one_by_one(load_config('demo', **overrides), step, tmp_path)
        scale = max(g.abs().max() for g in one.values())
        assert scale > 0.01
        for name in one:
            assert (two[name] - one[name]).abs().max() <= 1e-5 * scale, (step, name)
            assert (alone[name] - one[name]).abs().max() <= 1e-5 * scale, (step, name)


def gradient_one_by_one(config, step, folder):
    "The mean of eight gradients, each of one sample."
    torch.set_default_dtype(torch.float64)
    run, batch = Run(config, folder), config.batch
    torch.set_default_dtype(torch.float32)
    imitate = run.objective.imitate
    run.objective.imitate = lambda view: imitate(view._replace(image_1=view.image_1.double(), image_2=view.image_2.double()))
    for k in range(batch):
        run.objective.share = (k, batch)
        sample = next(training_loader(config, config.phases[0], step, step + 1, k, batch))
        sample = sample._replace(image_1=sample.image_1.double(), image_2=sample.image_2.double())
        (run.objective(sample, step)['loss'] / batch).backward()
    return {n: p.grad for n, p in run.objective.model.named_parameters()}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize('first, then', [(2, 1), (1, 2)])
def test_processes_train_as_one_and_go_on_as_another_number(tiny, tmp_path, first, then):
    overrides = tiny | {'steps': 6, 'checkpoint_minutes': 0.0, 'precision': 'float32', 'aug': True}
    launch(1, overrides, tmp_path / 'one', 'train', tmp_path)
    launch(first, overrides, tmp_path / 'many', 'begin', tmp_path)
    begun = load_checkpoint(tmp_path / 'many/checkpoint.pt')
    assert 0 < begun['step'] < 6 and len(begun['caches']) == first
    launch(then, overrides, tmp_path / 'many', 'train', tmp_path)
    one, many = (load_checkpoint(tmp_path / name / 'checkpoint.pt') for name in ('one', 'many'))
    assert many['step'] == 6 and len(many['caches']) == then
    for name, weight in one['model'].items():
        assert (many['model'][name] - weight).abs().max() < 1e-3, name  # six steps of Adam at 4e-4 move a weight by up to 2.4e-3; rounding flips a few signs
    steps = [json.loads(line)['step'] for line in (tmp_path / 'many/log.jsonl').read_text().splitlines()]
    assert steps == list(range(1, 7))  # one process writes


@pytest.mark.timeout(600)
def test_a_bad_batch_of_one_process_is_skipped_by_all(tiny, tmp_path):
    launch(2, tiny, tmp_path, 'bad', tmp_path)
    (skipped, weights), (other_skipped, other_weights) = (torch.load(tmp_path / f'process-{rank}.pt', weights_only=True) for rank in (0, 1))
    assert skipped == other_skipped == 1
    assert all(torch.equal(weights[k], other_weights[k]) and weights[k].isfinite().all() for k in weights)


def test_late_inputs_take_steps_as_long_as_the_others():
    "A gradient that stays the same moves the weights of the mask correlation, new after 300 steps, no further than those that were there before."
    config = load_config('demo')
    torch.manual_seed(0)
    models = UnSAMFlow(), UnSAMFlow(mask_features='concat')
    old, new = (make_optimizer(model, config, config.phases[0], 400)[0] for model in models)
    for _ in range(300):
        for parameter in models[0].parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        old.step()
    branch_off({'model': models[0].state_dict(), 'optimizer': old.state_dict()}, models[1], new)
    weight = models[1].estimator.first[0].weight
    before = weight.detach().clone()
    for _ in range(10):
        for parameter in models[1].parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        new.step()
    moved = (weight.detach() - before).abs()
    assert moved[:, MASK_CORRELATION].mean() < 1.1 * moved[:, :MASK_CORRELATION.start].mean()
