"Experiments: the three guards, run folders, sweeps over executors, and a run from parameters to table."
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from unsamflow import experiments
from unsamflow.experiments import TABLES, TEMPLATES, ablation, app, fill_table, find_template, is_finished, read_metric, read_table_spec, run, sweep, table, template_parameters, write_json, write_table

KERNEL = {'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}}


@pytest.fixture
def template(tmp_path):
    "A template that fails until a file `allowed` lies in its run folder, and counts its executions."
    cells = [
        "number: int = 2\nnames: list[str] = []\nfolder: str = ''",
        "from pathlib import Path\nimport json\nfolder = Path(folder)\nwith open(folder / 'executions', 'a') as f: f.write('x')",
        "assert number != 13 or (folder / 'allowed').exists(), 'unlucky'\n(folder / 'metrics.json').write_text(json.dumps({'scenes': {'epe': number ** 2}}))"]
    book = new_notebook(cells=[new_code_cell(c) for c in cells], metadata=KERNEL)
    book.cells[0].metadata['tags'] = ['parameters']
    nbformat.write(book, tmp_path / 'template.ipynb')
    return tmp_path / 'template.ipynb'


def test_a_failed_run_keeps_its_notebook_and_can_be_run_again(template, tmp_path):
    folder = tmp_path / 'run'
    with pytest.raises(RuntimeError, match=r'notebook.ipynb: cell .* failed: AssertionError: unlucky'):
        run(template, {'number': 13}, folder, progress=False)
    assert not is_finished(folder) and 'unlucky' in (folder / 'notebook.ipynb').read_text()
    (folder / 'allowed').touch()
    run(template, {'number': 13}, folder, progress=False)
    run(template, {'number': 13}, folder, progress=False)  # finished: not executed again
    assert (folder / 'executions').read_text() == 'xx'
    assert json.loads((folder / 'params.json').read_text()) == {'template': 'template', 'number': 13, 'names': []}
    assert {'commit', 'torch', 'device'} <= json.loads((folder / 'environment.json').read_text()).keys()


def test_a_folder_knows_its_run_by_all_parameters(template, tmp_path):
    folder = run(template, {}, tmp_path / 'run', progress=False)
    run(template, {'number': 2}, folder, progress=False)  # the default, said aloud
    with pytest.raises(ValueError, match=r'holds another run \(number: 2 there, 3 now\)'):
        run(template, {'number': 3}, folder, progress=False)
    run(template, {'number': 3}, folder, progress=False, again=True)
    assert json.loads((folder / 'params.json').read_text())['number'] == 3 and (folder / 'executions').read_text() == 'xx'
    (folder / 'checkpoint.pt').touch()
    with pytest.raises(ValueError, match=r'holds another run \(number: 3 there, 2 now\)'):
        run(template, {}, folder, progress=False, again=True)
    assert is_finished(folder)
    (folder / 'params.json').write_text(json.dumps({'template': 'template'}))  # what was not recorded had its default
    run(template, {}, folder, progress=False)
    assert (folder / 'executions').read_text() == 'xx'


def test_one_process_at_a_time_in_a_folder(template, tmp_path):
    with FileLock(tmp_path / 'run/.lock'), pytest.raises(RuntimeError, match='run: another process is executing this run'):
        run(template, {'number': 2}, tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run/params.json').exists()
    assert is_finished(run(template, {'number': 2}, tmp_path / 'run', progress=False))


def test_a_failure_after_the_metrics_is_not_a_finished_run(template, tmp_path):
    book = nbformat.read(template, 4)
    book.cells.append(new_code_cell("raise OSError('no picture')"))
    nbformat.write(book, template)
    with pytest.raises(RuntimeError, match='no picture'):
        run(template, {}, tmp_path / 'run', progress=False)
    assert not is_finished(tmp_path / 'run')


def test_relative_parameters_mean_what_they_mean_in_the_shell(template, tmp_path, monkeypatch):
    book = nbformat.read(template, 4)
    book.cells.insert(1, new_code_cell("from pathlib import Path\nPath('here').touch()"))
    nbformat.write(book, template)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    run(template, {}, 'run', progress=False)
    assert sorted(p.name for p in (tmp_path / 'elsewhere').iterdir()) == ['here', 'run'] and is_finished('run')


@pytest.mark.parametrize('params, words', [({'nunber': 3}, "unknown parameter 'nunber'"), ({'number': '3'}, "'number': expected <class 'int'>, found '3'"), ({'number': 2.5}, 'number'), ({'names': 'abc'}, 'names')])
def test_bad_parameters_run_nothing(template, tmp_path, params, words):
    with pytest.raises(ValueError, match=words.replace('(', r'\(')):
        run(template, params, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_lost_tag_is_an_error(template, tmp_path):
    book = nbformat.read(template, 4)
    del book.cells[0].metadata['tags']
    nbformat.write(book, template)
    with pytest.raises(ValueError, match="expected one cell tagged 'parameters', found 0"):
        run(template, {'number': 3}, tmp_path / 'run')


def test_sweep_over_threads(template, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        folders = sweep(template, {f'n{n}': {'number': n} for n in (3, 4)}, tmp_path / 'sweep', pool)
    assert [read_metric(f, 'scenes/epe') for f in folders.values()] == [9, 16]


def test_sweep_refuses_bad_parameters_before_running_any(template, tmp_path):
    with pytest.raises(ValueError, match='unknown parameter'):
        sweep(template, {'good': {'number': 3}, 'bad': {'x': 1}}, tmp_path / 'sweep')
    assert not (tmp_path / 'sweep').exists()


def test_unwritable_results_are_named(template, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        run(template, {}, tmp_path / 'file' / 'run')


def test_table_says_what_was_not_run(tmp_path):
    frame = table({'ours': [tmp_path / 'absent']}, {'EPE': 'scenes/epe'}, {('ours', 'EPE'): 2.0})
    assert frame['measured'].isna().all() and frame['seeds'].tolist() == [0] and frame['runs'].tolist() == ['']


def test_table_keeps_its_digits(tmp_path):
    frame = table({'ours': [{'epe': 2.1}], 'DIS': [{'epe': 3}]}, {'EPE': 'epe'}, {('ours', 'EPE'): 2.0})
    text = write_table(frame, tmp_path / 'table')
    assert '| 2.10 (paper 2.00, +0.10) |' in text and ' 3.00 |' in text


@pytest.mark.parametrize('name', sorted(p.stem for p in TABLES.glob('*.yaml')))
def test_every_table_finds_its_published_figures(name, tmp_path):
    spec = read_table_spec(name)
    frame = fill_table(spec, tmp_path)
    assert len(frame) == len(spec.rows) * len(spec.columns) and frame['measured'].isna().all()
    assert frame['published'].notna().sum() > 0 or not spec.published


def test_the_tables_template_makes_every_table():
    assert sorted(template_parameters('tables')['tables'][1]) == sorted(p.stem for p in TABLES.glob('*.yaml'))


def test_a_mistyped_table_is_one_line_that_names_the_key(tmp_path):
    (tmp_path / 'mine.yaml').write_text('title: mine\ncolumns: {EPE: {metrik: scenes/epe}}\nrows: {}\n')
    with pytest.raises(ValueError, match='mine.yaml: .*columns.EPE.metrik') as error:
        read_table_spec(tmp_path / 'mine.yaml')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', sorted(p.stem for p in TEMPLATES.glob('*.ipynb')))
def test_every_template_has_typed_parameters(name):
    assert 'folder' in template_parameters(name)
    code = [c for c in nbformat.read(find_template(name), 4).cells if c.cell_type == 'code']
    assert 'parameters' in code[0].metadata['tags'] and not any(c.outputs for c in code)


@pytest.mark.timeout(300)
def test_train_and_evaluate_end_to_end(tiny, tmp_path):
    overrides = tiny | {'steps': 4, 'cache': str(tmp_path / 'cache')}
    params = {'preset': 'demo', 'overrides': overrides, 'validation_scenes': 2, 'validate_every': 2}
    with pytest.raises(RuntimeError, match='left at step 1 of 4'):
        run('train', params | {'minutes': 1e-6}, tmp_path / 'train', progress=False)
    trained = run('train', params, tmp_path / 'train', progress=False)  # goes on where it was
    assert [json.loads(line)['step'] for line in (trained / 'log.jsonl').read_text().splitlines()] == [1, 2, 3, 4]
    metrics = json.loads((trained / 'metrics.json').read_text())
    assert metrics['steps'] == 4 and metrics['validation']['validation_epe'] > 0
    datasets = {'scenes': {'name': 'scenes', 'options': {'count': 2, 'height': 64, 'width': 96}}}
    done = run('evaluate', {'weights': str(trained / 'weights.safetensors'), 'datasets': datasets, 'methods': ['zero flow', 'DIS', 'ours'], 'pictures': 1}, tmp_path / 'evaluate', progress=False)
    assert read_metric(done, 'scenes/ours/epe') > 0 and read_metric(done, 'scenes/zero flow/epe') > 0
    assert 'not measured' not in (done / 'table.md').read_text()
    assert {'table.csv', 'table.md', 'samples.csv', 'flow.jpg', 'notebook.ipynb'} <= {p.name for p in done.iterdir()}
    assert not any(o.get('output_type') == 'error' for c in nbformat.read(done / 'notebook.ipynb', 4).cells for o in c.get('outputs', []))


@pytest.mark.timeout(1800)
def test_ablation_from_one_baseline_goes_on_where_it_was_and_fills_the_tables(tiny, tmp_path):
    options = {
        'overrides': tiny | {'steps': 4, 'augmentation.pasted_objects': 1, 'augmentation.cache_size': 2, 'cache': str(tmp_path / 'cache')}, 'progress': False,
        'evaluation': {'pictures': 0, 'methods': ['ours'], 'datasets': {'held-out scenes': {'name': 'scenes', 'options': {'count': 2, 'height': 64, 'width': 96}}}}}
    results = tmp_path / 'results'
    ablation('demo', [0], [], results, **options)
    before = (results / 'demo/seed-0/metrics.json').stat().st_mtime_ns
    found = ablation('demo', [0], ['aug-hg', 'aug-hg-mf'], results, **options)
    assert list(found) == ['demo/seed-0', 'demo-aug-hg/seed-0', 'demo-aug-hg-mf/seed-0']
    assert (results / 'demo/seed-0/metrics.json').stat().st_mtime_ns == before  # a finished run is left alone
    assert [json.loads(line)['step'] for line in (results / 'demo-aug-hg/seed-0/log.jsonl').read_text().splitlines()] == [4]  # the baseline's three steps are not repeated
    frame = fill_table(read_table_spec('table-1'), results, preset='demo').set_index(['row', 'column'])
    cells = frame.xs('scenes EPE', level='column')
    assert cells['measured'].notna().tolist() == [True, False, True, True] and cells['runs']['+aug +hg'] == f'{results}/demo-aug-hg/seed-0/evaluate'


@pytest.mark.parametrize('argument, words', [('sed=1', "unknown parameter 'sed'"), ('seed', 'expected name=value'), ('overrides={steps: [1', 'expected name=value with a value in yaml')])
def test_command_line_reports_one_line(tmp_path, argument, words):
    result = CliRunner().invoke(app, ['run', 'train', 'preset=demo', argument, '--folder', str(tmp_path / 'x')])
    assert result.exit_code == 1 and words in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'x').exists()


def test_homographies_know_more_than_the_flow(tmp_path):
    "With the shipped weights, on scenes of planar parts."
    metrics = json.loads((run('regions', {'weights': {'ours': 'baseline'}, 'scenes': {'count': 4, 'offset': 2000000, 'height': 128, 'width': 192, 'background_mask': True}}, tmp_path / 'regions', progress=False) / 'metrics.json').read_text())['ours']
    assert metrics['EPE occluded refined'] < metrics['EPE occluded'] and 0 < metrics['regions accepted'] < 1
    assert 0 < metrics['occluded in accepted regions'] <= 1 and 0 < metrics['occlusion found'] <= 1
    text = (tmp_path / 'regions/regions.md').read_text()
    assert f"{metrics['EPE occluded refined']:.3f}" in text


def test_a_baseline_whose_branch_was_lost_is_trained_again(tmp_path, monkeypatch):
    "A clone has the records of finished runs, and not their checkpoints."
    asked = {}
    monkeypatch.setattr(experiments, 'train_and_evaluate', lambda params, folder, evaluation, progress, again: asked.setdefault(Path(folder).relative_to(tmp_path).as_posix(), again))
    for name in ('demo/seed-0', 'demo/seed-1', 'demo/seed-2', 'demo-hg/seed-2'):
        (tmp_path / name).mkdir(parents=True)
        write_json(tmp_path / name / 'metrics.json', {})
    (tmp_path / 'demo/seed-1/branch.pt').touch()
    experiments.ablation('demo', seeds=(0, 1, 2), variants=('hg',), results=tmp_path)
    assert asked == {'demo/seed-0': True, 'demo/seed-1': False, 'demo/seed-2': False, 'demo-hg/seed-0': False, 'demo-hg/seed-1': False, 'demo-hg/seed-2': False}
