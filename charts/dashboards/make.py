#!/usr/bin/env python3
"""make.py [--check]: writes the Grafana dashboards of the chart, charts/s3-operator/files/dashboards/*.json.

A dashboard is a list of panels; a panel is a title, what it means, a unit and its expressions. Only metrics of
workers/telemetry/src/catalogue.rs are asked for (a test holds that), every expression is run against a live Prometheus by
`make test-e2e`, and `until` names the event that fills a panel which may be empty there.
"""

import hashlib
import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "s3-operator" / "files" / "dashboards"
RATE = "$__rate_interval"
PODS = 'namespace=~"$namespace", pod=~"$pod"'


def panel(title, about, unit, *targets, kind="timeseries", until="", stack=False, width=8):
    """One panel; a target is (expression, legend)."""
    return {"title": title, "about": about, "unit": unit, "targets": targets, "kind": kind, "until": until,
            "stack": stack, "width": width}


def rate(metric, by="", **labels):
    """Events a second; nothing yet counts as zero when no label tells them apart."""
    match = "".join(f', {name}=~"{value}"' for name, value in labels.items())
    total = f"sum{f' by ({by})' if by else ''} (rate({metric}{{{PODS}{match}}}[{RATE}]))"
    return total if by else f"{total} or vector(0)"


def ratio(part, whole):
    """A share between 0 and 1; zero while nothing was counted."""
    return f"({part}) / clamp_min({whole}, 1e-9)"


def quantile(q, metric, by=""):
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, sum by ({by + ', ' if by else ''}le) (rate({metric}_bucket{{{PODS}}}[{RATE}])))"


def gauge(metric, labels=""):
    """A value as it stands, one line a pod."""
    return f"{metric}{{{PODS}{labels}}}"


def spent(direction, price, window=RATE):
    """Money a second, or in a window."""
    total = f'sum by (provider) (rate(s3_gateway_tokens_total{{{PODS}, direction="{direction}"}}[{window}]))'
    return f"{total} * {price} / 1e6"


OPERATOR = [
    panel("Leaders", "Exactly one, whatever the number of replicas.", "none",
          ("sum(s3_operator_leader{%s})" % PODS, "leaders"), kind="stat", width=4),
    panel("Resources waiting", "Due and not taken by a worker yet.", "none",
          ("sum(s3_operator_queue_depth{%s})" % PODS, "waiting"), kind="stat", width=4),
    panel("Reconciles that failed", "Share of all reconciles; each is tried again with a growing pause.", "percentunit",
          (ratio(rate("s3_operator_reconciles_total", result="error"), rate("s3_operator_reconciles_total")), "failed"),
          kind="stat", width=4),
    panel("Writes in conflict", "Share of all writes: somebody else wrote first, and the reconcile looks again.",
          "percentunit",
          (ratio(rate("s3_operator_writes_total", outcome="conflict"), rate("s3_operator_writes_total")), "conflicts"),
          kind="stat", width=4),
    panel("Writes a second", "Zero once everything is as it should be.", "ops",
          (rate("s3_operator_writes_total"), "writes"), kind="stat", width=4),
    panel("Reports not taken", "Progress reports of a former attempt (fenced) or with a wrong token (refused).", "ops",
          (rate("s3_operator_progress_reports_total", result="fenced|refused"), "not taken"), kind="stat", width=4),
    panel("Reconciles", "By kind and result.", "ops",
          (rate("s3_operator_reconciles_total", "kind, result"), "{{kind}} {{result}}"), stack=True),
    panel("Duration of a reconcile", "By kind.", "s",
          (quantile(0.5, "s3_operator_reconcile_seconds", "kind"), "{{kind}} median"),
          (quantile(0.95, "s3_operator_reconcile_seconds", "kind"), "{{kind}} 95 %")),
    panel("Queue", "Resources that are due.", "none", (gauge("s3_operator_queue_depth"), "{{pod}}")),
    panel("Writes", "By kind, verb and outcome.", "ops",
          (rate("s3_operator_writes_total", "kind, verb, outcome"), "{{verb}} {{kind}} {{outcome}}"), stack=True),
    panel("Progress reports", "By result.", "ops",
          (rate("s3_operator_progress_reports_total", "result"), "{{result}}"), stack=True),
    panel("Leadership", "1 leads, 0 stands by.", "none", (gauge("s3_operator_leader"), "{{pod}}")),
]

JOBS = [
    panel("Training now", "Pods that have done a policy update step.", "none",
          ("count(s3_training_step{%s}) or vector(0)" % PODS, "pods"), kind="stat", width=4),
    panel("Attempts done", "In the time shown.", "none",
          ('sum(increase(s3_operator_attempts_total{%s, verdict="Done"}[$__range])) or vector(0)' % PODS, "done"),
          kind="stat", width=4),
    panel("Attempts failed", "In the time shown, without those that were asked to stop.", "none",
          ('sum(increase(s3_operator_attempts_total{%s, verdict!~"Done|Stopped"}[$__range])) or vector(0)' % PODS, "failed"),
          kind="stat", width=4),
    panel("Episodes left out", "Because a retriever or generator failed; in the time shown.", "none",
          ("sum(increase(s3_training_masked_episodes_total{%s}[$__range])) or vector(0)" % PODS, "masked"),
          kind="stat", width=4),
    panel("Reports lost", "Progress reports that the operator did not take, a second.", "ops",
          (rate("s3_progress_report_failures_total"), "lost"), kind="stat", width=4),
    panel("Calls that failed", "Attempts of calls between workers, a second.", "ops",
          (rate("s3_rpc_client_failures_total"), "failed"), kind="stat", width=4),
    panel("Steps", "Policy update steps done.", "none", (gauge("s3_training_step"), "{{namespace}} {{pod}}")),
    panel("Attempts by verdict", "`Done`, `Stopped`, or the class of the failure (docs/failure-modes.md).", "ops",
          (rate("s3_operator_attempts_total", "kind, verdict"), "{{kind}} {{verdict}}"), stack=True),
    panel("Wait in queues", "Mean of the waits for admission by Kueue that ended; zero while none did.", "s",
          (ratio(rate("s3_operator_queue_wait_seconds_sum"), rate("s3_operator_queue_wait_seconds_count")), "wait")),
    panel("Calls between workers", "Median and 95 % of one attempt.", "s",
          (quantile(0.5, "s3_rpc_client_seconds", "service, method"), "{{service}} {{method}} median"),
          (quantile(0.95, "s3_rpc_client_seconds", "service, method"), "{{service}} {{method}} 95 %")),
    panel("Where a step's time goes", "Seconds of each phase in a second, all pods.", "none",
          ("sum by (phase) (rate(s3_training_phase_seconds_sum{%s}[%s]))" % (PODS, RATE), "{{phase}}"), stack=True),
    panel("Failed calls", "By service and code.", "ops",
          (rate("s3_rpc_client_failures_total", "service, code"), "{{service}} {{code}}"), stack=True,
          until="a call between workers fails"),
    panel("Reports not taken, by code", "Unauthenticated: the token; FailedPrecondition: a former attempt.", "ops",
          (rate("s3_progress_report_failures_total"), "all")),
]

TRAINING = [
    panel("Step", "Policy update steps done.", "none", (gauge("s3_training_step"), "{{pod}}"), kind="stat", width=4),
    panel("Gain beyond RAG", "Of the last step.", "percentunit", (gauge("s3_training_gain_beyond_rag"), "{{pod}}"),
          kind="stat", width=4),
    panel("Mean reward", "Of the last step's scored episodes.", "none", (gauge("s3_training_reward_mean"), "{{pod}}"),
          kind="stat", width=4),
    panel("Entropy", "Mean over action tokens; near zero the policy has stopped exploring.", "none",
          (gauge("s3_training_entropy"), "{{pod}}"), kind="stat", width=4),
    panel("Searches", "Executed per episode.", "none", (gauge("s3_training_searches_mean"), "{{pod}}"),
          kind="stat", width=4),
    panel("Tokens a second", "Sampled.", "none", (rate("s3_training_tokens_total", kind="action"), "sampled"),
          kind="stat", width=4),
    panel("Reward", "Mean reward and gain beyond RAG.", "none",
          (gauge("s3_training_reward_mean"), "{{pod}} reward"),
          (gauge("s3_training_gain_beyond_rag"), "{{pod}} gain")),
    panel("Generation accuracy", "Searcher and baseline on the questions of the last step.", "percentunit",
          (gauge("s3_training_accuracy"), "{{pod}} {{of}}")),
    panel("Policy", "Entropy, nats.", "none", (gauge("s3_training_entropy"), "{{pod}} entropy")),
    panel("Rollout against training", "KL of the two log-probabilities; beyond rounding the policy is not the one that acted.",
          "none", (gauge("s3_training_mismatch_kl"), "{{pod}}")),
    panel("Staleness", "Optimiser steps between the policy that played and the one that learns.", "none",
          (gauge("s3_training_staleness"), "{{pod}}")),
    panel("Gradient", "Norm before clipping.", "none", (gauge("s3_training_gradient_norm"), "{{pod}}")),
    panel("Searches per episode", "One that falls to none has learnt to answer without looking.", "none",
          (gauge("s3_training_searches_mean"), "{{pod}}")),
    panel("Phases of a step", "Mean duration.", "s",
          ("sum by (phase) (rate(s3_training_phase_seconds_sum{%s}[%s])) / clamp_min(sum by (phase) "
           "(rate(s3_training_phase_seconds_count{%s}[%s])), 1e-9)" % (PODS, RATE, PODS, RATE), "{{phase}}")),
    panel("Exchange among replicas", "Mean duration, waiting for the others included.", "s",
          ("sum by (operation) (rate(s3_training_collective_seconds_sum{%s}[%s])) / clamp_min(sum by (operation) "
           "(rate(s3_training_collective_seconds_count{%s}[%s])), 1e-9)" % (PODS, RATE, PODS, RATE), "{{operation}}"),
          until="a job with several replicas trains"),
    panel("Bytes among replicas", "Over TCP, a second.", "Bps",
          (rate("s3_training_collective_bytes_total", "direction"), "{{direction}}"),
          until="a job with several replicas trains"),
    panel("Difficulty buffer", "Questions held after the last step, and drawn for it.", "none",
          ("sum by (part) (%s) or vector(0)" % gauge("s3_training_difficulty_buffer_questions"), "{{part}}")),
    panel("Tokens", "Sampled (action) and trained on (context).", "none",
          (rate("s3_training_tokens_total", "kind"), "{{kind}}")),
    panel("Episodes left out", "A second.", "ops", (rate("s3_training_masked_episodes_total"), "masked")),
]

SERVING = [
    panel("Queries a second", "All retrievers.", "ops", (rate("s3_retriever_queries_total"), "queries"),
          kind="stat", width=4),
    panel("Cache hits", "Share of queries that were answered before.", "percentunit",
          (ratio(rate("s3_retriever_queries_total", cache="hit"), rate("s3_retriever_queries_total")), "hits"),
          kind="stat", width=4),
    panel("Passages", "In the served indices.", "none", (gauge("s3_retriever_index_passages"), "{{pod}}"),
          kind="stat", width=4),
    panel("Answers a second", "Answers and verdicts of the gateways.", "ops", (rate("s3_gateway_requests_total"), "requests"),
          kind="stat", width=4),
    panel("Answered from the cache", "Share of all answers; these cost nothing.", "percentunit",
          (ratio(rate("s3_gateway_requests_total", outcome="cached"), rate("s3_gateway_requests_total")), "cached"),
          kind="stat", width=4),
    panel("Cost of the time shown", "At the prices above, per million tokens.", "currencyUSD",
          ('sum(increase(s3_gateway_tokens_total{%s, direction="prompt"}[$__range])) * $prompt_price / 1e6 + '
           'sum(increase(s3_gateway_tokens_total{%s, direction="completion"}[$__range])) * $completion_price / 1e6'
           % (PODS, PODS), "cost"), kind="stat", width=4),
    panel("Search: duration", "By interface and method.", "s",
          (quantile(0.5, "s3_retriever_request_seconds", "api, method"), "{{api}} {{method}} median"),
          (quantile(0.99, "s3_retriever_request_seconds", "api, method"), "{{api}} {{method}} 99 %")),
    panel("Search: queries", "By method and cache outcome.", "ops",
          (rate("s3_retriever_queries_total", "method, cache"), "{{method}} {{cache}}"), stack=True),
    panel("Search: waiting", "Queries that wait for the engine or the web search; `serving.autoscaling` follows it.", "short",
          (gauge("s3_retriever_waiting_queries"), "{{pod}}")),
    panel("Search: refused", "Before any work: limits, deadlines.", "ops",
          (rate("s3_retriever_refused_total"), "refused")),
    panel("Web search: calls", "Attempts, by outcome; each is paid for.", "ops",
          (rate("s3_retriever_web_calls_total", "outcome") + " or vector(0)", "{{outcome}}"),
          (rate("s3_retriever_web_retries_total", "reason") + " or vector(0)", "repeated: {{reason}}"), stack=True),
    panel("Web search: duration", "Of one attempt.", "s",
          (quantile(0.5, "s3_retriever_web_seconds"), "median"),
          (quantile(0.95, "s3_retriever_web_seconds"), "95 %"), until="an index of a web search is asked"),
    panel("Web search: under way", "Calls; `source.webSearch.limits.concurrency` is the most.", "short",
          ("sum(%s) or vector(0)" % gauge("s3_retriever_web_calls_in_flight"), "calls")),
    panel("Gateway: outcomes", "By provider.", "ops",
          (rate("s3_gateway_requests_total", "provider, outcome"), "{{provider}} {{outcome}}"), stack=True),
    panel("Gateway: duration", "Of one upstream call or one built-in batch.", "s",
          (quantile(0.5, "s3_gateway_request_seconds", "provider"), "{{provider}} median"),
          (quantile(0.95, "s3_gateway_request_seconds", "provider"), "{{provider}} 95 %")),
    panel("Gateway: refused and repeated", "Refused before any call; attempts repeated after an error.", "ops",
          (rate("s3_gateway_refused_total"), "refused"), (rate("s3_gateway_retries_total"), "repeated")),
    panel("Gateway: tokens", "Read (prompt) and written (completion).", "none",
          (rate("s3_gateway_tokens_total", "provider, direction"), "{{provider}} {{direction}}"), stack=True),
    panel("Gateway: cost an hour", "At the prices above.", "currencyUSD",
          ("3600 * (" + spent("prompt", "$prompt_price") + " + " + spent("completion", "$completion_price") + ")",
           "{{provider}}")),
    panel("Gateway: tokens by caller", "What each caller was charged for.", "none",
          (rate("s3_gateway_caller_tokens_total", "caller"), "{{caller}}"), stack=True),
    panel("Gateway: verdicts", "A judge that cannot decide is a judge to look at.", "ops",
          (rate("s3_gateway_verdicts_total"), "all"),
          (rate("s3_gateway_verdicts_total", verdict="undecided|failed"), "undecided or failed")),
    panel("Searchers: questions", "To served searchers, by HTTP status; 429 is a queue that is full.", "ops",
          (rate("s3_searcher_requests_total", "code"), "{{code}}"), stack=True,
          until="a served searcher is asked"),
    panel("Searchers: time", "Median and 95 %, without the time in the queue.", "s",
          (quantile(0.5, "s3_searcher_request_seconds"), "median"),
          (quantile(0.95, "s3_searcher_request_seconds"), "95 %"),
          until="a served searcher is asked"),
]

EVALUATION = [
    panel("Questions a second", "Evaluated, all arms.", "ops", (rate("s3_eval_questions_total"), "questions"),
          kind="stat", width=6),
    panel("Questions done", "In the time shown.", "none",
          ("sum(increase(s3_eval_questions_total{%s}[$__range])) or vector(0)" % PODS, "questions"), kind="stat", width=6),
    panel("Questions failed", "Share; each is asked again when the run is resumed.", "percentunit",
          (ratio("sum(s3_eval_questions_total{%s, outcome=\"failed\"}) or vector(0)" % PODS,
                 "sum(s3_eval_questions_total{%s})" % PODS), "failed"), kind="stat", width=6),
    panel("Calls that failed", "Between workers, a second.", "ops", (rate("s3_rpc_client_failures_total"), "failed"),
          kind="stat", width=6),
    panel("Accuracy by arm", "Right answers of all so far; the run's result has the intervals.", "percentunit",
          ("sum by (arm) (s3_eval_questions_total{%s, outcome=\"right\"}) / sum by (arm) (s3_eval_questions_total{%s})"
           % (PODS, PODS), "{{arm}}"), width=12),
    panel("Questions by arm", "Evaluated so far.", "none",
          ("sum by (arm, outcome) (s3_eval_questions_total{%s})" % PODS, "{{arm}} {{outcome}}"), stack=True, width=12),
    panel("Search under evaluation", "Median and 95 %.", "s",
          (quantile(0.5, "s3_retriever_request_seconds"), "median"),
          (quantile(0.95, "s3_retriever_request_seconds"), "95 %"), width=12),
    panel("Answers under evaluation", "By outcome.", "ops",
          (rate("s3_gateway_requests_total", "outcome"), "{{outcome}}"), stack=True, width=12),
]

DASHBOARDS = {
    "operator": ("s3: operator", "Is the operator healthy?", OPERATOR, "s3_operator_leader"),
    "jobs": ("s3: jobs", "How do all jobs fare?", JOBS, "s3_rpc_client_seconds_count"),
    "training": ("s3: training", "Does the searcher learn?", TRAINING, "s3_training_step"),
    "serving": ("s3: search and answers, with cost", "How fast, how often, how dear?", SERVING, "up"),
    "evaluation": ("s3: evaluation", "Which arm is right how often?", EVALUATION, "s3_eval_questions_total"),
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def query(name, label, metric):
    """A variable filled from a label's values."""
    return {"name": name, "type": "query", "label": label, "datasource": SOURCE, "includeAll": True, "multi": True,
            "allValue": ".*", "current": {"text": "All", "value": "$__all"}, "refresh": 2,
            "query": {"query": metric, "refId": name}, "definition": metric}


def price(name, label, value):
    """A number that a person types."""
    return {"name": name, "type": "textbox", "label": label, "query": value, "current": {"text": value, "value": value}}


def variables(name, metric):
    """What stands above the panels."""
    if name == "serving":
        metric = "{__name__=~\"s3_(retriever|gateway)_.*\"}"
    pods = metric[:-1] + ', namespace=~"$namespace"}' if metric.endswith("}") else metric + '{namespace=~"$namespace"}'
    out = [{"name": "datasource", "type": "datasource", "label": "Prometheus", "query": "prometheus"},
           query("namespace", "Namespace", f"label_values({metric}, namespace)"),
           query("pod", "Pod", f"label_values({pods}, pod)")]
    if name == "serving":
        out += [price("prompt_price", "Price per million prompt tokens", "0.15"),
                price("completion_price", "Price per million completion tokens", "0.60")]
    return out


def placed(panels):
    """Panels from left to right, then down."""
    x = y = row = 0
    for number, part in enumerate(panels, 1):
        height = 4 if part["kind"] == "stat" else 8
        if x + part["width"] > 24:
            x, y = 0, y + row
        row = height
        about = part["about"] + (f" Empty until {part['until']}." if part["until"] else "")
        draw = {"drawStyle": "line", "fillOpacity": 10, "showPoints": "never",
                "stacking": {"mode": "normal" if part["stack"] else "none"}}
        defaults = {"unit": part["unit"]}
        if part["kind"] == "timeseries":
            defaults["custom"] = draw
        yield {
            "id": number, "type": part["kind"], "title": part["title"], "description": about, "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": part["width"], "h": height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "targets": [{"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
                        for at, (expr, legend) in enumerate(part["targets"])],
        }
        x += part["width"]


def dashboard(name):
    """The whole JSON of one dashboard."""
    title, about, panels, metric = DASHBOARDS[name]
    return {
        "uid": hashlib.md5(f"s3-{name}".encode()).hexdigest(), "title": title, "description": about, "tags": ["s3"],
        "schemaVersion": 39, "editable": True, "refresh": "30s", "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables(name, metric)}, "panels": list(placed(panels)),
        "links": [{"type": "dashboards", "tags": ["s3"], "title": "s3", "asDropdown": True, "keepTime": True}],
    }


def main(check):
    """Writes or compares every file."""
    old = []
    for name in DASHBOARDS:
        text = json.dumps(dashboard(name), indent=1, ensure_ascii=False) + "\n"
        file = FOLDER / f"{name}.json"
        if check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            old.append(file.name)
        elif not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    if old:
        sys.exit(f"error: {', '.join(old)} differ from charts/dashboards/make.py; run it")


if __name__ == "__main__":
    main(sys.argv[1:] == ["--check"])
