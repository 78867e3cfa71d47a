"The templates `figures` and `timing` in miniature: what is drawn, what is said of it, and what is not there."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from unsamflow.datasets import dataset
from unsamflow.evaluation import endpoint_error
from unsamflow.experiments import run
from unsamflow.inference import load_model, predict
from unsamflow.network import UnSAMFlow
from unsamflow.training import save_weights

SCENES = {'count': 3, 'offset': 2_000_000}
NAMES = ['figure-1', 'figure-3', 'figure-4', 'figure-5', 'figure-10', 'figure-11', 'curves']


def make_run(folder, preset, seed=1, weights=None):
    "A finished training run, with or without its weights."
    folder.mkdir(parents=True)
    (folder / 'params.json').write_text(json.dumps({'template': 'train', 'preset': preset, 'seed': seed, 'overrides': {}}))
    (folder / 'metrics.json').write_text(json.dumps({'validation': {'validation_epe': 2.5, 'validation_epe_occ': 6.0}}))
    (folder / 'log.jsonl').write_text(''.join(json.dumps({'step': s, 'photometric': 1.0, 'occluded': 0.1, 'validation_epe': 5.0 - s, 'validation_epe_occ': 6.0}) + '\n' for s in (1, 2)))
    if weights is not None:
        save_weights(weights, folder / 'weights.safetensors', preset=preset, steps=3000, seed=seed)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "A run of the figures template: one variant with weights, one without them, one never trained, beside the shipped baseline of the same preset."
    root = tmp_path_factory.mktemp('figures')
    torch.manual_seed(0)
    make_run(root / 'results/scenes-aug-hg-mf/seed-1', 'scenes-aug-hg-mf', weights=UnSAMFlow('concat'))
    make_run(root / 'results/scenes-aug/seed-1', 'scenes-aug')
    make_run(root / 'results/scenes-aug/seed-2', 'scenes-aug', seed=2)
    params = {'results': str(root / 'results'), 'comparisons': {'figure-1': {'name': 'scenes', 'options': SCENES, 'samples': [1]}}, 'scenes': SCENES, 'shown': 1, 'objects': 3}
    return run('figures', params, root / 'figures', progress=False)


def test_every_figure_is_there_small_and_not_blank(drawn):
    for name in NAMES:
        assert (drawn / f'{name}.pdf').read_bytes().startswith(b'%PDF')
        assert np.array(Image.open(drawn / f'{name}.jpg')).std() > 20
        assert all((drawn / f'{name}.{suffix}').stat().st_size < 150_000 for suffix in ('jpg', 'pdf'))


def test_what_is_not_trained_is_named_and_has_no_number(drawn):
    metrics, text = json.loads((drawn / 'metrics.json').read_text()), (drawn / 'figures.md').read_text()
    networks = metrics['networks']
    assert networks['+aug +hg'] == 'not trained' and networks['+aug'] == 'weights not here'
    assert 'shipped weights `scenes`' in networks['baseline'] and 'seed-1' in networks['+aug +hg +mf']
    assert '| +aug +hg | not trained |' in text and all(f'## {name}\n' in text for name in NAMES)
    for numbers in metrics['figure-1'].values():
        assert set(numbers) == {'baseline', '+aug +hg +mf'}


def test_the_numbers_under_the_pictures_are_those_of_the_networks(drawn):
    metrics, sample = json.loads((drawn / 'metrics.json').read_text()), dataset('scenes', **SCENES)[1]
    flow = predict(load_model('scenes'), sample.image_1, sample.image_2)
    assert metrics['figure-1'][sample.name]['baseline']['epe'] == pytest.approx(endpoint_error(flow, sample.flow.numpy()).mean(), rel=1e-4)


def test_curves_show_runs_whose_weights_are_gone(drawn):
    final = json.loads((drawn / 'metrics.json').read_text())['curves']['final']
    assert final['+aug'] == [2.5, 2.5] and final['+aug +hg +mf'] == [2.5]


def test_the_mask_feature_module_is_drawn_with_the_trained_network(drawn):
    caption = (drawn / 'figures.md').read_text().split('## figure-5\n')[1].split('## ')[0]
    assert 'seed-1' in caption and 'initial weights' not in caption


def test_homographies_lead_nearer_to_the_truth_than_chance(drawn):
    figure = json.loads((drawn / 'metrics.json').read_text())['figure-4']
    landscape = {name: {int(shift): loss for shift, loss in curve.items()} for name, curve in figure['landscape'].items()}
    homography, boundary = landscape['homography smoothness'], landscape['boundary-aware smoothness']
    assert all(homography[s] < homography[s + 1] and homography[-s] < homography[-s - 1] for s in range(20))  # a slope leads home from everywhere
    assert np.ptp([boundary[s] for s in boundary if abs(s) >= 6]) < 0.1 * boundary[20]  # a plain


def test_no_network_at_all_is_an_error_that_names_the_rows(tmp_path):
    with pytest.raises(RuntimeError, match=r'at least one of .*\+hg.* to have been trained, found none'):
        run('figures', {'rows': ['+hg'], 'results': str(tmp_path)}, tmp_path / 'figures', progress=False)


def test_timing_in_miniature(tmp_path):
    small = {'batch': 2, 'size': [64, 64], 'augmentation.crop': [64, 64], 'augmentation.cache_size': 8}
    variants = {'baseline': small, '+aug +hg +mf': small | {'aug': True, 'hg': True, 'mf': 'concat'}}
    done = run('timing', {'variants': variants, 'size': [128, 192], 'rounds': 2, 'device': 'cpu'}, tmp_path / 'timing', progress=False)
    metrics, text = json.loads((done / 'metrics.json').read_text()), (done / 'timing.md').read_text()
    assert metrics['parameters'] == {'no masks': 2_513_412, 'mask features': 2_625_348, 'added by mask features': 111_936}
    assert metrics['training']['baseline']['ratio'] == {'measured': 1.0, 'low': 1.0, 'high': 1.0}
    both, one = (metrics['prediction'][f'no masks, {which}'] for which in ('both directions', 'one direction'))
    assert both['seconds']['measured'] > 0 and both['bytes'] > one['bytes'] > 4 * 2_513_412
    assert all(part['low'] <= part['measured'] <= part['high'] for t in metrics['training'].values() for part in (t['seconds'], t['ratio']))
    counts = metrics['gflop']['no masks, one direction']
    assert counts['executed']['convolution'] < counts['every tap']
    assert counts['every tap'] == pytest.approx(55.146 * 128 * 192 / (256 * 832), rel=1e-3)  # convolutions grow with the pixels
    assert 'SAM ViT-H, one frame of 128 x 192 | not published here | not measured' in ' '.join(text.split())
    assert all((done / f'timing.{suffix}').stat().st_size < 150_000 for suffix in ('jpg', 'pdf', 'csv'))
