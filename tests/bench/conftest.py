"""What the tests of several benchmarks share."""

import pytest
import torch


@pytest.fixture
def assert_refused(monkeypatch, capsys):
    """Call it with a benchmark's main, its arguments and a message: it ends with that, where no GPU is."""

    def check(main, arguments, message):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err

    return check
