"Benchmark: every fast path beside its plain version, and the template itself at a small size, its GPU paths as far as a CPU goes."
import json

import nbformat
import pytest
import torch

from unsamflow.experiments import TEMPLATES, find_template, run
from unsamflow.homography import homography_loss
from unsamflow.losses import pyramid_photometric_loss
from unsamflow.network import UnSAMFlow, correlate, pool_segments

SMALL = dict(size=[64, 128], second_size=[64, 64], repeats=1, threads=1, batch=1, homography_batch=1, segments=8, many=32, samples=1)

pytestmark = pytest.mark.skipif(not (TEMPLATES.parent / '04_network.ipynb').is_file(), reason='the plain versions stand in the notebooks of the repository, which a wheel does not have')


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    "What the template's cells define, nothing measured."
    names = {}
    for cell in nbformat.read(find_template('benchmark'), 4).cells:
        if cell.cell_type == 'code':
            exec(cell.source, names)
            if 'parameters' in cell.metadata.get('tags', []):
                names |= SMALL | {'rows': [], 'folder': str(tmp_path_factory.mktemp('benchmark'))}
    return names


def same(fast, plain, leaves, tolerance):
    "Values and gradients of two functions of the same tensors; the tolerance is a share of the largest."
    found, expected = fast(*leaves), plain(*leaves)
    weight = torch.rand_like(expected)
    pairs = zip((found, *torch.autograd.grad(found, leaves, weight)), (expected, *torch.autograd.grad(expected, leaves, weight)))
    for a, b in pairs:
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-12)


@pytest.mark.parametrize('shape', [(2, 32, 16, 24), (1, 7, 13, 5), (3, 4, 1, 1), (1, 3, 1, 30), (2, 192, 4, 13)])
@pytest.mark.parametrize('how', ['centred-cosine', 'cosine', 'none'])
def test_correlation(template, shape, how):
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    same(lambda a, b: correlate(a, b, normalise=how), lambda a, b: template['correlate_plain'](a, b, normalise=how), leaves, 1e-9)


@pytest.mark.parametrize('count', [1, 2, 17, 500, 'every pixel'])
@pytest.mark.parametrize('size', [(16, 52), (7, 3), (1, 1)])
def test_pooling(template, count, size):
    pixels = size[0] * size[1]
    segments = torch.arange(pixels).view(1, 1, *size).expand(2, -1, -1, -1) if count == 'every pixel' else torch.randint(count, (2, 1, *size))
    features = (torch.randn(2, 5, *size, dtype=torch.float64) - 2).requires_grad_()
    same(lambda f: pool_segments(f, segments), lambda f: template['pool_segments_plain'](f, segments), [features], 1e-12)


@pytest.mark.parametrize('size', [(48, 80), (51, 77)])
@pytest.mark.parametrize('weights', [dict(l1=0.15, ssim=0.85), dict(census=1.0), dict(l1=0.3, ssim=0.3, census=0.4)])
def test_photometric_loss(template, size, weights):
    images = torch.rand(2, 2, 3, *size, dtype=torch.float64)
    visible = (torch.rand(2, 1, *size) > 0.2).double()
    flows = [(2 * torch.randn(2, 2, size[0] >> l, size[1] >> l, dtype=torch.float64)).requires_grad_() for l in range(4)]
    levels = (1, 1, 1, 1)
    same(lambda *f: pyramid_photometric_loss(*images, f, visible, level_weights=levels, **weights),
         lambda *f: template['plain_pyramid'](*images, f, visible, level_weights=levels, **weights), flows, 1e-9)


@pytest.mark.parametrize('rows, columns, size', [(1, 1, (64, 96)), (3, 4, (97, 161)), (10, 16, (128, 208))])
def test_homography_loss(template, rows, columns, size):
    "OpenCV draws other points, so the fits agree to a fraction of the noise, and gradients, which are signs, at nearly all pixels."
    flow, _, segments, occluded = template['planes'](2, *size, rows, columns, noise=0.1, outliers=0.1)
    flow.requires_grad_()
    fast, plain = homography_loss(flow, segments, occluded, 1.0), template['plain_homography_loss'](flow, segments, occluded, 1.0)
    assert plain > 0 and abs(fast - plain) < 0.01 * plain
    (a,), (b,) = torch.autograd.grad(fast, flow), torch.autograd.grad(plain, flow)
    assert (b != 0).any() and ((a - b).abs() > 1e-9).float().mean() < 0.03


@pytest.mark.parametrize('features', [None, 'concat'])
def test_the_network_beside_the_published_formulation(template, features):
    torch.manual_seed(0)
    model, images, segments = UnSAMFlow(features).double(), torch.rand(2, 2, 3, 64, 128, dtype=torch.float64), torch.randint(9, (2, 2, 1, 64, 128))
    weights = [torch.rand(2, 2, 64 >> l, 128 >> l, dtype=torch.float64) for l in range(5)]

    def loss():
        flows = model(*images, *segments, both_directions=True)
        value = sum((w * (a + 0.5 * b)).mean() for w, a, b in zip(weights, flows.forward, flows.backward))
        return value, torch.autograd.grad(value, list(model.parameters()))

    with template['published']():
        plain, plain_gradients = loss()
    fast, gradients = loss()
    assert abs(fast - plain) < 1e-9 * abs(plain)
    largest = max(g.abs().max() for g in plain_gradients)
    assert max((a - b).abs().max() for a, b in zip(gradients, plain_gradients)) < 1e-9 * largest


def test_the_plain_versions_are_found_by_name(template):
    with pytest.raises(ValueError, match=r"expected functions \['correlate_fast'\], found none"):
        template['lessons']('04_network', 'correlate_plain', 'correlate_fast')
    with pytest.raises(FileNotFoundError, match='99_nothing.ipynb'):
        template['lessons']('99_nothing', 'plain')


def test_peak_memory_and_exponents(template):
    x = torch.ones(1000, 256)
    assert template['peak_memory'](lambda: (x + 1).mul_(2)) == pytest.approx(1.024e6, rel=0.01)
    assert template['peak_memory'](lambda: [(x + 1).sum() for _ in range(5)]) < 2e6  # freed before the next one
    assert template['exponent']([1, 2, 4, 8], torch.tensor([9.0, 4.0, 16.0, 64.0]).numpy()) == pytest.approx(2)


def test_gpu_paths_as_far_as_a_cpu_goes(template):
    config = template['step_config'](1, aug=True, hg=True, mf='concat')
    found = template['measure_ways'](config, template['scene_batches'](config, 1), {'float32': ('float32', False, None), 'other': ('bfloat16', True, 'no such mode')}, 1)
    assert found['float32']['steps a second']['measured'] > 0 and found['float32']['operations'] > 1e9 and found['float32']['waits']['aten::_local_scalar_dense'] > 0
    assert 'no such mode' in found['other']['failed']


def test_the_template_runs(tmp_path):
    folder = run('benchmark', {**SMALL, 'rows': ['pool_segments', 'correlate', 'photometric', 'GPU']}, tmp_path / 'run', progress=False)
    lines = {line['what']: line for line in json.loads((folder / 'metrics.json').read_text())['lines']}
    assert lines['correlate, forward and backward']['measured'] > 0 and lines['training step on a GPU']['reached'] is None
    assert 'not measured' in (folder / 'table.md').read_text()
    with pytest.raises(RuntimeError, match=r"rows: expected some of .* found \['speed'\]"):
        run('benchmark', {**SMALL, 'rows': ['speed']}, tmp_path / 'wrong', progress=False)
