"What several test files share: a tiny configuration, and folders of a machine that may or may not have real data."

import pytest

from unsamflow.datasets import setting


def tiny_scenes(count=4):
    "A training phase's data: small rendered scenes."
    return [{'name': 'scenes', 'options': {'count': count, 'height': 64, 'width': 96}}]


@pytest.fixture
def tiny():
    "Overrides that make any preset small enough for a test."
    return {
        'steps': 8, 'batch': 2, 'size': [64, 64], 'workers': 0, 'log_every': 1, 'precision': 'float32', 'augmentation.crop': [64, 64],
        'phases': [{'start': 0.0, 'data': tiny_scenes()}]}


@pytest.fixture
def real_data():
    "The folder of real data sets; the test is skipped where there is none."
    folder = setting('data')
    if not folder.is_dir():
        pytest.skip(f'{folder}: no real data on this machine (settings.ini, or UNSAMFLOW_DATA)')
    return folder
