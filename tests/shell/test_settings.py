"""Settings from the environment."""

import pytest

from rerail_operator.shell.settings import BadSettings, HostPort, LogFormat, LogLevel, read_settings

NEEDED = {
    "RERAIL_NAMESPACE": "rerail-system",
    "RERAIL_COORDINATOR_SERVICE": "rerail-coordinator.rerail-system.svc:7400",
}


def test_the_two_that_are_needed_are_enough() -> None:
    settings = read_settings({**NEEDED, "PATH": "/bin"})
    assert settings.namespace == "rerail-system"
    assert settings.coordinator_service == HostPort("rerail-coordinator.rerail-system.svc", 7400)
    assert (settings.coordinator_port, settings.probe_port, settings.metrics_port) == (7400, 8080, 9090)
    assert settings.accelerators[:2] == ("nvidia.com/gpu", "amd.com/gpu")
    assert (settings.log_level, settings.log_format, settings.workers) == (LogLevel.INFO, LogFormat.TEXT, 4)
    assert settings.authority_secret == "rerail-authority"
    assert settings.unknown == () and settings.bad_node_conditions == ()


def test_all_that_the_chart_sets_is_read() -> None:
    settings = read_settings(
        {
            **NEEDED,
            "RERAIL_POD_NAME": "rerail-7d9f-abcde",
            "RERAIL_POD_IP": "fd00::7",
            "RERAIL_COORDINATOR_PORT": "7401",
            "RERAIL_ACCELERATORS": "example.com/npu, nvidia.com/gpu,,example.com/npu",
            "RERAIL_BAD_NODE_CONDITIONS": "GpuUnhealthy, KernelDeadlock,,GpuUnhealthy",
            "RERAIL_PROBE_PORT": "8081",
            "RERAIL_METRICS_PORT": "9091",
            "RERAIL_LEASE_NAME": "my-rerail",
            "RERAIL_WORKERS": "8",
            "RERAIL_LOG_LEVEL": "DEBUG",
            "RERAIL_LOG_FORMAT": "json",
        }
    )
    assert settings.accelerators == ("example.com/npu", "nvidia.com/gpu")
    assert settings.bad_node_conditions == ("GpuUnhealthy", "KernelDeadlock")
    assert str(settings.address) == "[fd00::7]:7401"
    assert (settings.workers, settings.log_level, settings.log_format) == (8, LogLevel.DEBUG, LogFormat.JSON)
    assert settings.authority_secret == "my-rerail-authority"


BAD = {
    "RERAIL_NAMESPACE": ("Rerail System", "is not a name that Kubernetes accepts"),
    "RERAIL_COORDINATOR_SERVICE": ("coordinator", "is not host:port"),
    "RERAIL_COORDINATOR_PORT": ("http", "is not a whole number from 1 to 65535"),
    "RERAIL_PROBE_PORT": ("70000", "is not a whole number from 1 to 65535"),
    "RERAIL_METRICS_PORT": ("-1", "is not a whole number"),
    "RERAIL_WORKERS": ("0", "is not a whole number from 1 to 64"),
    "RERAIL_ACCELERATORS": ("nvidia.com/gpu,gpu", "holds 'gpu', which is no vendor/resource name"),
    "RERAIL_BAD_NODE_CONDITIONS": (
        "Gpu Unhealthy",
        "holds 'Gpu Unhealthy', which is no type of a node condition",
    ),
    "RERAIL_LOG_LEVEL": ("loud", "is none of debug, info, warning, error"),
    "RERAIL_LOG_FORMAT": ("xml", "is none of text, json"),
    "RERAIL_LEASE_NAME": ("a_b", "is not a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_told_with_its_name_and_an_example(name: str) -> None:
    value, message = BAD[name]
    with pytest.raises(BadSettings) as refused:
        read_settings({**NEEDED, name: value})
    (problem,) = refused.value.problems
    assert problem.startswith(f"{name}={value!r} ") and message in problem and f"example: {name}=" in problem


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(BadSettings) as refused:
        read_settings({"RERAIL_WORKERS": "many", "RERAIL_PROBE_PORT": "x"})
    text = str(refused.value)
    for name in (
        "RERAIL_NAMESPACE is not set",
        "RERAIL_COORDINATOR_SERVICE is not set",
        "RERAIL_WORKERS",
        "RERAIL_PROBE",
    ):
        assert name in text


def test_two_servers_cannot_share_a_port() -> None:
    with pytest.raises(BadSettings, match="have to differ"):
        read_settings({**NEEDED, "RERAIL_PROBE_PORT": "7400"})


def test_a_misspelt_variable_is_told_and_kubernetes_own_are_not() -> None:
    links = {
        "RERAIL_METRICS_SERVICE_HOST": "10.0.0.1",
        "RERAIL_PORT_80_TCP": "tcp://10.0.0.1:80",
        "RERAIL_PORT": "tcp",
    }
    settings = read_settings({**NEEDED, **links, "RERAIL_WORKER": "8"})
    assert settings.unknown == ("RERAIL_WORKER is not a setting and is ignored; is RERAIL_WORKERS meant?",)


def test_a_condition_that_is_true_on_every_good_node_is_refused_before_it_empties_the_cluster() -> None:
    with pytest.raises(BadSettings, match="'Ready', which is True on every good node"):
        read_settings({**NEEDED, "RERAIL_BAD_NODE_CONDITIONS": "GpuUnhealthy,Ready"})
