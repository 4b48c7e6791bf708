"""What a playbook does, as one JSON object a line on standard output: for `fleet provision`, which shows it."""

from __future__ import annotations

import json
import sys

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: fleet_events
type: stdout
short_description: events as lines of JSON
description: One JSON object a line for each task that starts on a host and each that ends, and the sums at the end.
"""

#: Longest text of a result that is passed on: a module may say megabytes.
_MOST = 4000


class CallbackModule(CallbackBase):
    """Writes ``{"event", "host", "task", …}``."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet_events"

    def v2_runner_on_start(self, host, task):
        self._tell("start", host.get_name(), task)

    def v2_runner_on_ok(self, result, **kwargs):
        status = "changed" if _of(result).get("changed") else "ok"
        notes = _of(result).get("msg") if "notes" in (_task(result).tags or ()) else None
        self._tell(status, _host(result), _task(result), notes=notes if isinstance(notes, list) else None)

    def v2_runner_on_failed(self, result, ignore_errors=False, **kwargs):
        self._tell("failed", _host(result), _task(result), message=_words(_of(result)))

    def v2_runner_on_unreachable(self, result):
        self._tell("unreachable", _host(result), _task(result), message=_words(_of(result)))

    def v2_runner_on_skipped(self, result):
        self._tell("skipped", _host(result), _task(result))

    def v2_runner_item_on_ok(self, result):
        if _of(result).get("changed"):
            label = _of(result).get("_ansible_item_label", "")
            self._tell("item", _host(result), _task(result), item=str(label)[:_MOST])

    def v2_runner_item_on_failed(self, result):
        self._tell("item-failed", _host(result), _task(result), message=_words(_of(result)))

    def v2_playbook_on_stats(self, stats):
        for host in stats.processed:
            self._tell("sum", host, None, **stats.summarize(host))

    def _tell(self, event, host, task, **more):
        role = getattr(getattr(task, "_role", None), "_role_name", "") if task is not None else ""
        line = {"event": event, "host": host, "role": role, "task": task.name if task is not None else ""}
        line.update((key, value) for key, value in more.items() if value is not None)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


# Ansible 2.19 gave these names of their own.
def _of(result):
    return result.result if hasattr(result, "result") else result._result


def _task(result):
    return result.task if hasattr(result, "task") else result._task


def _host(result):
    return (result.host if hasattr(result, "host") else result._host).get_name()


def _words(result):
    """Why a task has failed: what the module says, and the last of what a command has said."""
    said = [result.get("msg"), result.get("module_stderr"), result.get("stderr"), result.get("stdout")]
    texts = [text.strip() for text in said if isinstance(text, str) and text.strip()]
    return "; ".join(texts[:2])[-_MOST:] or "it did not say why"
