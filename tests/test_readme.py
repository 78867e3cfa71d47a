"""Every command in README.md is executed: as it stands where it takes seconds, in a small form where it takes longer.

`python -m pytest tests/test_readme.py --collect-only -v` lists the commands, each with how it is executed. A command that no line of
`HOW` speaks of fails, so a new one in the README needs a line here.
"""
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import skimage.data

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r'^```(\w+)\n(.*?)^```', re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    "The README's code blocks of a language."
    return [text for found, text in FENCE.findall((ROOT / 'README.md').read_text()) if found == language]


def commands() -> list[str]:
    "The commands of the shell blocks, comments dropped, continued lines joined."
    lines = '\n'.join(blocks('sh') + blocks('bash') + blocks('shell')).replace('\\\n', ' ').splitlines()
    found = (' '.join(shlex.quote(w) if set(w) & set(" '{}[]*") else w for w in shlex.split(line, comments=True)) for line in lines)
    return list(dict.fromkeys(filter(None, found)))


class How(NamedTuple):
    "How a command is executed."
    pattern: str  # of the whole command
    said: str  # in words
    change: Callable[[str], str] = lambda line: line  # from what the shell would run (for make: its recipe) to what is run here
    leaves: tuple[str, ...] = ()  # files that must be there afterwards


def with_more(text: str) -> Callable[[str], str]:
    return lambda line: f'{line} {text}'


TINY = {'steps': '2', 'batch': '2', 'size': '[64, 64]', 'workers': '0', 'precision': 'float32', 'augmentation': '{crop: [64, 64]}'}
SCENES = '[{data: [{name: scenes, options: {count: 4, height: 64, width: 96}}]}]'
FEW = 'validation_scenes=1 validate_every=2'


def flow_style(values: dict) -> str:
    "Keys and values as yaml in one line."
    return '{' + ', '.join(f'{k}: {v}' for k, v in values.items()) + '}'


TRAIN = f"'overrides={flow_style(TINY | {'phases': SCENES})}' {FEW}"


def with_few_steps(line: str) -> str:
    "A training command whose own overrides stay, but for the number of steps."
    own = re.search(r"overrides=\{(.*)\}", line)
    if own is None:
        return f'{line} {TRAIN}'
    kept = re.sub(r'steps: [\d_]+(, )?', '', own[1])
    return line.replace(own[0], f'overrides={flow_style(TINY | {"phases": SCENES})[:-1]}, {kept}}}') + f' {FEW}'


EVALUATE = "'datasets={held-out scenes: {name: scenes, options: {count: 1, height: 64, width: 96}}}' pictures=1"
PLANNED = 'its recipe is only printed'
RUN = r'(\S*/)?unsamflow run'

HOW = [
    How(r'git clone \S+|cd \S+|(python3?|\S*uv) .*|pip install .*|source .*|\. \S+', 'left to tests/test_distribution.py', lambda line: 'true'),
    How(r'make( help)?', 'as it stands'),
    How(r'make setup', 'as it stands, where all is installed'),
    How(r'make demo', 'with two steps of training', with_more('--preset tiny.yaml'), ('results/demo/train/weights.safetensors', 'results/demo/evaluate/table.md', 'results/demo/evaluate/flow.jpg')),
    How(r'make test', 'one notebook and one test', lambda line: line[:line.index('nbdev-test') + 10] + ' nbs/00_files.ipynb && ' + re.sub(r'.*&& (\S+ -m pytest).*', r'\1 tests/test_files.py -k package', line)),
    How(r'make check|make docs', f'in .ci/run; {PLANNED} here', lambda line: 'true'),
    How(r'make train( [A-Z]+=\S+)*', 'two steps on four scenes', with_more(TRAIN), ('results/scenes/seed-1/weights.safetensors',)),
    How(r'make evaluate( [A-Z]+=\S+)*', 'one scene', with_more(EVALUATE), ('results/scenes/seed-1/evaluate/metrics.json',)),
    How(r'make evaluate-real.*', 'one scene', lambda line: f"{line.replace('datasets=real', '')} {EVALUATE}", ('results/real/evaluate/pairs.md',)),
    How(r'make working-size.*', 'one scene at one size', with_more(f"{EVALUATE.removesuffix(' pictures=1')} 'sizes=[64]'"), ('results/real/working-size/working-size.png',)),
    How(r'make tables?(-[\w-]+)?( [A-Z]+=\S+)*', 'from the runs that the commands above left', lambda line: line.split('&&')[-1]),
    How(r'make (reproduce-\w+|ablation|figures|timing|sweep).*', f'on a small scale in its own tests; {PLANNED} here', lambda line: 'true'),
    How(r'make (lock|export|clean)', f'it writes into the tree; {PLANNED} here', lambda line: 'true'),
    How(rf'{RUN} train .*', 'two steps on four scenes', with_few_steps, ('results/mine/weights.safetensors',)),
    How(rf'{RUN} evaluate .*', 'one scene', with_more(EVALUATE)),
    How(rf'{RUN} nbs/13_video.ipynb .*', 'one step on two frames', lambda line: re.sub(r' (steps|frames|crop)=\S+', '', line) + " steps=1 frames=3 batch=1 longest=64 'crop=[64, 64]'"),
    How(r'(\S*/)?unsamflow predict .*', 'as it stands, on small pictures'),
    How(r'(\S*/)?unsamflow submit .*--check.*', 'on a folder that is not complete: it says so', lambda line: f'! {line}'),
    How(r'(\S*/)?unsamflow submit .*', 'without the test pictures: it says what is missing', lambda line: f'! {line}'),
    How(r'(\S*/)?unsamflow (lists|masks|plan|prepare|cache|storage|check) .*', 'its options alone', lambda line: f'{" ".join(line.split()[:2])} --help'),
    How(r'(\S*/)?unsamflow( --help)?', 'as it stands', lambda line: f'{line.split()[0]} --help'),
]


def how(command: str) -> How | None:
    "The first line of `HOW` that speaks of a command."
    return next((h for h in HOW if re.fullmatch(h.pattern, command)), None)


def recipe(command: str, folder: Path, environment: dict) -> str:
    "What the shell runs: for make, the recipe of the target."
    if not command.startswith('make'):
        return command
    planned = subprocess.run(f'make --no-print-directory -n -o .venv/.ready {command[4:]}', shell=True, cwd=folder, env={k: v for k, v in environment.items() if k not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')}, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    return ' && '.join(planned.stdout.strip().splitlines()) or 'true'


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    "A folder like a fresh clone whose installation is this one: the tree by links, results of its own, two photographs and a clip."
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('Makefile', 'data', 'nbs', 'unsamflow', 'tests', 'docs', 'pyproject.toml', 'requirements.lock', 'settings.ini'):
        (folder / name).symlink_to(ROOT / name)
    (folder / '.venv').mkdir()
    for name in ('bin', 'lib', 'pyvenv.cfg'):
        if (Path(sys.prefix) / name).exists():
            (folder / '.venv' / name).symlink_to(Path(sys.prefix) / name)
    (folder / '.venv/.ready').touch()  # `make -o` takes it for up to date, so nothing is installed
    (folder / 'tiny.yaml').write_text('extends: demo\n' + ''.join(f'{k}: {v}\n' for k, v in (TINY | {'phases': SCENES}).items()))
    left, right, _ = skimage.data.stereo_motorcycle()
    for name, picture in (('first', left), ('second', right)):
        cv2.imwrite(str(folder / f'{name}.png'), picture[200:264, 300:396, ::-1])
    for name in ('clip.mp4', 'holiday.mp4'):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 64))
        for n in range(3):
            writer.write(np.ascontiguousarray(left[200:264, 300 + 2 * n:396 + 2 * n, ::-1]))
        writer.release()
    return folder


@pytest.fixture
def environment(tmp_path):
    return os.environ | {'UNSAMFLOW_DATA': str(tmp_path / 'none'), 'OMP_NUM_THREADS': '1', 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}


@pytest.mark.parametrize('command', [pytest.param(c, id=f'{c} -> {h.said if (h := how(c)) else "nothing says how"}') for c in commands()])
def test_command(command, checkout, environment):
    found = how(command)
    assert found, f'README.md: nothing in HOW says how to execute {command!r}'
    line = found.change(recipe(command, checkout, environment))
    done = subprocess.run(['bash', '-c', line], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    assert 'Traceback' not in done.stderr
    assert not [name for name in found.leaves if not (checkout / name).is_file()]


@pytest.mark.parametrize('block', blocks('python'))
def test_python(block, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    found = {}
    exec(compile(block, 'README.md', 'exec'), found)
    if 'flow' in found:
        assert found['flow'].shape == (2, 64, 96) and np.isfinite(found['flow']).all()


def test_predictions_are_where_the_readme_says(checkout, environment):
    "The comment behind the first prediction names its files."
    line = next(line for block in blocks('sh') for line in block.splitlines() if 'predict first.png second.png' in line)
    names = re.findall(r'[\w/]+\.(?:flo|png)', line.partition('#')[2])
    if not all((checkout / name).is_file() for name in names):  # this test was chosen alone
        subprocess.run(line, shell=True, cwd=checkout, env=environment, check=True, capture_output=True)
    assert names and all((checkout / name).is_file() for name in names)


def test_readme_shows_commands():
    "An empty list of commands would pass everything above."
    assert {'make demo', 'make test'} <= set(commands()) and any('unsamflow predict' in c for c in commands()) and blocks('python')


def test_linked_files_are_there():
    targets = re.findall(r'\]\(([^)#]+)\)', FENCE.sub('', (ROOT / 'README.md').read_text()))
    missing = [t for t in targets if '://' not in t and not (ROOT / t).exists()]
    assert targets and not missing


@pytest.mark.parametrize('command', ['make unheard-of', '.venv/bin/unsamflow nonsense x'])
def test_a_new_command_needs_a_line(command):
    assert how(command) is None
