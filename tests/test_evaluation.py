"Metrics, averages, methods and submission folders: contracts, properties and bad input beyond what notebook 09 shows."
import configparser
import json
import os
import types
import zipfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from miniature import kitti, middlebury
from torchvision import datasets as reference

from unsamflow import evaluation
from unsamflow.datasets import dataset
from unsamflow.evaluation import (
    BENCHMARKS, CLASSICAL, ERROR_COLOURS, METRICS, SINTEL_TEST, FlowMetrics, apply_method, check_submission, deepflow, dis, distance_to, error_map, evaluate,
    farneback, measure, motion_boundary, open_benchmarks, pcaflow, predictions, regions, submission_file, with_occlusion, write_submission, zero_flow, zip_submission)
from unsamflow.experiments import run
from unsamflow.files import read_image
from unsamflow.flow import read_flow, write_flow
from unsamflow.network import UnSAMFlow
from unsamflow.training import save_weights

ROOT = Path(__file__).parents[1]


class Sample(NamedTuple):
    image_1: object = None
    image_2: object = None
    flow: object = None
    valid: object = None
    non_occluded: object = None
    name: str = 'sample'
    objects: object = None
    segments_1: object = None
    segments_2: object = None


def random_sample(seed, height=18, width=26, known=0.7, hidden=0.2, name=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator)
    return Sample(draw(3, height, width), draw(3, height, width), 30 * draw(2, height, width) - 15, draw(1, height, width) < known,
                  draw(1, height, width) >= hidden, name or f'random_{seed}', (4 * draw(1, height, width)).long())


def textured(height=64, width=96, seed=0):
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    return torch.from_numpy(cv2.GaussianBlur(noise, (0, 0), 2)).permute(2, 0, 1).sub(0.3).mul(2).clamp(0, 1)


# Regions and metrics

def test_classes_of_distance_are_half_open():
    "Occlusion ends between columns 49 and 50, so the distance of column c is 49 - c or c - 50."
    visible = torch.arange(200).expand(1, 3, 200) >= 50
    parts = regions(Sample(flow=torch.zeros(2, 3, 200), valid=torch.ones(1, 3, 200, dtype=torch.bool), non_occluded=visible))
    columns = {name: np.flatnonzero(parts[name].all(0)).tolist() for name in ('d0-10', 'd10-60', 'd60-140')}
    assert columns['d0-10'] == list(range(40, 60))
    assert columns['d10-60'] == [*range(40), *range(60, 110)]
    assert columns['d60-140'] == list(range(110, 190))


def test_classes_of_speed_meet_at_10_and_40():
    flow = torch.zeros(2, 1, 6)
    flow[0, 0] = torch.tensor([0, 9.99, 10, 40, 40.01, 100])
    parts = regions(Sample(flow=flow, valid=torch.ones(1, 1, 6, dtype=torch.bool)))
    assert [parts[s][0].tolist() for s in ('s0-10', 's10-40', 's40+')] == [[True, True, False, False, False, False], [False, False, True, True, False, False],
                                                                          [False, False, False, False, True, True]]


def test_motion_boundary_needs_both_thresholds_and_known_neighbours():
    step = lambda a, b: motion_boundary(np.array([[[a, a, b, b]], [[0.0] * 4]]), np.ones((1, 4), bool))[0].tolist()
    assert step(0.0, 1.0) == [False] * 4 and step(0.0, 1.01) == [False, True, True, False]
    assert step(100.0, 104.0) == [False] * 4 and step(100.0, 106.0) == [False, True, True, False]
    flow, known = np.array([[[0.0, 0.0, 9.0, 9.0]], [[0.0] * 4]]), np.array([[True, True, False, True]])
    assert not motion_boundary(flow, known).any()


def test_boundary_region_is_five_rows_on_either_side():
    flow = torch.zeros(2, 40, 8)
    flow[0, 20:] = 5
    rows = np.flatnonzero(regions(Sample(flow=flow, valid=torch.ones(1, 40, 8, dtype=torch.bool)))['boundary'].all(1))
    assert rows.tolist() == list(range(15, 25))


@pytest.mark.parametrize('shape', [(1, 9), (9, 1), (1, 1), (5, 7)])
def test_distance_for_thin_pictures(shape):
    marked = np.zeros(shape, bool)
    assert np.isinf(distance_to(marked)).all()
    marked.flat[0] = True
    assert np.allclose(distance_to(marked), np.hypot(*np.indices(shape)), atol=1e-5)


def test_metrics_follow_what_the_sample_has():
    full = random_sample(0)
    estimate = np.zeros((2, 18, 26))
    assert set(measure(estimate, full, full.valid, every_pixel=True)) == set(METRICS) | {'occlusion_f1'}
    bare = measure(estimate, full._replace(non_occluded=None, objects=None), full.valid)
    assert set(bare) == {'epe', 'fl_all', 'out_all', 's0-10', 's10-40', 's40+', 'epe_boundary'}


@pytest.mark.parametrize('convert', [torch.Tensor.numpy, torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, lambda x: x.requires_grad_(),
                                     pytest.param(lambda x: x.cuda(), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))])
def test_any_array_or_tensor_gives_the_same_metrics(convert):
    sample, estimate = random_sample(1), torch.zeros(2, 18, 26)
    assert measure(convert(estimate), sample) == measure(estimate, sample)


def test_masks_may_lack_the_leading_axis():
    sample = random_sample(2)
    flat = sample._replace(valid=sample.valid[0].numpy(), non_occluded=sample.non_occluded[0], objects=sample.objects[0].numpy())
    assert measure(np.ones((2, 18, 26)), flat, sample.valid[0]) == measure(np.ones((2, 18, 26)), sample, sample.valid)


@pytest.mark.parametrize('unknown', [float('nan'), float('inf'), 1.7e9])
def test_unknown_truth_has_no_influence(unknown):
    sample = random_sample(3)
    spoilt = sample._replace(flow=torch.where(sample.valid, sample.flow, unknown))
    assert measure(np.ones((2, 18, 26)), spoilt) == measure(np.ones((2, 18, 26)), sample)


def test_truth_that_is_not_finite_where_it_counts():
    sample = random_sample(3)
    spoilt = sample._replace(flow=torch.where(sample.valid, sample.flow, float('nan')))
    with pytest.raises(ValueError, match='random_3: expected a true flow that is finite wherever it is valid'):
        measure(np.ones((2, 18, 26)), spoilt, every_pixel=True)


def test_the_truth_scores_perfectly():
    sample = random_sample(4)
    row = FlowMetrics().update(sample.flow, sample, ~sample.non_occluded)
    assert row.pop('occlusion_f1') == 1 and row.pop('name') == 'random_4' and set(row.values()) == {0.0}


# Averages

def test_averages_against_concatenation():
    samples = [random_sample(i, known=0.1 + 0.2 * i) for i in range(4)]
    estimates = [s.flow + torch.randn(s.flow.shape, generator=torch.Generator().manual_seed(9)) * 4 for s in samples]
    metrics = FlowMetrics()
    for estimate, sample in zip(estimates, samples):
        metrics.update(estimate, sample)
    errors = [(e - s.flow).norm(dim=0)[s.valid[0] & ~s.non_occluded[0]].double() for e, s in zip(estimates, samples)]
    result = metrics.compute()
    assert result['images'] == 4
    assert result['epe_occ'] == pytest.approx(np.mean([e.mean() for e in errors]), rel=1e-5)
    assert result['epe_occ_pooled'] == pytest.approx(torch.cat(errors).mean().item(), rel=1e-5)
    assert abs(result['epe_occ'] - result['epe_occ_pooled']) > 1e-3
    backwards = FlowMetrics()
    for estimate, sample in zip(estimates[::-1], samples[::-1]):
        backwards.update(estimate, sample)
    assert backwards.compute() == pytest.approx(result)


def test_pooled_foreground_and_background_make_up_all():
    metrics = FlowMetrics()
    for i in range(3):
        metrics.update(np.zeros((2, 18, 26)), random_sample(i))
    result = metrics.compute()
    counts = [sum(s[m][1] for s in metrics._sums) for m in ('fl_bg', 'fl_fg', 'fl_all')]
    assert counts[0] + counts[1] == counts[2]
    assert (result['fl_bg_pooled'] * counts[0] + result['fl_fg_pooled'] * counts[1]) / counts[2] == pytest.approx(result['fl_all_pooled'])


def test_a_picture_without_occlusion_has_no_say_in_it():
    metrics, some, none = FlowMetrics(), random_sample(5), random_sample(6, hidden=0)
    metrics.update(np.zeros((2, 18, 26)), some), metrics.update(np.zeros((2, 18, 26)), none)
    result = metrics.compute()
    assert result['epe_occ'] == result['epe_occ_pooled'] == metrics.rows[0]['epe_occ'] and 'epe_occ' not in metrics.rows[1]
    assert result['epe'] != metrics.rows[0]['epe']


def test_occlusion_f1_counts_false_alarms_but_not_empty_agreement():
    metrics, none, nothing = FlowMetrics(), random_sample(6, hidden=0), np.zeros((18, 26), bool)
    assert 'occlusion_f1' not in metrics.update(np.zeros((2, 18, 26)), none, nothing)
    assert 'occlusion_f1' not in metrics.compute()
    assert metrics.update(np.zeros((2, 18, 26)), none, ~nothing)['occlusion_f1'] == 0
    assert metrics.compute()['occlusion_f1'] == 0


def test_f1_per_image_is_not_the_pooled_one():
    metrics = FlowMetrics()
    for seed, hidden in ((7, 0.5), (8, 0.05)):
        sample = random_sample(seed, hidden=hidden)
        metrics.update(np.zeros((2, 18, 26)), sample, np.ones((18, 26), bool))
    shares = [(~s.non_occluded & s.valid).sum().item() / s.valid.sum().item() for s in (random_sample(7, hidden=0.5), random_sample(8, hidden=0.05))]
    result = metrics.compute()
    assert result['occlusion_f1'] == pytest.approx(np.mean([2 * p / (p + 1) for p in shares]))
    assert abs(result['occlusion_f1'] - result['occlusion_f1_pooled']) > 0.01


# Bad input to the metrics

@pytest.mark.parametrize('estimate, change, error, message', [
    (np.zeros((2, 18, 25)), {}, ValueError, r'expected an estimate of shape \(2, 18, 26\), found \(2, 18, 25\)'),
    (np.zeros((1, 2, 18, 26)), {}, ValueError, r'estimate: expected flow of shape \(2, H, W\), found \(1, 2, 18, 26\)'),
    (np.full((2, 18, 26), np.inf), {}, ValueError, r'found NaN or infinity in 468 of 468 pixels'),
    (None, {}, TypeError, 'estimate: expected flow as a tensor or an array, found NoneType'),
    ([torch.zeros(2, 18, 26), None], {}, TypeError, 'estimate: expected flow as a tensor or an array, found list'),
    (np.zeros((2, 18, 26), complex), {}, TypeError, 'estimate: expected flow as real numbers, found complex128'),
    (torch.zeros((2, 18, 26), dtype=torch.complex64), {}, TypeError, 'estimate: expected flow as real numbers, found complex64'),
    (np.full((2, 18, 26), 'a'), {}, TypeError, 'estimate: expected flow as real numbers, found <U1'),
    (np.zeros((2, 18, 26)), {'flow': None}, ValueError, 'expected a sample with its true flow, found None'),
    (np.zeros((2, 18, 26)), {'flow': torch.zeros(18, 26)}, ValueError, r'true flow: expected flow of shape \(2, H, W\), found \(18, 26\)'),
    (np.zeros((2, 18, 26)), {'valid': torch.ones(1, 9, 13)}, ValueError, r'valid: expected a mask of shape \(1, 18, 26\), found \(1, 9, 13\)'),
    (np.zeros((2, 18, 26)), {'objects': torch.ones(3, 18, 26)}, ValueError, r'objects: expected a mask of shape \(1, 18, 26\), found \(3, 18, 26\)'),
])
def test_bad_input_names_the_sample(estimate, change, error, message):
    metrics = FlowMetrics()
    with pytest.raises(error, match='random_0: .*' + message):
        metrics.update(estimate, random_sample(0)._replace(**change))
    assert metrics.rows == []


def test_occlusion_as_probability_is_refused():
    with pytest.raises(TypeError, match='random_0: expected occlusion as bool, True = occluded, found torch.float32'):
        measure(np.zeros((2, 18, 26)), random_sample(0), torch.rand(1, 18, 26))
    with pytest.raises(TypeError, match='random_0: expected occlusion as bool, True = occluded, found list'):
        measure(np.zeros((2, 18, 26)), random_sample(0), [[True] * 26] * 18)


def test_one_known_pixel_and_none():
    "The only pixel makes every value; without one there is no metric at all, and no say in the others' means."
    one, metrics = torch.zeros(1, 18, 26, dtype=torch.bool), FlowMetrics()
    none = random_sample(0)._replace(valid=one.clone())
    one[0, 9, 13] = True
    single = random_sample(1)._replace(valid=one, non_occluded=one, flow=torch.zeros(2, 18, 26))
    assert metrics.update(np.full((2, 18, 26), 3.0), none) == {'name': 'random_0'} and metrics.compute() == {'images': 1}
    row = metrics.update(np.full((2, 18, 26), 3.0), single)
    assert row['epe'] == row['epe_noc'] == row['s0-10'] == pytest.approx(18 ** 0.5) and row['fl_all'] == 100
    assert not {'epe_occ', 'epe_boundary', 's10-40', 'd0-10'} & set(row)
    result = metrics.compute()
    assert result['images'] == 2 and result['epe'] == result['epe_pooled'] == row['epe']


# Methods

def test_methods_share_one_signature():
    image_1, image_2 = textured(), textured(seed=1)
    for name in ('zero', 'farneback', 'dis'):
        flow = CLASSICAL[name](image_1, image_2)
        assert flow.shape == (2, 64, 96) and flow.dtype == torch.float32


@pytest.mark.parametrize('preset', ['ultrafast', 'fast', 'medium'])
def test_dis_presets_find_a_shift(preset):
    image = textured()
    found = dis(image, torch.roll(image, (-1, 3), (1, 2)), preset)[:, 16:-16, 16:-16]
    assert found.flatten(1).median(1).values.tolist() == pytest.approx([3, -1], abs=0.15)


@pytest.mark.parametrize('preset', ['ultrafast', 'medium'])
@pytest.mark.parametrize('size', [(1, 1), (8, 64), (12, 200), (31, 500), (200, 9)])
def test_dis_on_small_and_flat_pictures(size, preset):
    "Sizes on which OpenCV 5.0 stops with an error or a segmentation fault when they are not padded."
    flow = dis(torch.rand(3, *size), torch.rand(3, *size), preset)
    assert flow.shape == (2, *size) and flow.isfinite().all()


def test_padding_does_not_touch_pictures_that_are_large_enough():
    grey = [np.random.default_rng(i).integers(0, 255, (32, 40), dtype=np.uint8) for i in (0, 1)]
    images = [torch.from_numpy(np.stack([g] * 3)).float() / 255 for g in grey]
    assert np.array_equal(dis(*images).permute(1, 2, 0).numpy(), cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None))


@pytest.mark.parametrize('method, algorithm', [(deepflow, 'DeepFlow'), (pcaflow, 'PCAFlow')])
def test_contributed_methods(method, algorithm, monkeypatch):
    image = textured()
    monkeypatch.setattr(cv2, 'optflow', types.SimpleNamespace(), raising=False)
    with pytest.raises(ImportError, match=f'{algorithm}.*opencv-contrib-python'):
        method(image, image)
    stand_in = types.SimpleNamespace(calc=lambda a, b, _: np.stack([a, b], -1).astype(np.float32))
    monkeypatch.setattr(cv2, 'optflow', types.SimpleNamespace(**{f'createOptFlow_{algorithm}': lambda: stand_in}), raising=False)
    assert method(image, image).shape == (2, 64, 96)


def test_with_occlusion_finds_what_leaves_the_frame():
    frames = [torch.zeros(3, 10, 20), torch.ones(3, 10, 20)]
    exact = lambda a, b: torch.tensor([5.0 if a is frames[0] else -5.0, 0]).view(2, 1, 1).expand(2, 10, 20)
    flow, occluded = with_occlusion(exact)(*frames)
    assert occluded.shape == (1, 10, 20) and occluded.dtype == torch.bool and flow[0, 0, 0] == 5
    assert occluded[0, :, 15:].all() and not occluded[0, :, :15].any()


def test_with_occlusion_takes_the_place_of_a_methods_own():
    image = torch.zeros(3, 4, 6)
    own = lambda a, b: (torch.zeros(2, 4, 6), torch.ones(1, 4, 6, dtype=torch.bool))
    flow, occluded = with_occlusion(own)(image, image)
    assert flow.shape == (2, 4, 6) and not occluded.any()


# Evaluating

def test_evaluate_takes_lists_generators_and_indexed_sources():
    samples = [random_sample(i) for i in range(3)]

    class Indexed:  # computes its samples and never raises IndexError
        def __len__(self): return 3
        def __getitem__(self, i): return samples[i % 3]

    results = [evaluate(zero_flow, source, progress=False) for source in (samples, (s for s in samples), Indexed())]
    for result in results:
        assert [row['name'] for row in result['rows']] == ['random_0', 'random_1', 'random_2']
        assert result['epe'] == pytest.approx(np.mean([s.flow.norm(dim=0)[s.valid[0]].mean() for s in samples]), rel=1e-5)
        assert all(row['seconds'] >= 0 for row in result['rows']) and result['seconds'] >= 0
    assert json.loads(json.dumps(results[0])) == results[0]


def test_evaluate_without_samples():
    with pytest.raises(ValueError, match='expected at least one sample, found none'):
        evaluate(zero_flow, [], progress=False)


def test_a_tuple_that_is_no_pair():
    with pytest.raises(ValueError, match='method: expected flow, or a pair of flow and occlusion, found a tuple of 3'):
        evaluate(lambda a, b: (zero_flow(a, b),) * 3, [random_sample(0)], progress=False)


def test_evaluate_gives_segments_to_those_who_ask():
    sample, seen = random_sample(0)._replace(segments_1='one', segments_2='two'), []
    def asks(a, b, segments_1=None, segments_2=None):
        seen.append((segments_1, segments_2))
        return zero_flow(a, b)
    for method in (asks, with_occlusion(asks), lambda a, b, **k: asks(a, b, **k)):
        evaluate(method, [sample], progress=False)
    assert seen == [('one', 'two'), ('one', 'two'), ('two', 'one'), ('one', 'two')]
    evaluate(asks, [sample._replace(segments_1=None, segments_2=None)], progress=False)
    assert seen[-1] == (None, None)


def test_evaluate_runs_without_gradients_and_frees_the_result():
    weight = torch.ones(1, requires_grad=True)
    method = lambda a, b: (weight * a[:2]).bfloat16()
    flow, occluded, seconds = apply_method(method, random_sample(0))
    assert isinstance(flow, np.ndarray) and flow.dtype == np.float32 and occluded is None and seconds > 0


def test_every_pixel_is_the_data_sets_word_unless_overruled():
    class Trusting(list):
        every_pixel = True
    samples = Trusting([random_sample(0)])
    assert 'epe_valid' in evaluate(zero_flow, samples, progress=False)
    assert 'epe_valid' not in evaluate(zero_flow, samples, progress=False, every_pixel=False)
    assert 'epe_valid' not in evaluate(zero_flow, list(samples), progress=False)
    result = evaluate(zero_flow, samples, progress=False)
    assert result['epe'] == pytest.approx(samples[0].flow.norm(dim=0).mean().item(), rel=1e-5)


def test_error_map_shows_right_wrong_unknown_and_occluded():
    valid, visible = torch.tensor([[[True, True, True, False]]]), torch.tensor([[[True, True, False, True]]])
    sample = Sample(flow=torch.zeros(2, 1, 4), valid=valid, non_occluded=visible)
    picture = error_map(np.array([[[0.0, 100.0, 0.0, 0.0]], [[0.0] * 4]]), sample)
    assert picture.dtype == np.uint8
    assert picture[0].tolist() == [ERROR_COLOURS[0].tolist(), ERROR_COLOURS[-1].tolist(), (ERROR_COLOURS[0] // 2).tolist(), [0, 0, 0]]


# Submissions

def flows(names, height=9, width=12):
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 20, (2, height, width)).astype(np.float32) for name in names}


def write_images(folder, names, size=(9, 12)):
    for name in names:
        path = Path(folder) / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((*size, 3), np.uint8))
    return folder


def test_kitti_files_as_torchvision_reads_them(tmp_path):
    "torchvision's KittiFlow reads a submission that lies where its ground truth would."
    predicted = flows(['000000_10', '000001_10'])
    training = tmp_path / 'KittiFlow/training'
    write_images(training / 'image_2', [f'00000{i}_{k}' for i in (0, 1) for k in (10, 11)])
    write_submission('kitti2015', tmp_path / 'out', predicted)
    (tmp_path / 'out/flow').rename(training / 'flow_occ')
    data = reference.KittiFlow(tmp_path)
    assert len(data) == 2
    for (_, _, flow, valid), expected in zip(data, predicted.values()):
        assert valid.all() and np.abs(flow - expected).max() <= 0.5 / 64


def test_sintel_files_as_torchvision_reads_them(tmp_path):
    predicted = flows(['clean/wall/frame_0001', 'clean/wall/frame_0002'])
    training = tmp_path / 'Sintel/training'
    write_images(training, [f'clean/wall/frame_000{i}' for i in (1, 2, 3)])
    files = write_submission('sintel', tmp_path / 'out', predicted)
    assert [f.relative_to(tmp_path / 'out').as_posix() for f in files] == ['clean/wall/frame0001.flo', 'clean/wall/frame0002.flo']
    (training / 'flow').mkdir()
    (tmp_path / 'out/clean/wall').rename(training / 'flow/wall')
    for (_, _, flow), expected in zip(reference.Sintel(tmp_path, pass_name='clean'), predicted.values()):
        assert np.array_equal(flow, expected)
    for path, expected in zip(sorted((training / 'flow/wall').iterdir()), predicted.values()):
        assert np.array_equal(cv2.readOpticalFlow(str(path)).transpose(2, 0, 1), expected)


@pytest.mark.parametrize('kind, count', [('kitti2012', 195), ('kitti2015', 200)])
def test_a_complete_kitti_folder_of_full_size_is_accepted(kind, count, tmp_path):
    first = write_submission(kind, tmp_path, {'000000_10': np.zeros((2, 370, 1226))})[0]
    for i in range(1, count):
        os.link(first, first.with_name(f'{i:06}_10.png'))
    assert check_submission(kind, tmp_path) == []
    first.with_name(f'{count - 1:06}_10.png').unlink()
    assert check_submission(kind, tmp_path) == [f'missing files (1 of {count}): flow/{count - 1:06}_10.png']


def test_a_complete_sintel_folder_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, 'SINTEL_SIZE', (9, 12))
    names = [f'{part}/{scene}/frame_{i:04}' for part in ('clean', 'final') for scene in SINTEL_TEST for i in range(1, 47)]
    first = write_submission('sintel', tmp_path, flows(names[:1]))[0]
    for name in names[1:]:
        path = tmp_path / submission_file('sintel', name)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    assert check_submission('sintel', tmp_path) == []
    (tmp_path / 'final/wall/frame0046.flo').unlink()
    assert check_submission('sintel', tmp_path) == ['final: expected 552 files in 12 scenes, found 551']
    (tmp_path / 'clean/tiger/frame0007.flo').unlink()
    assert check_submission('sintel', tmp_path)[:2] == ['clean/tiger: missing before the last frame: frame0007.flo', 'clean: expected 552 files in 12 scenes, found 551']


def test_sintel_frames_counted_from_zero_are_refused(tmp_path, monkeypatch):
    "Their number is right and they have no gaps, but every one of them is the flow of another frame."
    monkeypatch.setattr(evaluation, 'SINTEL_SIZE', (9, 12))
    first = write_submission('sintel', tmp_path / 'one', flows(['clean/wall/frame_0001']))[0]
    for path in (tmp_path / f'out/{part}/{scene}/frame{i:04}.flo' for part in ('clean', 'final') for scene in SINTEL_TEST for i in range(46)):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)
    problems = check_submission('sintel', tmp_path / 'out')
    assert problems[0].startswith('unexpected files (24): clean/PERTURBED_market_3/frame0000.flo') and 'clean: expected 552 files in 12 scenes, found 540' in problems


def test_sintel_size_is_checked(tmp_path):
    write_submission('sintel', tmp_path, flows(['clean/wall/frame_0001']))
    assert 'clean/wall/frame0001.flo: expected 436 x 1024 pixels (rows x columns), found 9 x 12' in check_submission('sintel', tmp_path)


def test_test_images_say_what_is_due(tmp_path):
    "Sintel: every frame but the last of a scene; KITTI: frame 10 of each pair."
    images = write_images(tmp_path / 'test', [f'{p}/{s}/frame_000{i}' for p in ('clean', 'final') for s in ('wall', 'tiger') for i in (1, 2, 3)])
    names = [f'{p}/{s}/frame_000{i}' for p in ('clean', 'final') for s in ('wall', 'tiger') for i in (1, 2)]
    write_submission('sintel', tmp_path / 'out', flows(names))
    assert check_submission('sintel', tmp_path / 'out', images) == []
    write_submission('sintel', tmp_path / 'out', flows(['clean/wall/frame_0003']))
    assert check_submission('sintel', tmp_path / 'out', images) == ['unexpected files (1): clean/wall/frame0003.flo']
    kitti = write_images(tmp_path / 'image_2', ['000000_10', '000000_11', '000001_10', '000001_11'])
    write_submission('kitti2015', tmp_path / 'kitti', flows(['000000_10']))
    assert check_submission('kitti2015', tmp_path / 'kitti', kitti) == ['missing files (1 of 2): flow/000001_10.png']


def spoil_eight_bits(path): cv2.imwrite(str(path), np.zeros((9, 12, 3), np.uint8))
def spoil_one_channel(path): cv2.imwrite(str(path), np.zeros((9, 12), np.uint16))
def spoil_size(path): write_flow(path, np.zeros((2, 12, 9)))
def spoil_validity(path): write_flow(path, np.zeros((2, 9, 12)), valid=np.arange(12) != np.zeros((9, 1)))
def spoil_content(path): path.write_bytes(b'')
def spoil_half(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
def spoil_one_byte(path): path.write_bytes(path.read_bytes()[:-1])
def spoil_by_removing(path): path.unlink()
def spoil_by_renaming(path): path.rename(path.with_name('extra.png')), write_flow(path, np.zeros((2, 9, 12)))


@pytest.mark.parametrize('spoil, message', [
    (spoil_eight_bits, 'flow/000001_10.png: expected KITTI flow, 3 channels of 16 bits, found 3 of 8 bits'),
    (spoil_one_channel, 'flow/000001_10.png: expected KITTI flow, 3 channels of 16 bits, found 1 of 16 bits'),
    (spoil_size, 'flow/000001_10.png: expected 9 x 12 pixels (rows x columns), found 12 x 9'),
    (spoil_validity, 'flow/000001_10.png: expected flow in every pixel, found 9 of 108 invalid'),
    (spoil_content, 'flow/000001_10.png: expected a whole PNG file, found 0 bytes'),
    (spoil_half, 'flow/000001_10.png: expected a whole PNG file, found'),
    (spoil_one_byte, 'flow/000001_10.png: expected a whole PNG file, found'),
    (spoil_by_removing, 'missing files (1 of 2): flow/000001_10.png'),
    (spoil_by_renaming, 'unexpected files (1): flow/extra.png'),
])
def test_each_fault_is_one_sentence(spoil, message, tmp_path):
    images = write_images(tmp_path / 'images', ['000000_10', '000001_10'])
    files = write_submission('kitti2012', tmp_path / 'out', flows(['000000_10', '000001_10']))
    assert check_submission('kitti2012', tmp_path / 'out', images) == []
    spoil(files[1])
    problems = check_submission('kitti2012', tmp_path / 'out', images)
    assert len(problems) == 1 and problems[0].startswith(message), problems


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='expected the folder of a submission, found none'):
        check_submission('sintel', tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='expected test images like 000000_10.png, found none'):
        check_submission('kitti2012', tmp_path, images=tmp_path)
    with pytest.raises(FileNotFoundError, match='expected a submission with files like clean/wall/frame0001.flo, found none'):
        zip_submission('sintel', tmp_path)


@pytest.mark.parametrize('flow, message', [(np.full((2, 9, 12), 512.0), 'under 512 px'), (np.full((2, 9, 12), np.nan), 'finite'), (np.zeros((9, 12)), r'\(9, 12\)')])
def test_what_kitti_cannot_hold_is_refused_and_leaves_nothing(flow, message, tmp_path):
    with pytest.raises(ValueError, match=f'000003_10.png: .*{message}'):
        write_submission('kitti2015', tmp_path, {'000003_10': flow})
    assert not any(p.is_file() for p in tmp_path.rglob('*'))


def test_unknown_kind_is_refused_even_without_predictions(tmp_path):
    for call in (lambda: write_submission('kitti', tmp_path, {}), lambda: check_submission('kitti', tmp_path), lambda: zip_submission('kitti', tmp_path)):
        with pytest.raises(ValueError, match="kind: expected 'kitti2012', 'kitti2015' or 'sintel', found 'kitti'"):
            call()


@pytest.mark.parametrize('kind, names', [('kitti2012', ['000000_10.png']), ('kitti2015', ['flow/000000_10.png'])])
def test_archive_holds_the_submission_alone(kind, names, tmp_path):
    "Previews stay out, and a file of the same name in another folder does not come twice."
    folder = tmp_path / 'out'
    write_submission(kind, folder, flows(['000000_10']))
    write_images(folder, ['000000_10', 'extra/000000_10', 'flow/000000_10_error'])
    assert zipfile.ZipFile(zip_submission(kind, folder)).namelist() == names


def test_two_predictions_for_one_file(tmp_path):
    with pytest.raises(ValueError, match="expected one prediction, found two: '000003' and '000003_10'"):
        write_submission('kitti2015', tmp_path, flows(['000003', '000003_10']))


@pytest.mark.parametrize('kind, name', [('kitti2015', '10'), ('kitti2012', '000003_11'), ('kitti2015', 'x000003'), ('sintel', 'albedo/wall/frame_0001'), ('sintel', 'clean/frame_0001'),
                                        ('sintel', 'clean/wall/frame_0000'), ('kitti2015', '٠٠٠٠٠١_10')])
def test_names_that_say_too_little(kind, name):
    with pytest.raises(ValueError, match='name: expected something like'):
        submission_file(kind, name)


def test_predictions_stream_through_writer_and_archive(tmp_path):
    samples = [random_sample(i, name=f'00000{i}_10') for i in range(2)]
    write_submission('kitti2012', tmp_path / 'out', predictions(farneback, (s._replace(flow=None) for s in samples), progress=False))
    expected = farneback(samples[1].image_1, samples[1].image_2).numpy()
    assert np.abs(read_flow(tmp_path / 'out/flow/000001_10.png')[0] - expected).max() <= 0.5 / 64
    archive = zip_submission('kitti2012', tmp_path / 'out')
    assert archive == tmp_path / 'out.zip' and zipfile.ZipFile(archive).testzip() is None
    zipfile.ZipFile(zip_submission('kitti2015', tmp_path / 'out', tmp_path / 'b.zip')).extractall(tmp_path / 'again')
    assert (tmp_path / 'again/flow/000001_10.png').read_bytes() == (tmp_path / 'out/flow/000001_10.png').read_bytes()


# Benchmarks at hand, and the experiment that measures on them

@pytest.fixture
def some_benchmarks(tmp_path, monkeypatch):
    "Middlebury and both years of KITTI, two pairs of each; no Sintel."
    for write in (middlebury, partial(kitti, year=2012), partial(kitti, year=2015)):
        write(tmp_path / 'data')
    monkeypatch.setenv('UNSAMFLOW_DATA', str(tmp_path / 'data'))
    return tmp_path / 'data'


def test_benchmarks_that_are_there_are_opened(some_benchmarks):
    opened, absent = open_benchmarks()
    assert {label: len(pairs) for label, pairs in opened.items()} == {'held-out scenes': 100, 'stereo pair': 1, 'Middlebury': 2, 'KITTI 2012': 2, 'KITTI 2015': 2}
    assert absent == ['Sintel clean', 'Sintel final']
    assert all(pairs[0].flow is not None for label, pairs in opened.items())
    assert torch.equal(*opened['KITTI 2012'][0].image_1[:2])  # grey
    with pytest.raises(ValueError, match="found 'kitti'"):
        open_benchmarks({'KITTI': {'name': 'kitti'}})


def test_the_experiment_measures_every_method_on_every_pair(some_benchmarks, tmp_path, monkeypatch):
    "A method that this OpenCV lacks is left out and said to be; two sets of weights stand under their labels."
    save_weights(UnSAMFlow(), tmp_path / 'random.safetensors')
    chosen = {label: BENCHMARKS[label] for label in ('Middlebury', 'KITTI 2012')} | {'scenes': {'name': 'scenes', 'options': {'count': 1, 'height': 64, 'width': 96}}}
    params = {'datasets': chosen, 'methods': ['zero flow', 'DIS', 'DeepFlow', 'ours'], 'weights': {'random': str(tmp_path / 'random.safetensors'), 'shipped': ''}, 'longest': 64, 'pictures': 0}
    folder = run('evaluate', params, tmp_path / 'run', progress=False)
    metrics, samples = json.loads((folder / 'metrics.json').read_text()), pd.read_csv(folder / 'samples.csv')
    methods = ['zero flow', 'DIS', 'random', 'shipped'] + ['DeepFlow'] * hasattr(cv2, 'optflow')
    assert {label: sorted(found) for label, found in metrics.items()} == {label: sorted(methods) for label in chosen}
    assert len(samples) == 5 * len(methods)
    assert metrics['KITTI 2012']['random']['epe'] != metrics['KITTI 2012']['shipped']['epe']
    speeds = [evaluate(zero_flow, dataset('kitti-2012', pictures='grey'), progress=False)['rows'][i]['epe'] for i in (0, 1)]
    found = samples[(samples['data'] == 'KITTI 2012') & (samples['method'] == 'zero flow')]
    assert np.allclose(found['epe'], speeds) and list(found['name']) == ['000000_10', '000001_10']
    assert np.isclose(metrics['KITTI 2012']['zero flow']['epe'], np.mean(speeds))
    assert found[['epe_noc', 'epe_occ', 'fl_all']].notna().all(axis=None)
    assert ('not measured' in (folder / 'pairs.md').read_text()) == (not hasattr(cv2, 'optflow'))
    assert not (folder / 'flow.jpg').exists()


# Real ground truth

def data_root():
    settings = configparser.ConfigParser()
    settings.read(ROOT / 'settings.ini')
    return ROOT / os.environ.get('UNSAMFLOW_DATA', settings.get('paths', 'data', fallback='data sets'))


KITTI_2012 = [('KITTI-2012', '000027', 37.22), ('KITTI-2012', '000045', 11.66), ('KITTI-2012', '000151', 47.49), ('KITTI-2012', '000157', 2.84), ('KITTI-2015', '000010', 9.03)]


@pytest.mark.parametrize('folder, name, expected', KITTI_2012)
def test_zero_flow_on_kitti(folder, name, expected):
    truth = data_root() / folder / 'training/flow_occ' / f'{name}_10.png'
    if not truth.is_file():
        pytest.skip(f'needs {folder} {name}, not on this machine')
    flow, valid = read_flow(truth)
    result = evaluate(zero_flow, [Sample(torch.zeros(3, *valid.shape), None, flow, valid, name=name)], progress=False)
    assert round(result['epe'], 2) == expected


@pytest.mark.parametrize('folder, name, occlusion, leaving, both', [
    ('KITTI-2015', '000010_10', 2601, 2757, 2601), ('Sintel', 'alley_1/frame_0002', 9912, 2684, 55), ('Sintel', 'temple_3/frame_0022', 142279, 40887, 35772)])
def test_what_leaves_the_frame_is_occluded_on_kitti_and_in_part_on_sintel(folder, name, occlusion, leaving, both):
    options = {'truth_only': True} | ({'passes': 'final'} if folder == 'Sintel' else {})
    try:
        pairs = dataset(folder.lower(), root=data_root() / folder, **options)
        index = next(i for i, pair in enumerate(pairs.pairs) if pair.name.endswith(name))
    except (FileNotFoundError, StopIteration):
        pytest.skip(f'needs {folder} {name}, not on this machine')
    sample = pairs[index]
    parts = regions(sample, pairs.every_pixel)
    y, x = np.indices(sample.flow.shape[1:]) + sample.flow.numpy()[::-1]
    leaves = parts['all'] & ((np.minimum(x, y) < -0.5) | (y > y.shape[0] - 0.5) | (x > x.shape[1] - 0.5))
    assert (parts['occ'].sum(), leaves.sum(), (parts['occ'] & leaves).sum()) == (occlusion, leaving, both)


def test_kitti_2012_gives_visible_pixels_two_truths():
    paths = [data_root() / f'KITTI-2012/training/{folder}/000151_10.png' for folder in ('flow_occ', 'flow_noc')]
    if not all(path.is_file() for path in paths):
        pytest.skip('needs KITTI-2012 000151, not on this machine')
    (everywhere, known), (values, visible) = map(read_flow, paths)
    difference = np.hypot(*(everywhere - values))[visible]
    assert not (visible & ~known).any() and (visible.sum(), (difference > 0).sum(), round(float(difference.max()), 1)) == (117289, 3031, 2.5)


@pytest.mark.parametrize('name, expected', [('Dimetrodon', 2.06), ('Grove2', 3.09), ('RubberWhale', 1.26), ('Urban2', 8.39)])
def test_zero_flow_and_dis_on_middlebury(name, expected):
    root = data_root() / 'Middlebury'
    if not (root / f'other-gt-flow/{name}/flow10.flo').is_file():
        pytest.skip(f'needs Middlebury {name}, not on this machine')
    flow, valid = read_flow(root / f'other-gt-flow/{name}/flow10.flo')
    frames = [read_image(root / f'other-data/{name}/frame{k}.png') for k in (10, 11)]
    sample = Sample(*frames, flow, valid, name=name)
    zero, found = (evaluate(method, [sample], progress=False)['epe'] for method in (zero_flow, dis))
    assert round(zero, 2) == expected and found < 0.2 * zero
