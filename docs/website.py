"""The site: sources gathered in docs/_build/source, pages in docs/_build/html. `python docs/website.py [build folder]` (make docs).

The sources mirror the repository, so a link between two files becomes a link between two pages. Nothing is executed.
"""
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from pages import ROOT, readme, visible
from sphinx.cmd.build import build_main

BUILD = ROOT / 'docs/_build'
PICTURES = ('.png', '.jpg', '.svg')
FILES = (*PICTURES, '.pdf', '.json', '.jsonl', '.csv', '.yaml')  # of a run, offered for download
WRITTEN = ('docs/paper.md', 'docs/decisions.md', 'docs/cluster.md', 'data/weights/README.md', 'data/paper/README.md')  # pages as they are
EXPORT = re.compile(r'^#\s*\|\s*export', re.MULTILINE)


def notebooks() -> list[Path]:
    "The components in reading order."
    return sorted((ROOT / 'nbs').glob('[0-9][0-9]_*.ipynb'))


def templates() -> list[Path]:
    "The experiments, not yet executed."
    return sorted((ROOT / 'nbs/experiments').glob('*.ipynb'))


def runs() -> list[Path]:
    "Folders of finished runs (metrics are written last)."
    return sorted(p.parent for p in (ROOT / 'results').rglob('notebook.ipynb') if (p.parent / 'metrics.json').is_file())


def module_of(notebook: Path) -> str | None:
    "The module that a notebook exports; None when it exports none."
    sources = (cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == 'code')
    found = (re.search(r'^#\s*\|\s*default_exp\s+(\w+)', source, re.MULTILINE) for source in sources)
    return next((match[1] for match in found if match), None)


def modules() -> dict[Path, str]:
    "The notebooks that export a module, and the module's name."
    return {path: name for path in notebooks() if (name := module_of(path))}


def title_of(notebook: Path) -> str:
    "The text of its first heading."
    return nbformat.read(notebook, as_version=4).cells[0].source.splitlines()[0].lstrip('# ')


def run_name(folder: Path) -> str:
    "results/scenes/seed-0/evaluate -> scenes/seed-0/evaluate"
    return folder.relative_to(ROOT / 'results').as_posix()


def load(path: Path) -> dict:
    "A json file; empty when it is absent."
    return json.loads(path.read_text()) if path.is_file() else {}


def template_of(folder: Path) -> str:
    "What a run has executed."
    return load(folder / 'params.json').get('template', '')


def tidy_cell(cell: nbformat.NotebookNode) -> None:
    "Anchors as Sphinx spells them; headings in outputs become bold lines, so that they do not join the page's own; library cells are marked."
    if cell.cell_type == 'markdown':
        cell.source = re.sub(r'(\]\([^)\s]*#)([^)]+)\)', lambda m: m[1] + m[2].lower() + ')', cell.source)
    elif EXPORT.search(cell.source):
        cell.metadata['tags'] = [*cell.metadata.get('tags', []), 'exported']
    for output in cell.get('outputs', []):
        if 'text/markdown' in output.get('data', {}):
            output.data['text/markdown'] = re.sub(r'^#+ +(.*)$', r'**\1**', ''.join(output.data['text/markdown']), flags=re.MULTILINE)


def is_bar(output: dict | None) -> bool:
    "Whether an output is a state of a progress bar."
    return output is not None and output.output_type == 'stream' and output.name == 'stderr' and bool(re.search(r'\d+%\||\d+(it|s/it|it/s)\b', ''.join(output.text)))


def last_states(outputs: list) -> list:
    "Outputs without the earlier states of progress bars, which papermill stores one by one."
    shown = [o for o in outputs if o.output_type != 'stream' or ''.join(o.text).strip()]
    return [o for o, after in zip(shown, [*shown[1:], None]) if not (is_bar(o) and is_bar(after))]


def read_page(path: Path) -> nbformat.NotebookNode:
    "A notebook as a page: tidied, progress bars at their last state."
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        tidy_cell(cell)
        if cell.cell_type == 'code':
            cell.outputs = last_states(cell.outputs)
    return visible(CoalesceStreamsPreprocessor().preprocess(notebook, {})[0])


def add_below_title(page: nbformat.NotebookNode, text: str) -> None:
    "Puts a paragraph below title and subtitle."
    page.cells.insert(1, nbformat.v4.new_markdown_cell(text))


def write_page(page: nbformat.NotebookNode, path: Path) -> None:
    "Stores a page as a notebook."
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, path)


def write_text(text: str, path: Path) -> None:
    "Stores a page as markdown."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def toctree(caption: str, *entries: str) -> str:
    "A group of the table of contents."
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *entries, '```', ''])


def stage_notebooks(source: Path) -> None:
    "A page for each component, with the way to its reference."
    for path in notebooks():
        page, name = read_page(path), module_of(path)
        if name:
            add_below_title(page, f'Defines [`unsamflow.{name}`](../api/{name}.md). Code with a bar at its left is exported into the library; the rest shows that it does what it should.')
        write_page(page, source / path.relative_to(ROOT))


def stage_reference(source: Path) -> None:
    "A page for each module, written by autodoc."
    for path, name in modules().items():
        text = f'# unsamflow.{name}\n\nThe notebook [{path.stem}](../{path.relative_to(ROOT)}) explains and defines what is listed here.\n\n'
        write_text(text + f'```{{eval-rst}}\n.. automodule:: unsamflow.{name}\n   :members:\n   :undoc-members:\n```\n', source / f'api/{name}.md')
    rows = [f'- [unsamflow.{name}]({name}.md)' for name in modules().values()]
    text = '# Reference\n\nEvery public name, from the docstrings and the comments beside the parameters.\n\n'
    write_text(text + '\n'.join(rows) + '\n\n' + toctree('Modules', *modules().values()), source / 'api/index.md')


def stage_templates(source: Path) -> None:
    "The experiments before they are executed, each with the runs that it has made."
    for path in templates():
        made = [folder for folder in runs() if template_of(folder) == path.stem]
        links = ', '.join(f'[{run_name(folder)}](../../{folder.relative_to(ROOT)}/notebook.ipynb)' for folder in made) or 'none yet'
        page = read_page(path)
        add_below_title(page, f'The template, not executed. `unsamflow run {path.stem} NAME=VALUE ... --folder FOLDER` executes it. Runs: {links}.')
        write_page(page, source / path.relative_to(ROOT))


def downloads(folder: Path) -> str:
    "A folder's files, to be fetched from its page."
    return ', '.join(f'{{download}}`{p.name} <{p.name}>`' for p in sorted(folder.iterdir()) if p.suffix in FILES)


def copy_files(folder: Path, target: Path) -> None:
    "Puts a folder's files beside its page."
    for path in folder.iterdir():
        if path.suffix in FILES:
            shutil.copy(path, target)


def record(folder: Path) -> str:
    "What it was made from, where it ran and what it left, as markdown."
    where = load(folder / 'environment.json')
    rows = {'template': template_of(folder), 'commit': where.get('commit', '')[:7] + (' with uncommitted changes' if where.get('uncommitted_changes') else '')}
    rows |= {'device': where.get('device', ''), 'Python, torch': f"{where.get('python', '')}, {where.get('torch', '')}"}
    rows |= {'files': downloads(folder)}
    return '\n'.join(['| this run | |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in rows.items())])


def stage_runs(source: Path) -> None:
    "The executed experiments, with their files."
    for folder in runs():
        page, target = read_page(folder / 'notebook.ipynb'), source / folder.relative_to(ROOT)
        if run_name(folder).lower() != title_of(folder / 'notebook.ipynb').lower():
            page.cells[0].source = re.sub(r'^# .*', lambda m: f'{m[0]}: {run_name(folder)}', page.cells[0].source)
        add_below_title(page, record(folder))
        write_page(page, target / 'notebook.ipynb')
        copy_files(folder, target)


def loose_results() -> list[Path]:
    "Folders of tables and figures that no run has left (a run has parameters; an unfinished one has no page)."
    folders = {p.parent for p in (ROOT / 'results').rglob('*') if p.suffix in (*PICTURES, '.md')}
    return sorted(f for f in folders - {ROOT / 'results'} if not (f / 'params.json').is_file())


def stage_loose_results(source: Path) -> list[str]:
    "Their pages; returns the names."
    for folder in loose_results():
        files, target = sorted(folder.iterdir()), source / folder.relative_to(ROOT)
        parts = [f'# {run_name(folder)}', *(re.sub('^#', '##', p.read_text(), flags=re.MULTILINE) for p in files if p.suffix == '.md')]
        parts += [f'![{p.stem}]({p.name})' for p in files if p.suffix in PICTURES]
        write_text('\n\n'.join(parts) + f'\n\nFiles: {downloads(folder)}\n', target / 'index.md')
        copy_files(folder, target)
    return [f'{run_name(folder)}/index' for folder in loose_results()]


def stage_results(source: Path) -> None:
    "All runs, and their overview."
    stage_runs(source)
    loose = stage_loose_results(source)
    rows = ['| run | template | commit | device |', '| --- | --- | --- | --- |']
    for folder in runs():
        where, name = load(folder / 'environment.json'), run_name(folder)
        rows.append(f"| [{name}]({name}/notebook.ipynb) | {template_of(folder)} | {where.get('commit', '')[:7]} | {where.get('device', '')} |")
    rows += [f'| [{name.removesuffix("/index")}]({name}.md) | | | |' for name in loose]
    text = (ROOT / 'results/README.md').read_text() + '\n' + '\n'.join(rows) + '\n\n'
    entries = [f'{run_name(folder)} <{run_name(folder)}/notebook>' for folder in runs()] + loose
    write_text(text + toctree('Runs', *entries), source / 'results/README.md')


def stage_interactive(source: Path, extra: Path) -> list[str]:
    "The interactive page: files copied as they are, within a frame; returns its toctree entry, if it is there."
    if not (ROOT / 'docs/interactive/index.html').is_file():
        return []
    shutil.copytree(ROOT / 'docs/interactive', extra / 'docs/interactive', ignore=shutil.ignore_patterns('*.py', '*.md', '__pycache__'))
    shutil.copy(ROOT / 'docs/interactive.md', source / 'docs/interactive.md')
    return ['docs/interactive']


def stage(source: Path, extra: Path) -> None:
    "Gathers all pages."
    for folder in (source, extra):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for name in WRITTEN:
        write_text((ROOT / name).read_text(), source / name)
    for step in (stage_notebooks, stage_reference, stage_templates, stage_results):
        step(source)
    interactive = stage_interactive(source, extra)
    for picture in re.findall(r'!\[[^\]]*\]\(([^)]+)\)', readme()):
        (source / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / picture, source / picture)
    contents = [
        toctree('The method, notebook by notebook', *(f'nbs/{p.stem}' for p in notebooks()), *interactive),
        toctree('The paper', 'docs/paper', 'docs/decisions', 'Published figures <data/paper/README>'),
        toctree('Experiments', 'results/README', *(f'nbs/experiments/{p.stem}' for p in templates())),
        toctree('Use', 'Shipped weights <data/weights/README>', 'docs/cluster', 'api/index')]
    write_text(readme() + '\n' + '\n'.join(contents), source / 'index.md')


def build(folder: Path = BUILD) -> int:
    "Gathers and builds; the exit code of Sphinx, which fails on any warning."
    stage(folder / 'source', folder / 'extra')
    shutil.rmtree(folder / 'html', ignore_errors=True)  # pages of what is gone
    options = [f'--define=html_extra_path={folder / "extra"}', '--conf-dir', str(ROOT / 'docs'), '--fail-on-warning', '--keep-going', '--quiet', '--fresh-env']
    return build_main([*options, '--jobs=2', str(folder / 'source'), str(folder / 'html')])


if __name__ == '__main__':
    target = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else BUILD
    sys.exit(build(target) or print(f'{target / "html/index.html"}'))
