"""What the tests of several papers' claims share."""

import shlex

import pytest

import segkit.train


class Accepted(Exception):
    """Raised in place of training; its argument is the recipe."""


@pytest.fixture(scope="package")
def recipes_of():
    """Call it with claims that promise a training command, and perhaps a recipe that all of them name.

    Returns claim id to the recipe that its command would follow, as the command itself understands it.
    """

    def accept(chosen, *, data_dir, **_):
        assert data_dir == "DIR"
        raise Accepted(chosen)

    def read(claims, *named):
        start = ["python", "-m", "segkit.train", *named]
        taken, known = {}, {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segkit.train, "train", accept)
            for claim in claims:
                words = shlex.split(claim.command)
                assert words[: len(start)] == start, claim.id
                if claim.command not in known:
                    with pytest.raises(Accepted) as caught:
                        pytest.fail(f"{claim.command}: exit status {segkit.train.main(words[3:])}")
                    known[claim.command] = caught.value.args[0]
                taken[claim.id] = known[claim.command]
        return taken

    return read
