"""The pod script, run with a `gcloud` that only notes its arguments, and the JobSet, which launch.train understands."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

from configs.janus_pro_7b import get_config
from janus_jax.data.packing import IMAGE_FEATURES, block_bytes
from janus_jax.data.stream import RING_SLOTS
from janus_jax.training.resilience.exit_codes import RESTART
from janus_jax.training.setup import num_shards

LAUNCH = Path(__file__).parents[2] / "launch"
STATES = ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
FAKE = """#!/bin/bash
printf '%s\\n' "$*" >> "$LOG"
if [[ "$*" == *describe* ]]; then
  line=$(grep -c describe "$LOG")
  echo "$STATES" | cut -d' ' -f"$line"
fi
if [[ "$*" == *"tpu-vm ssh"* ]]; then
  if [[ "$*" == *--worker=0* ]]; then HOSTS=${HOSTS%% *}; fi
  for argument in "$@"; do
    if [[ "$argument" == --command=* ]]; then command=${argument#--command=}; fi
  done
  code=0
  for host in $HOSTS; do (cd "$host" && bash -c "$command") || code=$?; done
  exit $code
fi
"""

# The metadata server, as the hosts "host" and "other" see it.
METADATA = """#!/bin/bash
case "${@: -1}" in
  */attributes/agent-worker-number) [[ "$PWD" == *other* ]] && echo 1 || echo 0 ;;
  */attributes/worker-network-endpoints) printf 'unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3' ;;
esac
"""


@pytest.fixture
def pod(tmp_path):
    """Runs the script; returns (exit code, its output, the calls of gcloud)."""
    scripts = {"gcloud": FAKE, "hostname": '#!/bin/bash\ncd ..; basename "$PWD"\n', "curl": METADATA}
    for name, script in scripts.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, **variables):
        log.unlink(missing_ok=True)
        settings = {"NAME": "n", "ZONE": "z", "ACCELERATOR": "v5p-128", "BUCKET": "gs://b", "POLL_SECONDS": "0"}
        settings |= {"HOSTS": f"{tmp_path}/host {tmp_path}/other", "START_SECONDS": "0.1"}
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
        environment |= {"STATES": " ".join(STATES)} | settings | variables
        done = subprocess.run(
            [LAUNCH / "tpu" / "pod.sh", *arguments],
            env={k: v for k, v in environment.items() if v},
            capture_output=True,
            text=True,
            cwd=LAUNCH.parent,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(
    ("accelerator", "image"),
    [("v5p-128", "v2-alpha-tpuv5"), ("v5litepod-64", "v2-alpha-tpuv5-lite"), ("v6e-64", "v2-alpha-tpuv6e")],
)
def test_create_asks_for_the_slice_and_waits_until_it_is_there(pod, accelerator, image):
    code, error, calls = pod("create", ACCELERATOR=accelerator, SPOT="1", PROJECT="p")
    assert code == 0, error
    expected = f"compute tpus queued-resources create n --node-id=n --accelerator-type={accelerator} "
    assert calls[0] == expected + f"--runtime-version={image} --spot --zone=z --project=p"
    assert sum("describe" in call for call in calls) == len(STATES)


def test_a_request_that_failed_is_told(pod):
    code, error, _ = pod("create", STATES="FAILED")
    assert code == 1 and "ended as FAILED" in error


@pytest.fixture
def hosts(tmp_path):
    """Folders of two hosts of the slice, in which commands over SSH run; their Python only notes its arguments."""
    folders = [tmp_path / name / "janus_jax" for name in ("host", "other")]
    for folder in folders:
        (folder / ".venv" / "bin").mkdir(parents=True)
        train(folder, "echo trains; exec sleep 60")
    yield folders
    for process in itertools.chain(*map(running, folders)):
        os.kill(process, signal.SIGKILL)


def train(folder, commands):
    """Lets the Python of a host run these shell commands after it has noted its arguments."""
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >> started; {commands}\n")
    python.chmod(0o755)


def running(folder):
    """Ids of the processes whose working directory is this folder."""
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and (process / "cwd").readlink() == folder:
                yield int(process.name)


def test_run_starts_on_all_hosts_once_until_it_ends_and_keeps_its_quoted_flags(pod, hosts):
    host, other = hosts
    arguments = ["--config=configs/janus_pro_7b.py:stage1", '--config.data.sources.text=("gs://b/a b-*.array_record",)']
    code, told, (call,) = pod("run", *arguments)
    assert code == 0 and "already running" not in told
    assert call.startswith("compute tpus tpu-vm ssh n --worker=all --command=cd janus_jax; ")
    command = ["-m", "launch.train", "--multihost", "--workdir=gs://b/runs/n", *arguments]
    assert (host / "started").read_text().splitlines() == command
    assert (other / "started").read_text().splitlines() == command
    code, told, _ = pod("run", *arguments)
    assert code == 0 and "already running" in told
    assert (host / "started").read_text().splitlines() == command
    for process in running(host):
        os.kill(process, signal.SIGKILL)
    code, told, _ = pod("run", *arguments)
    assert code == 0 and told.count("already running") == 1  # on the other host
    assert (host / "started").read_text().splitlines() == command * 2
    assert (host / "train.log").read_text() == "trains\n" * 2  # the log of the first one stays readable


def test_evaluate_starts_independent_workers_that_know_their_number(pod, hosts):
    arguments = ["--checkpoint=gs://b/janus pro", "--benchmarks=pope,gqa", "--data=gs://b/d", "--mesh=1,1,4"]
    code, told, (call,) = pod("evaluate", *arguments)
    assert code == 0 and "already running" not in told and "--multihost" not in call
    for number, host in enumerate(hosts):
        command = ["-m", "launch.evaluate", "--output=gs://b/evaluations/n", *arguments]
        command += [f"--process_id={number}", "--num_processes=2"]
        assert (host / "started").read_text().splitlines() == command
    code, told, _ = pod("run", "--config=c.py")
    assert code == 0 and told.count("already running") == 2  # the chips are in use


def test_a_host_that_cannot_start_is_told_by_run_and_by_watch_when_the_first_one_has_ended(pod, hosts):
    host, other = hosts
    train(host, "sleep 3; echo a host is gone; exit 75")
    train(other, "echo error: b.array_record cannot be read; exit 2")
    reason = ["other: error: b.array_record cannot be read"]
    code, told, _ = pod("run", "--config=c.py")
    assert code == 2 and told.splitlines() == ["other: the run has ended:", *reason]
    code, told, calls = pod("watch")
    assert code == 0 and told.splitlines() == ["a host is gone", "host: a host is gone", *reason]
    assert not list(running(host)) and ["--worker=all" in call for call in calls] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["create"], {"NAME": ""}, "error: NAME is not set"),
        (["create"], {"ACCELERATOR": "tpu9"}, "error: ACCELERATOR=tpu9, expected"),
        (["run"], {"BUCKET": ""}, "error: BUCKET is not set"),
        ([], {}, "create | setup | run | evaluate | watch | delete"),
        (["destroy"], {}, "create | setup | run | evaluate | watch | delete"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked_for(pod, arguments, variables, message):
    code, error, calls = pod(*arguments, **variables)
    assert code == 2 and message in error and calls == []


def test_the_script_is_clean_for_shellcheck():
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), LAUNCH / "tpu" / "pod.sh"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_jobset_has_a_host_per_four_chips_of_its_topology():
    (document,) = yaml.safe_load_all((LAUNCH / "tpu" / "jobset.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # The published schema has a field of the same type for everything in the file.
    assert JobsetV1alpha2JobSet.from_dict(document).to_dict() == document
    (job,) = document["spec"]["replicatedJobs"]
    hosts, pods = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (rule,) = hosts["podFailurePolicy"]["rules"]
    # Mistakes end the job for good; a lost host, a hang or an abort by JAX does not.
    ending = rule["onExitCodes"]["values"]
    assert rule["action"] == "FailJob" and 2 in ending and not {RESTART, 130, 128 + signal.SIGABRT} & set(ending)
    x, y, z = map(int, pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    (container,) = pods["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert hosts["parallelism"] == hosts["completions"] == x * y * z // chips
    assert f"\nWORKDIR {container['workingDir']}\n" in (LAUNCH / "tpu" / "Dockerfile").read_text()
    assert container["command"] == ["python", "-m", "launch.train"] and "--multihost" in container["args"]
    fields = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    config = get_config("stage2")
    assert num_shards(config) % (hosts["parallelism"] * 4) == 0  # room for four workers a host and more
    assert config.train.batch_size % (x * y * z) == 0 and not {field for field in fields if "mesh" in field}
    assert fields["config"] == "configs/janus_pro_7b.py:stage2"
    rows = config.train.batch_size // hosts["parallelism"]
    slots = dict(zip(IMAGE_FEATURES, ((config.data.und_slots, 384), (config.data.gen_slots, 384)), strict=True))
    (mount,), (volume,) = container["volumeMounts"], pods["volumes"]
    assert (mount["mountPath"], mount["name"], volume["emptyDir"]["medium"]) == ("/dev/shm", volume["name"], "Memory")
    needed = RING_SLOTS * block_bytes(rows, config.data.row_length, slots)
    assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30 > 2 * needed


def test_the_jobset_of_an_evaluation_lets_its_pods_fail_and_start_again_alone():
    (document,) = yaml.safe_load_all((LAUNCH / "tpu" / "jobset_evaluate.yaml").read_text())
    assert JobsetV1alpha2JobSet.from_dict(document).to_dict() == document
    (job,) = document["spec"]["replicatedJobs"]
    hosts, pods = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (rule,) = hosts["podFailurePolicy"]["rules"]
    ending = rule["onExitCodes"]["values"]
    assert rule["action"] == "FailIndex" and ending == [1, 2] and RESTART not in ending
    (container,) = pods["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    rows, columns = map(int, pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert hosts["parallelism"] == hosts["completions"] == rows * columns // chips
    assert container["command"] == ["python", "-m", "launch.evaluate"]
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])
    sources = [LAUNCH / "evaluate.py", LAUNCH / "cli/evaluation_model.py", LAUNCH / "cli/model_flags.py"]
    defined = {name for path in sources for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text())}
    assert given.keys() <= defined
    data, fsdp, tensor = map(int, given["mesh"].split(","))
    assert data * fsdp * tensor == chips
