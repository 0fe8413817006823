"""On PYTHONPATH of the Ray test: in each of its processes LIBERO is the fake one, and the GPU workers are ours."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent.parent.parent))


class _FakeWorkers(MetaPathFinder):
    """Finds `fake_fsdp_workers.py` where upstream imports its FSDP workers, which need CUDA."""

    def find_spec(self, fullname, path, target=None):
        if fullname == "verl.workers.fsdp_workers":
            return importlib.util.spec_from_file_location(fullname, _HERE / "fake_fsdp_workers.py")
        if fullname == "libero":
            from tests.real_verl import fake_libero

            fake_libero.install()
            return importlib.util.spec_from_loader(fullname, _Installed())
        return None


class _Installed:
    """Loads what `install` has put into sys.modules."""

    def create_module(self, spec):
        return sys.modules["libero"]

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, _FakeWorkers())
