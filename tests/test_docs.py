"The site: built from a copy of nothing but the repository, without a network; then its pages are looked over, in a browser where there is one."
import ast
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
sys.path.insert(0, str(DOCS))
pytest.importorskip('myst_nb', reason='the docs extra is not installed')

import inspect_site  # noqa: E402
import website  # noqa: E402

OFFLINE = '''
import socket, sys
from pathlib import Path
def refuse(*_): raise OSError('no network while the site is built')
socket.socket.connect = socket.create_connection = refuse
sys.path.insert(0, sys.argv[1])
import website
sys.exit(website.build(Path(sys.argv[2])))
'''


def digest():
    "What the notebooks and results are before and after."
    files = [p for folder in ('nbs', 'results', 'data') for p in (ROOT / folder).rglob('*') if p.suffix in ('.ipynb', '.md')]
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope='module')
def html(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp('site'), digest()
    built = subprocess.run([sys.executable, '-c', OFFLINE, str(DOCS), str(folder)], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stdout + built.stderr
    assert before.items() <= digest().items()
    return folder / 'html'


def test_links_pictures_and_formulas(html):
    assert inspect_site.check_files(html) == []


def test_every_notebook_and_every_finished_run_has_a_page_and_a_way_to_it(html):
    contents = inspect_site.parsed(html / 'index.html').find(class_='sidebar-tree')
    linked = {a['href'] for a in contents.find_all('a')}
    notebooks = [f'nbs/{p.stem}.html' for p in website.notebooks()]
    assert len(notebooks) > 12 and [a['href'] for a in contents.find_all('a') if a['href'] in notebooks] == notebooks  # in reading order
    for folder in website.runs():
        assert (html / folder.relative_to(ROOT) / 'notebook.html').is_file()
        assert f'{folder.relative_to(ROOT).as_posix()}/notebook.html' in linked
    assert {'docs/paper.html', 'docs/decisions.html', 'docs/cluster.html', 'data/weights/README.html', 'api/index.html'} <= linked


def test_outputs_are_shown_and_directives_are_not(html):
    for path in website.notebooks():
        page = inspect_site.parsed(html / f'nbs/{path.stem}.html')
        text = page.get_text()
        assert not re.search(r'#\s*\| ?(export|hide|default_exp|echo)', text)
        assert bool(page.find(class_='tag_exported')) == bool(website.module_of(path)) and page.find(class_='cell_output')
        assert not re.search(r'nbdev_export|nbdev\.export', text)


def public_names():
    "(module, name) of everything that the library exports."
    for name in website.modules().values():
        tree = ast.parse((ROOT / f'unsamflow/{name}.py').read_text())
        exported = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == '__all__')
        yield from ((name, public) for public in ast.literal_eval(exported))


def test_every_public_name_is_in_the_reference(html):
    missing = [f'{module}.{name}' for module, name in public_names() if f'unsamflow.{module}.{name}' not in inspect_site.anchors(html / f'api/{module}.html')]
    assert missing == []


@pytest.mark.parametrize('module, name, words', [
    ('flow', 'warp', 'pixels, x then y: from frame 1 to frame 2'),  # beside a parameter
    ('flow', 'warp', 'of the type of image, on the pixels of frame 1'),  # beside the result
    ('flow', 'FLO_UNKNOWN', 'more means that the flow is unknown'),  # beside a constant
    ('datasets', 'Frame', 'full segmentation, 0 = background'),  # beside a field of a tuple
    ('training', 'Config', 'optimiser steps, whatever the size of the data set'),  # of a pydantic model
    ('scenes', 'Scenes', 'number of scenes'),  # of a dataclass
])
def test_the_comments_beside_parameters_are_in_the_reference(html, module, name, words):
    entry = inspect_site.parsed(html / f'api/{module}.html').find(id=f'unsamflow.{module}.{name}').parent
    assert words in ' '.join(entry.get_text().split())


def test_the_tests_that_the_decisions_name_exist():
    named = set(re.findall(r'`(test_\w+)`', (DOCS / 'decisions.md').read_text()))
    there = {m for p in (ROOT / 'tests').glob('test_*.py') for m in re.findall(r'^def (test_\w+)', p.read_text(), re.MULTILINE)}
    assert len(named) > 20 and named - there == set()


@pytest.mark.parametrize('body, problem', [
    ('<a href="gone.html">x</a>', 'leads nowhere: gone.html'),
    ('<a href="#gone">x</a>', 'no such anchor: #gone'),
    ('<img src="gone.png">', 'leads nowhere: gone.png'),
    ('<script src="https://example.org/x.js"></script>', 'fetches https://example.org/x.js'),
    ('<p>the loss $\\mathcal L_1$</p>', 'formula left as source'),
    ('<p>a display $$x$$</p>', 'formula left as source'),
    ('<p>| a | b | | :--- | --- | | 1 | 2 |</p>', 'table left as source'),
])
def test_what_is_wrong_is_found(tmp_path, body, problem):
    (tmp_path / 'page.html').write_text(f'<article id="top"><a href="#top">fine</a><code>$x_1$</code>{body}</article>')
    found = inspect_site.check_files(tmp_path)
    assert len(found) == 1 and problem in found[0]


@pytest.fixture(scope='module')
def browser():
    pytest.importorskip('playwright', reason='playwright is not installed: pages were not looked at in a browser')
    try:
        return inspect_site.find_browser()
    except FileNotFoundError as error:
        pytest.skip(f'pages were not looked at in a browser: {error}')


@pytest.mark.timeout(1500)  # a page a second on an idle machine
def test_in_a_browser(html, browser):
    assert inspect_site.browse(html) == []


@pytest.mark.parametrize('body, problem', [
    ('<div style="width: 2000px">x</div>', 'wider than the window'),
    ('<img src="gone.png">', 'pictures'),
    ('<span class="math">x</span>', 'formulas'),
])
def test_what_a_browser_sees_is_found(tmp_path, browser, body, problem):
    (tmp_path / 'page.html').write_text(f'<article>{body}</article>')
    assert any(problem in found for found in inspect_site.browse(tmp_path))
