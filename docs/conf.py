"Sphinx configuration; `make docs` (docs/website.py) prepares the sources and calls Sphinx with it."
import ast
import builtins
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from functools import cache

from fastcore.docments import docments
from sphinx.addnodes import pending_xref
from sphinx.pycode import ModuleAnalyzer

import unsamflow

project = 'unsamflow'
copyright = 'the unsamflow developers, Apache-2.0'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.mathjax']
exclude_patterns = ['_build']

html_theme = 'furo'
html_title = 'unsamflow'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = 'friendly', 'github-dark'

mathjax_path = 'mathjax/tex-svg-full.js'
mathjax3_config = {'svg': {'fontCache': 'local'}, 'options': {'enableMenu': False}}

nb_execution_mode = 'off'  # outputs are the stored ones
nb_merge_streams = True
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['dollarmath', 'amsmath', 'deflist', 'colon_fence', 'attrs_inline']
myst_heading_anchors = 4
suppress_warnings = ['mystnb.unknown_mime_type']

default_role = 'py:obj'  # `name` in a docstring: a link where it is one of ours, else code
autodoc_typehints = 'description'
autodoc_inherit_docstrings = False
autodoc_member_order = 'bysource'
add_module_names = False
toc_object_entries_show_parents = 'hide'


def escape(text: str) -> str:
    "Plain text as reStructuredText: what stands outside backticks means itself, and a name in backticks may have a plural s."
    parts = re.split(r'(``.+?``|`[^`]+`)', text)
    plain = (re.sub(r'([*|_\\])', r'\\\1', part) for part in parts[::2])
    return ''.join(before + (name and f'{name}\\ ') for before, name in zip(plain, [*parts[1::2], '']))


def assignments(body: list, prefix: str = ''):
    "(qualified name, statement) of the assignments at the top of a module and of its classes."
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from assignments(node.body, f'{prefix}{node.name}.')
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(name, ast.Name)]
            yield from ((prefix + name.id, node) for name in names)


@cache
def comments(module) -> dict:
    "What stands beside a constant or a field, by qualified name."
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT and t.line.split('#')[0].strip()}
    found = {name: beside.get(node.lineno) or beside.get(node.end_lineno) for name, node in assignments(ast.parse(source).body)}
    return {name: comment for name, comment in found.items() if comment}


@cache
def fields() -> dict:
    "Names of annotated fields by class: what a NamedTuple, a dataclass or a pydantic model is made from."
    found = {}
    for module in modules():
        for name, node in assignments(ast.parse(inspect.getsource(module)).body):
            if '.' in name and isinstance(node, ast.AnnAssign):
                found.setdefault(f'{module.__name__}.{name.rpartition(".")[0]}', []).append(name.rpartition('.')[2])
    return found


def describe_fields(name: str) -> list[str]:
    "Field-list lines of a class that is made from fields."
    module, _, owner = name.rpartition('.')
    beside = comments(importlib.import_module(module))
    return [f":param {field}: {escape(beside.get(f'{owner}.{field}', ''))}" for field in fields()[name]]


def describe_parameters(found) -> list[str]:
    "Field-list lines from the comments beside a signature, in its order."
    described = docments(found, full=True)
    result, parameters = described.pop('return', {}), {name: about for name, about in described.items() if name != 'self'}
    lines = [f":param {name}: {escape(' '.join((about.docment or '').split()))}" for name, about in parameters.items() if about.docment or '_KEYWORD' in str(about.kind)]
    return lines + ([f":returns: {escape(' '.join(result['docment'].split()))}"] if result.get('docment') else [])


def process_docstring(app, what, name, found, options, lines):
    "autodoc's docstrings, escaped, with the comments beside signatures, fields and constants."
    if what in ('data', 'attribute'):
        module = next((m for m in modules() if name.startswith(m.__name__ + '.')), None)
        text = escape(comments(module).get(name.removeprefix(module.__name__ + '.'), '')) if module else ''
        value = repr(found) if isinstance(found, int | float | str | tuple) and len(repr(found)) < 120 else ''
        lines[:] = [text, '', value and f'Value: ``{value}``']
        return
    lines[:] = [escape(line) for line in lines]
    if what == 'class' and name in fields():
        lines += ['', *describe_fields(name)]
    elif what in ('function', 'method', 'class') and inspect.isroutine(found if what != 'class' else found.__init__):
        lines += ['', *describe_parameters(found)]


@cache
def modules() -> tuple:
    "The library's modules."
    return tuple(importlib.import_module(f'unsamflow.{m.name}') for m in pkgutil.iter_modules(unsamflow.__path__) if not m.name.startswith('_'))


def list_constants(app):
    "autodoc passes over a constant without a `#:` comment; here every public one is listed."
    for module in modules():
        analyzer = ModuleAnalyzer.for_module(module.__name__)
        analyzer.analyze()
        constants = {name for name, _ in assignments(ast.parse(inspect.getsource(module)).body)} & set(module.__all__)
        analyzer.attr_docs |= {('', name): [':meta hide-value:'] for name in constants}  # long ones would fill the page


def skip_fields(app, what, name, found, skip, options):
    "Fields stand among the parameters of their class."
    return True if what == 'class' and (name == 'model_config' or any(name in names for names in fields().values())) else None


def keep_builtins(app, doctree):
    "A parameter of type `bytes` is not a link to some class's attribute of that name."
    for node in doctree.findall(pending_xref):
        if hasattr(builtins, node.get('reftarget') or ''):
            node.attributes.pop('refspecific', None)


def setup(app):
    app.connect('autodoc-process-docstring', process_docstring)
    app.connect('builder-inited', list_constants)
    app.connect('autodoc-skip-member', skip_fields)
    app.connect('doctree-read', keep_builtins)
