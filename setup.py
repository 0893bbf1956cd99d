import importlib.util
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


def load(path):
    """A module of this project as a file: the package's requirements are not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


native = load(HERE / "passl_xcit/ops/build.py")


class BuildNative(build_ext):
    """Builds the native CPU operators, which everything also works without: no compiler is no error."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1]) / native.LIBRARY.name)

    def build_extension(self, ext):
        try:
            native.build(Path(self.get_ext_fullpath(ext.name)).absolute())
        except native.BuildError as error:
            self.warn(f"the native CPU operators were not built: {error}")

    def copy_extensions_to_source(self):
        """For an editable installation."""
        if Path(self.build_lib, self.get_ext_filename(self.extensions[0].name)).is_file():
            super().copy_extensions_to_source()


VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "passl_xcit/__init__.py").read_text()).group(1)
# Folders of a checkout that are installed, too; passl_xcit/utils/shipped.py finds them in either place.
INTO_THE_PACKAGE = {"passl_xcit_tools": "tools", "passl_xcit.configs": "configs", "passl_xcit.weights": "weights"}

NOTEBOOKS = ["nbclient>=0.9", "ipykernel>=6.20"]

setup(
    name="passl_xcit",
    version=VERSION,
    description="XCiT and CrossViT on PaddlePaddle: train, evaluate, convert weights, with PASSL's conventions",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=[*find_packages(include=["passl_xcit", "passl_xcit.*"]), *INTO_THE_PACKAGE],
    package_dir=INTO_THE_PACKAGE,
    package_data={
        "passl_xcit": [
            "datasets/fashion_mnist/*",
            "engine/evaluation_page.html",
            "engine/imagenet_wnids.txt",
            "modeling/zoo.yaml",
            "utils/ascend_kernels.tsv",
            "ops/native/*.h",
            "ops/native/*.cc",
        ],
        "passl_xcit.configs": ["**/*.yaml"],
        "passl_xcit.weights": ["*.pdparams"],
    },
    ext_modules=[Extension("passl_xcit.ops.native.libpassl_xcit", [])] if native.supported() else [],
    cmdclass={"build_ext": BuildNative},
    install_requires=[
        "paddlepaddle>=3.0",
        "numpy>=1.24",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "pillow>=9.5",
        "tqdm>=4.60",
        "visualdl>=2.5.3",
        "protobuf>=3.20.2",
        "matplotlib>=3.7",
        "psutil>=5.9",
        "packaging>=22.0",
        "jinja2>=3.0",
    ],
    extras_require={
        "npu": ["paddle-custom-npu"],
        "export": ["paddle2onnx>=2.1.0", "onnxruntime>=1.20"],
        "openvino": ["openvino>=2025.4"],  # for Python 3.10 on; versions before do not read paddle2onnx's files
        # What tests/peers compares with; MindCV needs an environment of its own (NumPy below 2).
        "peers": ["timm", "mmpretrain==1.2.0", "mmcv-lite", "mmengine", "safetensors"],
        "notebooks": NOTEBOOKS,
        "test": [
            *NOTEBOOKS,
            "pytest>=7.4",
            "paddle2onnx>=2.1.0",
            "onnxruntime>=1.20",
            'openvino>=2025.4; python_version >= "3.10"',
            "hypothesis>=6.80",
            "ruff==0.17.6",
            "setuptools>=62.3",
            "wheel>=0.40",
        ],
    },
    entry_points={
        "console_scripts": [
            "passl-xcit-train = passl_xcit_tools.train:console",
            "passl-xcit-validate = passl_xcit_tools.validate:console",
            "passl-xcit-predict = passl_xcit_tools.predict:console",
            "passl-xcit-export = passl_xcit_tools.export:console",
            "passl-xcit-visualize = passl_xcit_tools.visualize:console",
            "passl-xcit-convert-weights = passl_xcit_tools.convert_weights:console",
            "passl-xcit-extract-weight = passl_xcit_tools.extract_weight:console",
            "passl-xcit-draw-curves = passl_xcit_tools.draw_curves:console",
            "passl-xcit-model-zoo = passl_xcit_tools.model_zoo:console",
            "passl-xcit-benchmark = passl_xcit_tools.benchmark:console",
            "passl-xcit-doctor = passl_xcit_tools.doctor:console",
        ]
    },
)
