"""YAML of the examples: it parses, and its fields are those that Kubernetes and LiteLLM read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.command import ROOT

yaml = pytest.importorskip("yaml")
OPERATE = ROOT / "examples" / "operate"

# Of batch/v1 CronJob and what it holds, as far as the example goes.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "schedule",
        "timeZone",
        "concurrencyPolicy",
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
        "suspend",
        "jobTemplate",
    },
    "spec.jobTemplate.spec": {
        "activeDeadlineSeconds",
        "backoffLimit",
        "podFailurePolicy",
        "template",
        "ttlSecondsAfterFinished",
    },
    "spec.jobTemplate.spec.template.spec": {
        "restartPolicy",
        "automountServiceAccountToken",
        "securityContext",
        "containers",
        "volumes",
        "serviceAccountName",
    },
}
OF_A_CONTAINER = {"name", "image", "command", "args", "env", "resources", "securityContext", "volumeMounts"}


def at(data: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        data = data[part]
    return data


def jobs() -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((OPERATE / "kubernetes.yaml").read_text()) if each]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["metadata"]["name"])
def test_a_cron_job(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    for path, known in FIELDS.items():
        assert not at(job, path).keys() - known, path
    spec = at(job, "spec")
    assert spec["concurrencyPolicy"] == "Forbid" and len(spec["schedule"].split()) == 5
    pod = at(job, "spec.jobTemplate.spec.template.spec")
    assert pod["restartPolicy"] == "Never" and pod["securityContext"]["runAsNonRoot"] is True
    volumes = {each["name"] for each in pod["volumes"]}
    for container in pod["containers"]:
        assert not container.keys() - OF_A_CONTAINER
        assert {each["name"] for each in container["volumeMounts"]} <= volumes
        assert all(isinstance(each["value"], str) for each in container.get("env", []))
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    # A refusal is no failure of the machine: it is not tried again.
    rules = at(job, "spec.jobTemplate.spec.podFailurePolicy.rules")
    assert {3} <= {code for rule in rules for code in rule["onExitCodes"]["values"]}
    names = {each["name"] for each in pod["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in rules} <= names


def test_the_script_gets_all_that_it_needs() -> None:
    (container,) = at(jobs()[0], "spec.jobTemplate.spec.template.spec.containers")
    script = (OPERATE / "reprune.sh").read_text()
    needed = {
        line.split('"')[0] for line in script.split("${")[1:] for line in [line.split("}")[0]] if line.endswith(":?")
    }
    assert {name.removesuffix(":?") for name in needed} == {"MODEL", "TEXT", "RECORDS", "POLICY", "RELEASES"}
    assert {name.removesuffix(":?") for name in needed} <= {each["name"] for each in container["env"]}
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    for each in container["env"]:
        assert any(each["value"].startswith(mount) for mount in mounts), each


def test_litellm_falls_back_and_cools_down() -> None:
    data = yaml.safe_load((OPERATE / "litellm.yaml").read_text())
    names = {each["model_name"] for each in data["model_list"]}
    router = data["router_settings"]
    assert router["allowed_fails"] >= 0 and router["cooldown_time"] > 0
    for fallback in router["fallbacks"]:
        for first, others in fallback.items():
            assert {first, *others} <= names
    mirrors = [each for each in data["model_list"] if "silent_model" in each["litellm_params"]]
    assert [each["litellm_params"]["silent_model"] for each in mirrors] == ["dense"]
    weights = [each["litellm_params"]["weight"] for each in data["model_list"] if each["model_name"] == "assistant"]
    assert sum(weights) == 100 and mirrors[0]["litellm_params"]["weight"] == 1


def test_alerts_name_metrics_and_say_what_happened() -> None:
    (group,) = yaml.safe_load((OPERATE / "prometheus-rules.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"} and rule["annotations"]["summary"]
