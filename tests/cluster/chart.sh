#!/usr/bin/env bash
# chart.sh   the chart against the API server of control-plane.sh: rendered, refused, installed, upgraded, rolled back,
# taken away. Nothing runs: no node has a kubelet. Run it with `control-plane.sh with [--cel] chart.sh`.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/lib.sh"
[[ ${KUBECONFIG-} ]] || die "no cluster; run control-plane.sh with chart.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
namespace=s3-system
cel=false
checked=() # the 1.20 half of the hybrid publishes a schema of CRDs that knows no rules, and Helm would check against it
if [[ ${S3_TEST_CEL-} ]]; then
    cel=true
    checked=(--disable-openapi-validation)
fi
promtool=$root/usr/bin/promtool

fail() {
    echo "chart: FAILED: $*" >&2
    exit 1
}
has() { grep -qF -- "$2" <<<"$1" || fail "expected \"$2\" in: $1"; }
lacks() { ! grep -qF -- "$2" <<<"$1" || fail "unexpected \"$2\" in: $1"; }
refused() { # WHAT COMMAND…   the command must fail and say WHAT
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then fail "$* was not refused"; fi
    has "$said" "$what"
}
can() { # yes|no USER VERB KIND|KIND/NAME|KIND/status [NAMESPACE]
    local answer what=("$4")
    [[ $4 != */status ]] || what=("${4%/status}" --subresource status)
    answer=$(kubectl auth can-i "$3" "${what[@]}" --as "$2" --namespace "${5:-default}" 2>/dev/null || true)
    [[ $answer == "$1" ]] || fail "$2 may $3 $4 in ${5:-default}: $answer, expected $1"
}

say "chart: alerts and their cases"
"$promtool" check rules "$repository/charts/s3-operator/files/alerts.yaml" >/dev/null
"$promtool" test rules "$repository/tests/alerts/cases.yaml" >/dev/null

say "chart: lint, package, render"
helm lint --strict --quiet "$repository/charts/s3-operator" 2>/dev/null
helm package "$repository/charts/s3-operator" --destination "$work" >/dev/null 2>&1
chart=$(ls "$work"/s3-operator-*.tgz)
everything=(--set "replicas=2,networkPolicy.enabled=true,serviceMonitor.enabled=true,podMonitor.enabled=true,alerts.enabled=true"
    --set "watchNamespaces={one,two},imagePullSecrets={pull},workers.cudaImages.s3-trainer=x:1"
    --set "networkPolicy.storageRanges={10.1.0.0/16},networkPolicy.scraperNamespaces.team=metrics"
    --set "workers.gateway.storage.size=5Gi,workers.labels.team=search,priorityClassName=high")
for version in 1.20.2 1.25.0 1.33.0; do
    rendered=$(helm template s3-operator "$chart" --namespace "$namespace" --kube-version "$version" "${everything[@]}" \
        --api-versions monitoring.coreos.com/v1 --api-versions policy/v1/PodDisruptionBudget)
    for kind in ServiceMonitor PodMonitor PrometheusRule PodDisruptionBudget NetworkPolicy RoleBinding CustomResourceDefinition; do
        has "$rendered" "kind: $kind"
    done
done
has "$(helm template s3-operator "$chart" --kube-version 1.20.2 --set replicas=2)" "apiVersion: policy/v1beta1"
lacks "$(helm template s3-operator "$chart" --set crds.validation=false)" "x-kubernetes-validations"
lacks "$(helm template s3-operator "$chart")" "monitoring.coreos.com"
lacks "$(helm template s3-operator "$chart" --set crds.install=false)" "kueue.x-k8s.io"
queues=$(helm template s3-operator "$chart" --set "kueue.enabled=true,watchNamespaces={one},workers.images.vllm=example.org/vllm:1")
for part in "resources: [workloads]" "resources: [resourceflavors]" "--kueue=true" "--image=vllm=example.org/vllm:1"; do has "$queues" "$part"; done
[[ $(helm template s3-operator "$chart" --show-only templates/dashboards.yaml | grep -c 'grafana_dashboard: "1"') == 5 ]] \
    || fail "five dashboards"

say "chart: wrong values are refused"
refused "additional properties 'replica' not allowed" helm template s3-operator "$chart" --set replica=2
refused "/replicas" helm template s3-operator "$chart" --set replicas=0
refused "/watchNamespaces/0" helm template s3-operator "$chart" --set "watchNamespaces={Not_A_Name}"
refused "/image/pullPolicy" helm template s3-operator "$chart" --set image.pullPolicy=Sometimes

say "chart: install"
helm install s3-operator "$chart" ${checked[@]+"${checked[@]}"} --namespace "$namespace" --create-namespace --set "crds.validation=$cel" \
    --set "replicas=2,networkPolicy.enabled=true" >"$work/notes"
has "$(<"$work/notes")" "serves all namespaces"
for crd in retrieverindices s3trainingjobs evalruns; do
    kubectl wait --for=condition=Established --timeout=60s "crd/$crd.searchagent.dev" >/dev/null
done
index='{"apiVersion":"searchagent.dev/v1alpha1","kind":"RetrieverIndex","metadata":{"name":"kept"},"spec":{"source":{"build":{"corpus":{"uri":"pvc://data/corpus.jsonl"},"lexical":{}}}}}'
for try in $(seq 100); do
    ! kubectl create -f - <<<"$index" >/dev/null 2>"$work/said" || break
    [[ $try != 100 ]] || fail "$(<"$work/said")"
    sleep 0.2 # an aggregated group is served some seconds after its CRDs are established
done
if $cel; then
    neither='{"spec":{"source":{"build":null}}}'
    refused "set exactly one of" kubectl patch retrieverindex kept --type=merge -p "$neither"
else
    for try in $(seq 100); do # the server publishes its OpenAPI some seconds after its CRDs
        ! kubectl explain s3trainingjob.spec.steps >"$work/said" 2>&1 || break
        sleep 0.3
    done
    has "$(<"$work/said")" "steps"
fi

say "chart: who may do what"
for role in view edit admin; do
    kubectl create rolebinding "$role" --clusterrole "$role" --user "$role" >/dev/null
done
sleep 2 # roles are aggregated by a controller
for try in $(seq 50); do
    [[ $(kubectl auth can-i get evalruns --as view 2>/dev/null) != yes ]] || break
    sleep 0.2
done
can yes view get evalruns
can no view create evalruns
can yes edit create s3trainingjobs
can no edit deletecollection s3trainingjobs
can yes admin deletecollection s3trainingjobs
operator=system:serviceaccount:$namespace:s3-operator
can yes "$operator" create jobs
can yes "$operator" get secrets
can no "$operator" list secrets
can no "$operator" create pods
can no "$operator" update s3trainingjobs
can yes "$operator" patch s3trainingjobs/status
can no "$operator" patch s3trainingjobs
can yes "$operator" update leases/s3-operator "$namespace"
can no "$operator" update leases/other "$namespace"

say "chart: upgrade and rollback"
before=$(kubectl get deployment s3-operator --namespace "$namespace" -o 'jsonpath={.spec}')
helm upgrade s3-operator "$chart" ${checked[@]+"${checked[@]}"} --namespace "$namespace" --reuse-values --set reconcilers=3,replicas=1 >/dev/null
has "$(kubectl get deployment s3-operator --namespace "$namespace" -o yaml)" "--workers=3"
lacks "$(kubectl get poddisruptionbudgets --namespace "$namespace" -o name)" "s3-operator"
helm rollback s3-operator 1 --namespace "$namespace" >/dev/null
[[ $(kubectl get deployment s3-operator --namespace "$namespace" -o 'jsonpath={.spec}') == "$before" ]] || fail "rollback"
kubectl get retrieverindex kept >/dev/null

say "chart: uninstall keeps, install finds again"
helm uninstall s3-operator --namespace "$namespace" >/dev/null
left=$(kubectl get clusterroles,clusterrolebindings,customresourcedefinitions --selector app.kubernetes.io/instance=s3-operator -o name)
[[ $(wc -l <<<"$left") == 3 ]] || fail "left: $left"
lacks "$(kubectl get deployments,services,configmaps,serviceaccounts,networkpolicies,roles,rolebindings --namespace "$namespace" -o name)" s3-operator
kubectl get retrieverindex kept >/dev/null
helm install s3-operator "$chart" ${checked[@]+"${checked[@]}"} --namespace "$namespace" --set "crds.validation=$cel,crds.keep=false" >/dev/null
kubectl get retrieverindex kept >/dev/null

say "chart: namespaced mode beside it"
kubectl create namespace one >/dev/null
kubectl create namespace two >/dev/null
helm install small "$chart" ${checked[@]+"${checked[@]}"} --namespace one --set "watchNamespaces={one,two},crds.install=false,rbac.aggregate=false" >/dev/null
small=system:serviceaccount:one:small-s3-operator
can yes "$small" create jobs one
can yes "$small" create jobs two
can no "$small" create jobs default
can yes "$small" create tokenreviews
helm uninstall small --namespace one >/dev/null

say "chart: uninstall with crds.keep=false takes all"
helm uninstall s3-operator --namespace "$namespace" --wait --timeout 60s >/dev/null
left=$(kubectl get customresourcedefinitions --selector app.kubernetes.io/instance=s3-operator -o name)
[[ -z $left ]] || fail "left: $left"
say "chart: all holds"
