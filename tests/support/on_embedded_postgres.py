"""Runs a shell command with `DATABASE_URL` naming an empty, temporary database."""

import os
import subprocess
import sys

from tests.support.postgres import temporary_server

with temporary_server() as url:
    environment = {**os.environ, "DATABASE_URL": url, "DATABASE_URL_UNPOOLED": url}
    sys.exit(subprocess.run(sys.argv[1], shell=True, check=False, env=environment).returncode)
