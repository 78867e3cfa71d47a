"""The notebooks as pages: hidden cells and nbdev's directive lines taken out, the source kept.

`python docs/pages.py readme` writes README.md from nbs/index.ipynb.
"""
import copy
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
DIRECTIVE = re.compile(r'^#\s*\|.*\n?', re.MULTILINE)
SILENT = re.compile(r'^#\s*\|\s*echo:\s*false\b', re.MULTILINE)
HIDDEN = re.compile(r'^#\s*\|\s*(hide|default_exp)\b', re.MULTILINE)


def shown(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A cell marked 'echo: false' becomes the markdown that it displays."
    if cell.cell_type != 'code' or not SILENT.search(cell.source):
        return cell
    text = [''.join(o.data['text/markdown']) for o in cell.outputs if 'text/markdown' in o.get('data', {})]
    return nbformat.v4.new_markdown_cell('\n\n'.join(text))


def visible(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A copy without hidden cells and without directive lines."
    page = copy.deepcopy(notebook)
    page.cells = [shown(cell) for cell in page.cells if not (cell.cell_type == 'code' and HIDDEN.search(cell.source))]
    for cell in page.cells:
        if cell.cell_type == 'code':
            cell.source = DIRECTIVE.sub('', cell.source)
    return page


def readme() -> str:
    "README.md's text."
    page = visible(nbformat.read(ROOT / 'nbs/index.ipynb', as_version=4))
    text, _ = MarkdownExporter().from_notebook_node(page)
    text = re.sub(r'\]\((?=\d\d_\w+\.ipynb)', '](nbs/', text).replace('](../', '](')  # links: from nbs/ to the root
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
    if sys.argv[1:] != ['readme']:
        sys.exit(__doc__)
    (ROOT / 'README.md').write_text(readme())
