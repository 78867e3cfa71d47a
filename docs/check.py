"Fails, naming each file, when the library, the stored notebooks or README.md are not what the notebooks give."
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pages import ROOT, readme

BIN = Path(sys.executable).parent


def differences() -> list[str]:
    "Exports and cleans a copy of the tree and compares."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'results', 'cache', 'masks', 'datasets', '_docs', '_build', '*.egg-info', '__pycache__'))
        for command in ('nbdev-export', 'nbdev-clean'):
            subprocess.run([BIN / command], cwd=copy, check=True)
        paths = [p.relative_to(copy) for pattern in ('unsamflow/*.py', 'nbs/**/*.ipynb') for p in copy.glob(pattern)]
        changed = [p for p in paths if not (ROOT / p).is_file() or (ROOT / p).read_bytes() != (copy / p).read_bytes()]
        gone = [p.relative_to(ROOT) for p in ROOT.glob('unsamflow/*.py') if not (copy / p.relative_to(ROOT)).is_file()]
    stale = [] if (ROOT / 'README.md').read_text() == readme() else [Path('README.md')]
    return [str(p) for p in sorted({*changed, *gone, *stale})]


if found := differences():
    sys.exit('not what the notebooks give (make export mends it):\n  ' + '\n  '.join(found))
print('library, notebooks and README agree')
