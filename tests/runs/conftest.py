import pytest
import torch


@pytest.fixture(autouse=True)
def _same_threads():
    """A run in this process may fix the number of threads; the next test gets it back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
