"""Copy configs/ and experiments/*.yaml into wheels; pyproject.toml holds everything else."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigurations(build_py):
    """Add the shipped configurations, which stay at the top level of a checkout, as data of the package."""

    def run(self):
        """Build the modules, then copy the YAML files; an editable installation reads those of the checkout."""
        super().run()
        files = [*Path("configs").rglob("*.yaml"), *Path("experiments").glob("*.yaml")]
        for file in [] if self.editable_mode else files:
            target = Path(self.build_lib, "aim_lightning", "shipped", file)
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithConfigurations})
