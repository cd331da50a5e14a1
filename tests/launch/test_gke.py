import os

import pytest
import yaml
from scripts import (
    CIFAR10,
    ODD,
    ROOT,
    assert_one_line,
    calls,
    dry_runs,
    executable,
    launch,
    records,
    tools,
)

GKE = ROOT / "launch" / "gke.sh"
WAITS = "--join_timeout=86400"


@pytest.fixture
def dry(tmp_path):
    return dry_runs(tmp_path)


def template():
    return (ROOT / "launch" / "gke_jobset.yaml").read_text()


def job_of(text):
    (worker,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    return worker["template"]["spec"]


def pod(text):
    return job_of(text)["template"]["spec"]


def container(text):
    (found,) = pod(text)["containers"]
    return found


def test_the_template_is_yaml():
    assert yaml.safe_load(template())["kind"] == "JobSet"
    assert container(template())["image"] == "${IMAGE}"


def test_on_tpus(dry):
    text = "\n".join(dry(GKE, "yaml", CIFAR10, BUCKET="b", IMAGE="r/jcm"))
    assert "${" not in text and "#" not in text
    jobset = yaml.safe_load(text)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["metadata"]["name"] == "jcm"
    (annotation,) = jobset["metadata"]["annotations"].items()
    assert annotation == (
        "alpha.jobset.sigs.k8s.io/exclusive-topology",
        "cloud.google.com/gke-nodepool",
    )
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 10
    # A pod must never join pods of an earlier attempt.
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] == "BlockingRecreate"
    assert "volumes" not in pod(text)
    job = job_of(text)
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert job["completionMode"] == "Indexed"
    assert pod(text)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod(text)["serviceAccountName"] == "default"
    assert "tolerations" not in pod(text)
    assert container(text) == {
        "name": "jcm",
        "image": "r/jcm",
        "imagePullPolicy": "Always",
        "resources": {"limits": {"google.com/tpu": 4}},
        "command": ["python", "-P", "-m", "jcm.main"],
        "args": [CIFAR10, "--workdir=gs://b/runs/cifar10_cd", WAITS],
    }


def test_interrupted_runs_start_again(dry):
    text = "\n".join(dry(GKE, "yaml", CIFAR10, BUCKET="b", IMAGE="r/jcm"))
    (rule,) = yaml.safe_load(text)["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    code, taken = job_of(text)["podFailurePolicy"]["rules"]
    assert code["action"] == taken["action"] == "FailJob"
    assert code["onExitCodes"] == {
        "containerName": container(text)["name"],
        "operator": "In",
        "values": [75],
    }
    assert taken["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Kubernetes requires it for a podFailurePolicy.
    assert pod(text)["restartPolicy"] == "Never"
    assert pod(text)["terminationGracePeriodSeconds"] >= 120


def test_on_gpus(dry):
    variables = {"ACCELERATOR": "nvidia-l4", "NODES": 3, "DEVICES": 2, "SPOT": 1}
    names = {"JOB": "mine", "SERVICE_ACCOUNT": "me", "MAX_RESTARTS": 0, "IMAGE": "i"}
    text = "\n".join(dry(GKE, "yaml", CIFAR10, "--workdir=w", **variables, **names))
    jobset = yaml.safe_load(text)
    assert jobset["metadata"] == {"name": "mine"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 0
    job = job_of(text)
    assert (job["parallelism"], job["completions"]) == (3, 3)
    assert pod(text)["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod(text)["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Exists"}
    ]
    assert pod(text)["serviceAccountName"] == "me"
    assert container(text)["resources"] == {"limits": {"nvidia.com/gpu": 2}}
    assert container(text)["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]
    assert pod(text)["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    assert {entry["name"]: entry["value"] for entry in container(text)["env"]} == {
        "JAX_COORDINATOR_ADDRESS": "mine-worker-0-0.mine:8476",
        "JAX_NUM_PROCESSES": "3",
        "JAX_PLATFORMS": "cuda,cpu",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
    }
    text = "\n".join(dry(GKE, "yaml", CIFAR10, BUCKET="b", IMAGE="i", SLICES=2))
    assert yaml.safe_load(text)["spec"]["replicatedJobs"][0]["replicas"] == 2
    variables = {"TOPOLOGY": "2x2x4", "DEVICES": 8, "IMAGE": "i"}
    text = "\n".join(dry(GKE, "yaml", "--workdir=w", **variables))
    assert job_of(text)["parallelism"] == 2


def test_runs_without_a_workdir_go_to_the_bucket(dry):
    text = "\n".join(dry(GKE, "yaml", CIFAR10, BUCKET="gs://b", IMAGE="i"))
    added = "--workdir=gs://b/runs/cifar10_cd"
    assert container(text)["args"] == [CIFAR10, added, WAITS]
    text = "\n".join(dry(GKE, "yaml", CIFAR10, "--workdir=w", BUCKET="b", IMAGE="i"))
    assert container(text)["args"] == [CIFAR10, "--workdir=w", WAITS]
    for mine in (["--join_timeout", "5"], ["--join_timeout=5"]):
        text = "\n".join(dry(GKE, "yaml", CIFAR10, "--workdir=w", *mine, IMAGE="i"))
        assert container(text)["args"] == [CIFAR10, "--workdir=w", *mine]


def test_arguments_are_passed_on_unchanged(dry):
    text = "\n".join(dry(GKE, "yaml", "--workdir=w", *ODD, IMAGE="i"))
    # Kubernetes replaces two dollar signs by one.
    arguments = [text.replace("$$", "$") for text in container(text)["args"]]
    assert arguments == ["--workdir=w", *ODD, WAITS]
    assert "$$HOME $$(HOME) $$$$" in container(text)["args"]


def test_it_creates_the_jobset(dry, tmp_path):
    variables = {"cwd": tmp_path, "IMAGE": "i"}
    run = ("run", "--workdir=w", *ODD)
    text = "\n".join(dry(GKE, "yaml", *run[1:], IMAGE="i")) + "\n"
    kubectl = '[ "$1" != get ] || exit "${GET:-1}"; cat >"${0%/*}/jobset.yaml"'
    path = records(tmp_path / "bin", "kubectl", then=kubectl)
    path = f"{path}:{os.environ['PATH']}"

    printed = "\n".join(dry(GKE, *run, IMAGE="i"))
    for arguments in ([GKE, *run], [executable(tmp_path / "printed", printed)]):
        done = launch(*arguments, path=path, **variables)
        assert done.returncode == 0, done.stderr
        assert calls(tmp_path / "bin")[-1] == "kubectl create --filename=-"
        (tmp_path / "bin" / "calls").unlink()
        assert (tmp_path / "bin" / "jobset.yaml").read_text() == text
    # A JobSet that has ended exists until it is deleted.
    done = launch(GKE, *run, path=path, GET=0, **variables)
    assert_one_line(done, "a JobSet jcm exists already", "launch/gke.sh stop")
    assert calls(tmp_path / "bin") == ["kubectl get jobset jcm"]


def test_sub_commands(dry):
    docker = f"docker build --platform=linux/amd64 --file={ROOT}/launch/Dockerfile"
    assert dry(GKE, "build", "--no-cache", IMAGE="r/jcm") == [
        f"{docker} --build-arg=EXTRA=tpu --tag=r/jcm --no-cache {ROOT}",
        "docker push r/jcm",
    ]
    (build, _) = dry(GKE, "build", IMAGE="r/jcm", ACCELERATOR="nvidia-l4")
    assert build == f"{docker} --build-arg=EXTRA=cuda --tag=r/jcm {ROOT}"
    selector = "--selector=jobset.sigs.k8s.io/jobset-name"
    assert dry(GKE, "status", "--namespace=n", JOB="mine") == [
        "kubectl get jobset mine --namespace=n",
        f"kubectl get pods {selector}=mine --output=wide --namespace=n",
    ]
    assert dry(GKE, "log") == [
        f"kubectl logs --follow --tail=100 {selector}=jcm"
        ",jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ]
    assert dry(GKE, "stop") == ["kubectl delete jobset jcm --cascade=foreground"]


def test_errors_name_what_is_missing(tmp_path):
    path = tools(tmp_path / "tools")

    def run(*arguments, **variables):
        return launch(GKE, *arguments, cwd=tmp_path, path=path, **variables)

    assert_one_line(run("sotp"), "gke.sh: unknown command sotp", "--help")
    for command in ("build", "run", "yaml"):
        assert_one_line(run(command, CIFAR10), "gke.sh: IMAGE is not set: set it")
    assert_one_line(run("build", IMAGE="i"), "docker not found: install")
    for command in ("run", "status", "log", "stop"):
        done = run(command, CIFAR10, IMAGE="i", BUCKET="b")
        assert_one_line(done, "kubectl not found: install")
    gpu = {"ACCELERATOR": "nvidia-l4", "SLICES": 2}
    assert_one_line(
        run("stop", **gpu), "SLICES=2 applies to TPUs only: for GPUs, set NODES"
    )
    assert_one_line(run("stop", TOPOLOGY="4"), "TOPOLOGY=4 must be")
    assert_one_line(run("stop", TOPOLOGY="3x3"), "divide", "DEVICES=4")
    assert_one_line(run("stop", DEVICES=0), "DEVICES=0 must be")
    done = run("run", CIFAR10, DRY_RUN=1, IMAGE="i")
    assert_one_line(done, "BUCKET", "--workdir=gs://")
    for config in ("mine.py", f"{ROOT}/configs/cifar10_cd.py"):
        done = run("run", f"--config={config}", DRY_RUN=1, IMAGE="i")
        assert_one_line(done, f"no {config} in the repository")
    done = run("run", "--mode=sample", DRY_RUN=1, IMAGE="i")
    assert_one_line(done, "neither --config nor --workdir is given")


def test_the_image_has_all_files_that_jcm_is_installed_from():
    copied = (ROOT / "launch" / "Dockerfile").read_text()
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        assert f" {name}" in copied
    for name in ("configs", "jcm"):
        assert f"COPY {name} {name}\n" in copied
