"""A host where Docker drops forwarded packets, played in a network namespace of our own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

PLAY = """
from hostd.runtime.firewall import Nft, docker_rules, stale_docker_rules
nft = Nft()
assert nft.docker_chain() is None
nft.run("add table ip filter; add chain ip filter DOCKER-USER")
nft.run("add rule ip filter DOCKER-USER iifname docker0 drop")
nft.run(docker_rules("hd-1234567"))
listed = nft.docker_chain()
print(listed.count("hd-1234567"), listed.index("hd-1234567") < listed.index("docker0"))
nft.run(stale_docker_rules(listed, "hd-1234567"))
left = nft.docker_chain()
print(left.count("hd-1234567"), left.count("docker0"), repr(stale_docker_rules(left, "hd-1234567")))
nft.close()
"""


@pytest.mark.parametrize("library", [True, False])
def test_containers_pass_docker_and_its_rules_stay(library):
    code = PLAY if library else PLAY.replace("nft = Nft()", "nft = Nft(use_library=False)")
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True, timeout=30
    )

    assert done.stderr == ""
    assert done.stdout.split() == ["2", "True", "0", "1", "''"]
