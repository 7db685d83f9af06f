import pytest

from tests.conftest import serving


def test_a_server_that_exits_at_its_start_fails_the_test_with_its_output(tmp_path):
    with pytest.raises(pytest.fail.Exception) as failed, serving(tmp_path):
        pass
    assert str(failed.value).startswith("the server exited with 1 before it was ready:\nserving: ")
    assert str(tmp_path) in str(failed.value)
