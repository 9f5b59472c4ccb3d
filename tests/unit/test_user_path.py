"""The user's folder is importable and hides nothing of ours, in an editable install too."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = f"""if True:
    import importlib.machinery, importlib.util, sys

    class Editable:  # what an editable install adds: asked after sys.path
        def find_spec(name, path=None, target=None):
            if name in ("harness", "workloads"):
                file = "{ROOT}/" + name + "/__init__.py"
                places = ["{ROOT}/" + name]
                return importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)

    sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each)] + [Editable]
    sys.path = [each for each in sys.path if each not in ("", "{ROOT}")]
    from harness import user_path
    user_path.extend()
    import mine, mine_in_src, workloads
    print(mine.__file__, mine_in_src.__file__, workloads.__file__)
"""


def test_a_users_package_of_our_name_hides_nothing_in_an_editable_install(tmp_path):
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads/__init__.py").write_text("raise RuntimeError('the user\\'s')")
    (tmp_path / "mine.py").touch()
    (tmp_path / "src").mkdir()
    (tmp_path / "src/mine_in_src.py").touch()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE],
        env={**environment, "OPTBENCH_USER_PATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [tmp_path / "mine.py", tmp_path / "src/mine_in_src.py", ROOT / "workloads/__init__.py"]
    assert done.stdout.split() == list(map(str, found)), done.stderr
