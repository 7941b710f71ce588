"Install celp_nb; every value lives in settings.ini, which nbdev reads too."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
# An index shows the README without the repository: its pictures go, of its links the words stay.
readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", readme)
readme = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", readme)
extras = ("coco", "sbd", "notebooks", "explore", "tensorboard", "dev")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=cfg["author"],
    url=cfg["git_url"] or None,  # appears when the address is set
    keywords=cfg["keywords"],
    packages=find_packages(include=["celp_nb", "celp_nb.*"]),
    package_data={"celp_nb": cfg["package_data_files"].split()},
    include_package_data=False,  # the patterns above, and no more
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in extras},
    entry_points={
        "console_scripts": cfg["console_scripts"].split("\n"),
        "nbdev": ["celp_nb=celp_nb._modidx:d"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
