"""Looks over the built site: `python docs/inspect_site.py [html folder] [--browser] [--pictures FOLDER] [--only TEXT]`.

From the files: broken links and anchors, missing pictures, anything fetched from the network, formulas and tables left as source. With --browser, in
headless Chromium at desktop and phone width: pages wider than the window, pictures and formulas that were not drawn, errors on the console.
"""
import re
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

from bs4 import BeautifulSoup

HTML = Path(__file__).parent / '_build/html'
WIDTHS = {'desktop': (1280, 900), 'phone': (390, 844)}
SOURCE = re.compile(r'\$\$|\\\(|\\\[|\\(frac|mathbf|sum|begin)\b|\$[^$\n]*[\\^_{][^$\n]*\$')  # TeX that nothing has drawn
MEASURE = """() => ({
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    outside: [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('pre, .table-wrapper, .output, .math, mjx-container, svg, mjx-assistive-mml'))
        .slice(0, 3).map(e => e.tagName + '.' + e.className),
    pictures: [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src),
    formulas: [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).map(e => e.textContent.slice(0, 60)),
    errors: [...document.querySelectorAll('[data-mml-node="merror"], mjx-merror')].map(e => e.textContent.slice(0, 60)),
})"""


def pages(html: Path, only: str = '') -> list[Path]:
    "All pages whose name contains `only`."
    return sorted(p for p in html.rglob('*.html') if '_static' not in p.parts and only in p.relative_to(html).as_posix())


@cache
def parsed(page: Path) -> BeautifulSoup:
    "A page's tree."
    return BeautifulSoup(page.read_text(), 'html.parser')


@cache
def anchors(page: Path) -> set[str]:
    "What a link into a page may name."
    return {tag['id'] for tag in parsed(page).find_all(id=True)} | {''}


def broken_links(page: Path) -> Iterator[str]:
    "Links, pictures, scripts and style sheets that lead nowhere, or to the network where they would be fetched."
    for tag in parsed(page).find_all(['a', 'img', 'script', 'link', 'iframe', 'source']):
        address = tag.get('href') if tag.name in ('a', 'link') else tag.get('src')
        parts = urlparse(address or '')
        if parts.scheme in ('http', 'https'):
            if tag.name != 'a':
                yield f'fetches {address}'
        elif address and parts.scheme in ('', 'file'):
            path, fragment = urldefrag(address)
            target = (page.parent / unquote(path).split('?')[0]).resolve() if path else page
            if not target.is_file():
                yield f'leads nowhere: {address}'
            elif target.suffix == '.html' and unquote(fragment) not in anchors(target):
                yield f'no such anchor: {address}'


def formulas_left(page: Path) -> Iterator[str]:
    "TeX in the text that is not marked as a formula."
    article = parsed(page).find('article')
    for text in article.find_all(string=SOURCE) if article else ():
        if not text.find_parent(['code', 'pre', 'script', 'style']) and not text.find_parent(class_='math'):
            yield f'formula left as source: {text.strip()[:60]}'


def tables_left(page: Path) -> Iterator[str]:
    "Markdown tables in the text that have stayed text."
    for paragraph in parsed(page).select('article p'):
        if re.search(r'\|\s*:?[-\u2013\u2014]{2,}', paragraph.get_text()):
            yield f'table left as source: {paragraph.get_text()[:60]!r}'


def check_files(html: Path, only: str = '') -> list[str]:
    "Everything that can be said without a browser."
    return [f'{page.relative_to(html)}: {problem}' for page in pages(html, only) for check in (broken_links, formulas_left, tables_left) for problem in check(page)]


def look(tab) -> Iterator[str]:
    "What is wrong with the page as it is drawn now."
    found = tab.evaluate(MEASURE)
    if found['wide'] > 0 or found['outside']:
        yield f"wider than the window by {found['wide']} px: {found['outside']}"
    for kind in ('pictures', 'formulas', 'errors'):
        yield from (f'{kind}: {what}' for what in found[kind])


def visit(tab, page: Path, name: str, pictures: Path | None) -> Iterator[str]:
    "Opens a page and looks at it at every width; with a folder, takes its picture in both colour schemes."
    tab.goto(page.as_uri())
    tab.evaluate('() => window.MathJax?.startup?.promise.then(() => 0)')  # until every formula is drawn
    for width in WIDTHS:
        tab.set_viewport_size(dict(zip(('width', 'height'), WIDTHS[width])))
        yield from (f'{name} ({width}): {problem}' for problem in look(tab))
        for scheme in ('light', 'dark') if pictures else ():
            tab.emulate_media(color_scheme=scheme)
            tab.screenshot(path=pictures / f'{name.removesuffix(".html").replace("/", "-")}-{width}-{scheme}.png', full_page=True)


def find_browser() -> str:
    "The browser's program. Raises FileNotFoundError."
    for name in ('chromium', 'chromium-browser', 'google-chrome'):
        if program := shutil.which(name):
            return program
    raise FileNotFoundError('no Chromium found (on Debian: apt-get install chromium)')


def browse(html: Path, pictures: Path | None = None, only: str = '') -> list[str]:
    "The pages in headless Chromium. Raises FileNotFoundError without a browser, ImportError without playwright."
    from playwright.sync_api import sync_playwright
    program, problems = find_browser(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=['--no-sandbox'])
        tab = browser.new_page()
        tab.set_default_timeout(120_000)  # ms; a busy machine draws long pages slowly
        tab.on('pageerror', lambda error: problems.append(f'{tab.url}: {error}'))
        tab.on('requestfailed', lambda request: problems.append(f'{tab.url}: not loaded: {request.url}'))
        for page in pages(html, only):
            problems += visit(tab, page, page.relative_to(html).as_posix(), pictures)
        browser.close()
    return problems


def main() -> None:
    "The command line."
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('html', type=Path, nargs='?', default=HTML)
    parser.add_argument('--browser', action='store_true')
    parser.add_argument('--pictures', type=Path, help='folder for a picture of each page')
    parser.add_argument('--only', default='', help='pages whose name contains this')
    asked = parser.parse_args()
    html = asked.html.resolve()
    problems = check_files(html, asked.only) + (browse(html, asked.pictures, asked.only) if asked.browser or asked.pictures else [])
    sys.exit('\n'.join(problems) if problems else print(f'{len(pages(html, asked.only))} pages, nothing found'))


if __name__ == '__main__':
    main()
