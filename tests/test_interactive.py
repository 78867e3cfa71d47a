"The interactive page: the template's numbers against the library and against OpenCV, and a page that needs nothing but its own files."
import base64
import io
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from unsamflow.datasets import Sample, dataset
from unsamflow.experiments import run
from unsamflow.files import as_bytes
from unsamflow.flow import colour_wheel
from unsamflow.homography import homography_loss
from unsamflow.inference import WEIGHTS, load_model, predict_both, read_weights
from unsamflow.network import UnSAMFlow
from unsamflow.training import estimate_occlusion, save_weights

PAGE = Path(__file__).parents[1] / 'docs/interactive'
SCENES, SIZE, THRESHOLD = [2_000_028, 2_000_029], (64, 96), 0.5
in_tree = pytest.mark.skipif(not PAGE.is_dir(), reason='no docs/interactive: not a checkout of the repository')


def read(folder):
    "The object that data.js assigns."
    script = (folder / 'data.js').read_text()
    return json.loads(script[script.index('interactiveData = ') + 18:].rstrip().rstrip(';'), parse_constant=pytest.fail)  # NaN is not json


def decode(uri):
    "The picture (H, W, 3) in a data URI."
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))).astype(float)


def unpack(packed):
    "The array that `pack` has packed, as described in the template."
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed['data'])), np.uint8)
    changes = np.stack(np.split(raw, 2), 1).copy().view('<i2').reshape(packed['shape'])
    return changes.astype(float).cumsum(-1) * packed['step']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of the template on two small scenes: the shipped network, and one with mask features that has learnt nothing."
    folder = tmp_path_factory.mktemp('interactive')
    torch.manual_seed(0)
    save_weights(UnSAMFlow(mask_features='concat'), folder / 'masked.safetensors', torch.float16, seed=0)
    params = {'weights': ['baseline', str(folder / 'masked.safetensors')], 'scenes': SCENES, 'height': SIZE[0], 'width': SIZE[1], 'threshold': THRESHOLD, 'average': 2, 'donors': 2, 'objects': 2}
    return run('interactive', params, folder / 'run', progress=False)


@pytest.fixture(scope='module')
def content(made):
    return read(made)


class Known(NamedTuple):
    "What the library says of a scene, found without the template."
    sample: Sample
    flow: torch.Tensor  # (1, 2, H, W), of the shipped network
    hidden: torch.Tensor  # (1, 1, H, W) bool, what it takes for occluded

    def points(self, segment, reliable=True):
        "Positions (N, 2) of a segment's pixels and where the flow takes them."
        inside = self.sample.segments_1[0] == segment['label']
        y, x = np.nonzero((inside & ~self.hidden[0, 0] if reliable else inside).numpy())
        source = np.stack([x, y], 1).astype(float)
        return source, source + self.flow[0].numpy()[:, y, x].T


@pytest.fixture(scope='module')
def known():
    network, found = load_model('baseline'), []
    for scene in SCENES:
        sample = dataset('scenes', count=1, offset=scene, height=SIZE[0], width=SIZE[1])[0]
        prediction = predict_both(network, sample.image_1, sample.image_2, SIZE)
        both = [torch.from_numpy(flow)[None] for flow in (prediction.flow, prediction.backward)]
        found.append(Known(sample, both[0], estimate_occlusion(*both, 'range-map')[:1]))
    return found


@pytest.fixture(scope='module')
def judged(content, known):
    "The segments that were looked at, each with its scene."
    return [(k, s) for k, scene in zip(known, content['scenes']) for s in scene['estimates']['baseline']['segments'] if 'rank' in s]


def test_arrays_are_those_of_the_scene_and_the_network(content, known):
    for scene, (sample, flow, hidden) in zip(content['scenes'], known):
        own = scene['estimates']['baseline']
        assert np.abs(unpack(scene['flow']) - sample.flow.numpy()).max() <= scene['flow']['step'] / 2 + 1e-6
        assert np.abs(unpack(own['flow']) - flow[0].numpy()).max() <= own['flow']['step'] / 2 + 1e-4
        assert np.array_equal(unpack(scene['segments']), sample.segments_1[0])
        assert np.array_equal(unpack(scene['occluded']), ~sample.non_occluded[0])
        assert np.array_equal(unpack(own['occluded']), hidden[0, 0])
        assert own['means']['all'][0] == pytest.approx(float((flow[0] - sample.flow).norm(dim=0).mean()), abs=1e-4)


def test_frames_are_those_of_the_scene(content, known):
    for scene, (sample, *_) in zip(content['scenes'], known):
        for uri, image in zip(scene['images'], (sample.image_1, sample.image_2)):
            assert uri.startswith('data:image/webp;base64,') and np.abs(decode(uri) - as_bytes(image)).mean() < 8


def test_the_most_occluded_segments_are_looked_at(content, known):
    for scene, (sample, _, hidden) in zip(content['scenes'], known):
        labels, told = sample.segments_1[0], {s['label']: s for s in scene['estimates']['baseline']['segments']}
        assert sorted(told) == labels.unique().tolist() and told[0]['verdict'] == 'background'
        assert {label: s['pixels'] for label, s in told.items()} == {label: int((labels == label).sum()) for label in told}
        occluded = {label: int((hidden[0, 0] & (labels == label)).sum()) for label in told}
        assert {label: s['occluded'] for label, s in told.items()} == occluded
        expected = sorted((label for label in occluded if label and occluded[label]), key=lambda label: (-occluded[label], label))[:6]
        assert sorted((label for label in told if 'rank' in told[label]), key=lambda label: told[label]['rank']) == expected != []


def test_verdicts_follow_the_rules(judged):
    for _, s in judged:
        assert s['reliable'] == s['pixels'] - s['occluded'] and (s['verdict'] == 'accepted') == (s['reasons'] == [])
        assert ('few' in s['reasons']) == (s['reliable'] < 4) and ('share' in s['reasons']) == (s['reliable'] < 0.2 * s['pixels'])
        assert ('inliers' in s['reasons']) == (s['inliers'] < 0.5 * s['reliable'])
    assert {s['verdict'] for _, s in judged} == {'accepted', 'rejected'}


def test_an_accepted_homography_is_what_opencv_finds(judged):
    knows, best = max(((k, s) for k, s in judged if s['verdict'] == 'accepted'), key=lambda pair: (pair[1]['inliers'] / pair[1]['reliable'] > 0.8, pair[1]['inliers']))
    source, target = knows.points(best)
    matrix, inliers = cv2.findHomography(source, target, cv2.RANSAC, THRESHOLD)
    assert len(source) == best['reliable'] and inliers.sum() == pytest.approx(best['inliers'], rel=0.1)
    ours, theirs = (cv2.perspectiveTransform(source[None], np.array(m))[0] for m in (best['matrix'], matrix))
    assert np.hypot(*(ours - theirs).T).mean() < THRESHOLD / 2
    assert (np.hypot(*(ours - target).T) <= THRESHOLD).sum() == pytest.approx(best['inliers'], abs=1)


def test_no_homography_of_opencv_fits_what_was_rejected_for_its_inliers(judged):
    rejected = [(k, s) for k, s in judged if 'inliers' in s['reasons'] and s['reliable'] >= 20]
    for knows, s in rejected:
        _, inliers = cv2.findHomography(*knows.points(s), cv2.RANSAC, THRESHOLD, maxIters=5000)
        assert inliers.mean() < 0.55
    assert rejected


def test_changes_add_up_to_the_loss(content, known):
    for scene, (sample, flow, hidden) in zip(content['scenes'], known):
        own = scene['estimates']['baseline']
        loss = float(homography_loss(flow, sample.segments_1[None], hidden, THRESHOLD, generator=torch.Generator().manual_seed(0)))
        total = sum(s.get('change', 0) * s['pixels'] for s in own['segments']) / np.prod(SIZE)
        assert own['loss'] == pytest.approx(loss, rel=1e-4) and total == pytest.approx(loss, rel=1e-3) and loss > 0


def test_errors_after_refining_are_those_of_the_matrices(judged):
    for knows, s in judged:
        source, target = knows.points(s, reliable=False)
        x, y = source.T.astype(int)
        true = source + knows.sample.flow.numpy()[:, y, x].T
        followed = cv2.perspectiveTransform(source[None], np.array(s['matrix']))[0]
        before, after = (np.hypot(*(end - true).T).mean() for end in (target, followed))
        assert s['error'] == pytest.approx([before, after if s['verdict'] == 'accepted' else before], abs=1e-3)
        assert s.get('otherwise') is None or s['otherwise'] == pytest.approx(after, rel=1e-3)


def test_the_pasted_pair_shows_the_objects_where_they_are_said_to_be(content, known):
    for scene, (sample, *_) in zip(content['scenes'], known):
        pasted = scene['pasted']
        objects, (first, second) = unpack(pasted['objects']), map(decode, pasted['images'])
        assert len(pasted['motions']) == 2 and set(np.unique(objects)) <= {0, 1, 2} and objects.any()
        change = np.abs(first - as_bytes(sample.image_1)).mean(2)
        assert change[objects > 0].mean() > 3 * change[objects == 0].mean()
        label = 2 if (objects == 2).any() else 1  # the one in front
        y, x = np.nonzero(objects == label)
        u, v = x + pasted['motions'][label - 1][0], y + pasted['motions'][label - 1][1]
        moved = cv2.remap(second, np.float32(u)[None], np.float32(v)[None], cv2.INTER_LINEAR)[0]
        inside = (u >= 0) & (u <= SIZE[1] - 1) & (v >= 0) & (v <= SIZE[0] - 1)
        assert np.abs(moved - first[y, x])[inside].mean() < 12  # it looks the same in both frames, WebP and its rim apart


def test_features_come_from_a_network_that_pools(content):
    features = content['scenes'][0]['features']
    values, labels = unpack(features['values']), unpack(features['labels'])
    assert features['weights'] == 'masked' and features['own'] and values.shape[1:] == labels.shape == (SIZE[0] // 4, SIZE[1] // 4)
    assert len(set(features['channels'])) == len(values) and values.min() == 0 and values.max() == 255


def test_the_wheel_is_that_of_the_library(content):
    wheel = np.array(content['colours']['wheel'])
    assert wheel.shape == (360, 3)
    for degrees, place in ((0, 0), (180, 27)):  # to the right, to the left
        assert np.abs(wheel[degrees] - 255 * colour_wheel()[place]).max() <= 1
    assert np.abs(np.diff(wheel, axis=0)).max() <= 15  # no spokes


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="occlusion: expected 'range-map' or 'forward-backward', found 'both'"):
        run('interactive', {'occlusion': 'both'}, tmp_path / 'run', progress=False)


@in_tree
def test_the_page_needs_nothing_but_its_own_files():
    for path in PAGE.iterdir():
        text = path.read_text()
        code = re.sub(r'"data:image/webp;base64,[^"]*"|"data":"[^"]*"', '""', text)
        assert not re.search(r'(https?:)?//[\w.-]+\.\w{2,}/|@import|\bimport\s*\(|\bfetch\s*\(|XMLHttpRequest|localStorage|\beval\b', code), path
        assert not re.search(r'(/work|/tmp|/root|/home)/', code), path
    page = (PAGE / 'index.html').read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert sorted(named) == ['data.js', 'page.js', 'style.css'] and all((PAGE / name).is_file() for name in named)
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 1_500_000


@in_tree
def test_the_page_shows_the_weights_that_are_shipped():
    shipped = {path.stem: {'mask_features': '', **read_weights(path)[1]} for path in WEIGHTS.glob('*.safetensors')}
    again = 'make the page again: unsamflow run interactive page=docs/interactive --folder results/interactive --again'
    assert read(PAGE)['weights'] == shipped, again


@in_tree
def test_a_browser_draws_what_the_library_measured(made, tmp_path):
    browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not browser:
        pytest.skip('no Chromium on this machine')
    for name in ('index.html', 'style.css', 'page.js'):
        shutil.copy(PAGE / name, tmp_path)
    shutil.copy(made / 'data.js', tmp_path)
    address = (tmp_path / 'index.html').as_uri() + '#hg&segment=2&show=refined'
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile', '--virtual-time-budget=20000', '--dump-dom', address]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert 'data-ready="1"' in page and float(re.search(r'data-check="([^"]*)"', page)[1]) < 0.06  # pixels: flow is rounded to 1/16
    assert re.search(r'Segment 2: <span class="(accepted|rejected|not chosen)">', page)
