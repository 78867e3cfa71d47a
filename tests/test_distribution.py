"""Wheel and source distribution build, hold everything that travels with the package, and work outside the tree.

The cheap form installs the wheel without its dependencies into a new environment that sees this one's. With UNSAMFLOW_FULL_INSTALL=1 an
empty environment gets everything by `uv pip install .`; that needs the network, or a filled cache of uv, and room for PyTorch.
"""
import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from unsamflow.flow import read_flow

ROOT = Path(__file__).parents[1]
TRAVELS = {'weights': ('data/weights', '*.safetensors'), 'presets': ('data/presets', '*.yaml'), 'tables': ('data/tables', '*.yaml'), 'paper': ('data/paper', '*.csv'), 'templates': ('nbs/experiments', '*.ipynb')}


def tool(*arguments, cwd=None, **environment):
    "Runs a program; its output if it succeeds, the test's failure with its messages otherwise."
    done = subprocess.run([str(a) for a in arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "A copy of what version control holds, with the changes that are not committed yet: building writes into its tree."
    copy = tmp_path_factory.mktemp('tree') / 'unsamflow'
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('needs a git checkout, to know which files belong to the project')
    for name in filter(None, listed.stdout.split('\0')):
        if not name.startswith('results/') and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope='module')
def built(tree, tmp_path_factory):
    "The folder of the wheel and the source distribution, built by the backend that is installed here."
    target = tmp_path_factory.mktemp('dist')
    code = f'import setuptools.build_meta as b; b.build_sdist({str(target)!r}); b.build_wheel({str(target)!r})'
    tool(sys.executable, '-c', code, cwd=tree)
    return target


def held(names, inside, prefix):
    "Those of the repository's files of each kind that a list of names does not have."
    expected = {f'{prefix}{inside(kind, folder)}/{p.name}' for kind, (folder, pattern) in TRAVELS.items() for p in (ROOT / folder).glob(pattern)}
    return sorted(expected - set(names))


def test_the_wheel_holds_weights_presets_tables_figures_and_templates(built):
    names = zipfile.ZipFile(next(built.glob('*.whl'))).namelist()
    assert held(names, lambda kind, _: kind, 'unsamflow/') == []
    assert {f'unsamflow/{p.name}' for p in (ROOT / 'unsamflow').glob('*.py')} <= set(names)
    assert not [n for n in names if n.startswith(('tests/', 'results/', 'nbs/'))]
    assert any(n.endswith('LICENSE') for n in names)


def test_the_source_distribution_can_be_built_from(built, tmp_path):
    "The wheel that is built from the source distribution alone has the same files."
    archive = next(built.glob('*.tar.gz'))
    with tarfile.open(archive) as source:
        source.extractall(tmp_path, filter='data')
        names = source.getnames()
    root = names[0].split('/')[0]
    assert held(names, lambda _, folder: folder, f'{root}/') == []
    tool(sys.executable, '-c', f'import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})', cwd=tmp_path / root)
    again, first = (sorted(zipfile.ZipFile(next(folder.glob('*.whl'))).namelist()) for folder in (tmp_path, built))
    assert again == first


@pytest.fixture
def photographs(tmp_path):
    "Two photographs of a size that takes seconds."
    left, right, _ = skimage.data.stereo_motorcycle()
    for name, picture in (('a', left), ('b', right)):
        cv2.imwrite(str(tmp_path / f'{name}.png'), picture[150:342, 250:506, ::-1])
    return tmp_path


def check_prediction(python, photographs):
    "`unsamflow predict` in an environment: flow and picture are there, and the package is the installed one; seconds that it took."
    begin = time.perf_counter()
    tool(python.with_name('unsamflow'), 'predict', 'a.png', 'b.png', cwd=photographs)
    seconds = time.perf_counter() - begin
    flow, known = read_flow(photographs / 'flow/a.flo')
    assert flow.shape == (2, 192, 256) and known.all() and np.abs(flow).max() > 1
    assert cv2.imread(str(photographs / 'flow/a_flow.png')).shape == (192, 256, 3)
    where = tool(python, '-c', 'import unsamflow.inference as i; print(i.find_weights())', cwd=photographs).strip()
    assert Path(where).is_relative_to(python.parents[1]) and 'site-packages' in where
    return seconds


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
    "The Python of a new environment with the wheel, that borrows this one's dependencies, but not its unsamflow."
    folder = tmp_path_factory.mktemp('installed')
    venv.create(folder / 'env', with_pip=False)
    python = folder / 'env/bin/python'
    site = Path(tool(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    borrowed = next(p for p in map(Path, sys.path) if (p / 'torch').is_dir())
    (site / 'borrowed.pth').write_text(f'{borrowed}\n')
    installer = [sys.executable, '-m', 'pip', '--python', python, 'install', '--ignore-installed'] if has('pip') else [Path(sys.executable).with_name('uv'), 'pip', 'install', '--python', python]
    tool(*installer, '--no-deps', '--no-index', next(built.glob('*.whl')))
    return python


def test_the_wheel_predicts_outside_the_tree(installed, photographs):
    python, site = installed, installed.parents[1]
    check_prediction(python, photographs)
    listed = tool(python.with_name('unsamflow'), 'run', '--help', cwd=photographs)
    assert 'experiment' in listed
    code = 'from unsamflow.experiments import TEMPLATES, TABLES; from unsamflow.training import load_config; load_config("kitti"); print(TEMPLATES, TABLES)'
    assert tool(python, '-c', code, cwd=photographs).count(str(site)) == 2


def test_the_tests_pass_outside_the_tree(installed, tmp_path):
    "Those that are about the library, and not about notebooks, README or site; a few of them, all with UNSAMFLOW_FULL_INSTALL."
    shutil.copytree(ROOT / 'tests', tmp_path / 'tests', ignore=shutil.ignore_patterns('__pycache__'))
    of_the_library = [f.name for f in (tmp_path / 'tests').glob('test_*.py') if 'Path(__file__)' not in f.read_text()]
    chosen = of_the_library if os.environ.get('UNSAMFLOW_FULL_INSTALL') else ['test_files.py', 'test_flow.py', 'test_inference.py', 'test_constants.py']
    assert set(chosen) <= set(of_the_library) and len(of_the_library) > 10
    (tmp_path / 'tests/where.py').write_text('import unsamflow; print(unsamflow.__file__)')
    assert str(installed.parents[1]) in tool(installed, 'tests/where.py', cwd=tmp_path)
    print(tool(installed, '-m', 'pytest', '-q', '--timeout=1800', '-p', 'no:cacheprovider', *(f'tests/{name}' for name in sorted(chosen)), cwd=tmp_path)[-300:])


def has(module):
    "Whether this environment has a module."
    return subprocess.run([sys.executable, '-c', f'import {module}'], capture_output=True).returncode == 0


@pytest.mark.skipif(not os.environ.get('UNSAMFLOW_FULL_INSTALL'), reason='gigabytes: set UNSAMFLOW_FULL_INSTALL=1')
def test_an_empty_environment_gets_everything(tree, photographs, tmp_path):
    uv = shutil.which('uv', path=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    tool(uv, 'venv', '--python', sys.executable, tmp_path / 'env')
    python = tmp_path / 'env/bin/python'
    begin = time.perf_counter()
    tool(uv, 'pip', 'install', '--python', python, tree)
    print(f'installed in {time.perf_counter() - begin:.0f} s')
    print(f'predicted in {check_prediction(python, photographs):.0f} s')
